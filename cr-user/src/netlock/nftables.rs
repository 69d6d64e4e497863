//! The messages of nftables (`linux/netfilter/nf_tables.h`) that a lock takes: its table, and what is found of such tables.
//!
//! Written here: the kept crate that has them, `netlink-bindings`, is twenty thousand generated lines for the eight messages needed.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::netlink::{ALL, Messages, Netlink, REQUEST, attributes};

use super::Flow;

/// The kernel removes the table when the socket that made it is closed (Linux 5.12).
pub(super) const OWNED: u32 = 0x2;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NFPROTO_INET`: IPv4 and IPv6.
const INET: u8 = 1;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;

/// The chain that hooks nothing: its rules do nothing, and their comments are what is to be known of the table.
const NOTES: &str = "notes";
/// Most bytes of a comment: `NFT_USERDATA_MAXLEN`, less kind, length, and the zero at its end.
const COMMENT_MAX: usize = 253;

/// Changes that are made together, or not at all.
pub(super) struct Batch(Messages);

impl Batch {
    pub(super) fn new() -> Self {
        let mut messages = Messages::default();
        messages.message(BATCH_BEGIN, REQUEST, frame_of_batch);
        Self(messages)
    }

    fn change(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Messages)) {
        self.0.message(SUBSYSTEM << 8 | kind, REQUEST | flags, |out| {
            out.put(&[INET, 0, 0, 0]);
            body(out);
        });
    }

    /// A table that drops the packets of the connections in its sets.
    pub(super) fn table(&mut self, table: &str, flags: u32, comment: &str) {
        self.change(NEW_TABLE, CREATE, |out| {
            out.name(1, table);
            out.number(2, flags);
            out.attribute(6, &commented(comment.as_bytes()));
        });
        for family in Family::BOTH {
            self.set(table, family);
        }
        for side in Side::BOTH {
            self.chain(table, side);
            for family in Family::BOTH {
                self.rule(table, side, family);
            }
        }
    }

    /// A set of connections: the local address and port, the remote ones, each at a multiple of four bytes.
    fn set(&mut self, table: &str, family: Family) {
        // As nft(8) numbers types: so it can show what is in the set.
        const PORT: u32 = 13;
        let address = if family == Family::V4 { 7 } else { 8 };
        let types = [address, PORT, address, PORT].into_iter().fold(0, |all, one| all << 6 | one);
        self.change(NEW_SET, CREATE, |out| {
            out.name(1, table);
            out.name(2, family.set());
            out.number(3, 0);
            out.number(4, types);
            out.number(5, family.key_len() as u32);
            out.number(10, family as u32);
        });
    }

    fn chain(&mut self, table: &str, side: Side) {
        const ACCEPT: u32 = 1;
        let (hook, priority) = match side {
            // After the kernel has translated addresses: they are as the socket knows them.
            Side::Input => (1, 200),
            // Before that, and before connections are tracked: the tracking must not see a reset that nobody else sees.
            Side::Output => (3, -300i32),
        };
        self.change(NEW_CHAIN, CREATE, |out| {
            out.name(1, table);
            out.name(3, side.chain());
            out.nest(4, |out| {
                out.number(1, hook);
                out.number(2, priority as u32);
            });
            out.number(5, ACCEPT);
            out.name(7, "filter");
        });
    }

    /// `meta nfproto FAMILY meta l4proto tcp LOCAL . LOCAL PORT . REMOTE . REMOTE PORT @set drop`
    fn rule(&mut self, table: &str, side: Side, family: Family) {
        const NFPROTO: u32 = 15;
        const L4PROTO: u32 = 16;
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        const DROP: u32 = 0;
        let (protocol, source, destination, len) = match family {
            Family::V4 => (libc::NFPROTO_IPV4, 12, 16, 4),
            Family::V6 => (libc::NFPROTO_IPV6, 8, 24, 16),
        };
        let words = len / 4;
        // Where each is in the packet. What comes in goes from remote to local.
        let (local, local_port, remote, remote_port) = match side {
            Side::Input => (destination, 2, source, 0),
            Side::Output => (source, 0, destination, 2),
        };
        self.change(NEW_RULE, CREATE | APPEND, |out| {
            out.name(1, table);
            out.name(2, side.chain());
            out.nest(4, |out| {
                require(out, NFPROTO, protocol as u8);
                require(out, L4PROTO, libc::IPPROTO_TCP as u8);
                load(out, 0, NETWORK, local, len);
                load(out, words, TRANSPORT, local_port, 2);
                load(out, words + 1, NETWORK, remote, len);
                load(out, 2 * words + 1, TRANSPORT, remote_port, 2);
                expression(out, "lookup", |out| {
                    out.name(1, family.set());
                    out.number(2, REGISTERS);
                    out.number(4, family as u32);
                });
                expression(out, "immediate", |out| {
                    out.number(1, 0);
                    out.nest(2, |out| out.nest(2, |out| out.number(1, DROP)));
                });
            });
        });
    }

    /// Adds connections to the sets of a table.
    pub(super) fn flows(&mut self, table: &str, keys: &[Key]) {
        /// An attribute has less than 64 KiB.
        const AT_ONCE: usize = 1000;
        for family in Family::BOTH {
            let of_family: Vec<_> = keys.iter().filter(|key| key.family == family).collect();
            for some in of_family.chunks(AT_ONCE) {
                self.change(NEW_ELEMENTS, CREATE, |out| {
                    out.name(1, table);
                    out.name(2, family.set());
                    out.nest(3, |out| {
                        for key in some {
                            out.nest(1, |out| out.nest(1, |out| out.attribute(1, key.bytes())));
                        }
                    });
                });
            }
        }
    }

    /// Writes into a table what is to be known of it.
    pub(super) fn note(&mut self, table: &str, note: &[u8]) {
        self.change(NEW_CHAIN, CREATE, |out| {
            out.name(1, table);
            out.name(3, NOTES);
        });
        for piece in note.chunks(COMMENT_MAX) {
            self.change(NEW_RULE, CREATE | APPEND, |out| {
                out.name(1, table);
                out.name(2, NOTES);
                out.attribute(7, &commented(piece));
            });
        }
    }

    /// Removes a table that is there.
    pub(super) fn remove(&mut self, table: &str) {
        self.change(DEL_TABLE, 0, |out| out.name(1, table));
    }

    /// Removes a table if it is there.
    pub(super) fn remove_any(&mut self, table: &str) {
        // Where it is not there, it is made first: the kernel has forgiven its absence only since 6.3.
        self.change(NEW_TABLE, CREATE, |out| out.name(1, table));
        self.remove(table);
    }

    /// Removes that very table, and not another that has got its name.
    pub(super) fn remove_found(&mut self, found: &Table) {
        self.change(DEL_TABLE, 0, |out| out.attribute(4, &found.handle.to_be_bytes()));
    }

    /// Makes the changes.
    pub(super) fn commit(mut self, netlink: &Netlink) -> io::Result<()> {
        self.0.acknowledge_last();
        self.0.message(BATCH_END, REQUEST, frame_of_batch);
        submit(&self.0, netlink)
    }

    /// Only asks whether they could be made: a batch without an end is checked and dropped.
    pub(super) fn try_out(mut self, netlink: &Netlink) -> io::Result<()> {
        self.0.acknowledge_last();
        submit(&self.0, netlink)
    }
}

fn submit(messages: &Messages, netlink: &Netlink) -> io::Result<()> {
    netlink.send(messages)?;
    netlink.answers(&mut |_| ()).map(drop)
}

/// The registers in which the key is put together: each has four bytes.
const REGISTERS: u32 = 8;

fn frame_of_batch(out: &mut Messages) {
    out.put(&[0, 0]);
    out.put(&SUBSYSTEM.to_be_bytes());
}

fn expression(out: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    out.nest(1, |out| {
        out.name(1, name);
        out.nest(2, data);
    });
}

/// The rule goes on only where this is so of the packet.
fn require(out: &mut Messages, key: u32, value: u8) {
    expression(out, "meta", |out| {
        out.number(1, REGISTERS);
        out.number(2, key);
    });
    expression(out, "cmp", |out| {
        out.number(1, REGISTERS);
        out.number(2, 0);
        out.nest(3, |out| out.attribute(1, &[value]));
    });
}

fn load(out: &mut Messages, word: u32, header: u32, offset: u32, len: u32) {
    expression(out, "payload", |out| {
        out.number(1, REGISTERS + word);
        out.number(2, header);
        out.number(3, offset);
        out.number(4, len);
    });
}

/// A comment as nft(8) shows it.
fn commented(text: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4 = 4,
    V6 = 6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn set(self) -> &'static str {
        if self == Self::V4 { "flows4" } else { "flows6" }
    }

    fn key_len(self) -> usize {
        if self == Self::V4 { 16 } else { 40 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Input, Self::Output];

    fn chain(self) -> &'static str {
        if self == Self::Input { "input" } else { "output" }
    }
}

/// A connection as it is in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    family: Family,
    bytes: [u8; 40],
}

impl Key {
    pub(super) fn of(flow: &Flow) -> Option<Self> {
        let ends = [flow.local, flow.remote];
        let family = match ends.map(|end| end.ip().to_canonical()) {
            [IpAddr::V4(_), IpAddr::V4(_)] => Family::V4,
            [IpAddr::V6(_), IpAddr::V6(_)] => Family::V6,
            _ => return None,
        };
        let mut key = Self { family, bytes: [0; 40] };
        let half = family.key_len() / 2;
        for (end, bytes) in ends.iter().zip(key.bytes.chunks_mut(half)) {
            fill(bytes, end);
        }
        Some(key)
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.family.key_len()]
    }
}

fn fill(bytes: &mut [u8], end: &SocketAddr) {
    let (address, port) = bytes.split_at_mut(bytes.len() - 4);
    match end.ip().to_canonical() {
        IpAddr::V4(ip) => address.copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => address.copy_from_slice(&ip.octets()),
    }
    port[..2].copy_from_slice(&end.port().to_be_bytes());
}

/// A table that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    /// No other table of this boot has it.
    handle: u64,
}

/// All tables of the kind that ours are.
pub(super) fn tables(netlink: &Netlink) -> io::Result<Vec<Table>> {
    netlink.show_all(&question(GET_TABLE, |_| ()), |answer| {
        let name = value(answer, 1)?;
        Some(Table { name: text(name), handle: u64::from_be_bytes(value(answer, 4)?.try_into().ok()?) })
    })
}

/// What is to be known of a table.
pub(super) fn note_in(netlink: &Netlink, table: &str) -> io::Result<Vec<u8>> {
    let question = question(GET_RULE, |out| {
        out.name(1, table);
        out.name(2, NOTES);
    });
    let pieces = netlink.show_all(&question, |answer| {
        // Kernels before 4.6 show the rules of other tables, too.
        let ours = value(answer, 1).map(text)? == table && value(answer, 2).map(text)? == NOTES;
        // Kind and length before it, a zero behind.
        value(answer, 7).filter(|_| ours)?.get(2..)?.strip_suffix(&[0]).map(<[u8]>::to_vec)
    })?;
    Ok(pieces.concat())
}

fn question(kind: u16, body: impl FnOnce(&mut Messages)) -> Messages {
    Messages::one(SUBSYSTEM << 8 | kind, REQUEST | ALL, |out| {
        out.put(&[INET, 0, 0, 0]);
        body(out);
    })
}

fn value(answer: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(answer.get(4..)?).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned()
}
