//! Netlink sockets: the port by which the kernel answers, and the groups whose messages they get.
//!
//! What the kernel sent cannot be sent again: a message of ours would name us as its sender. So a socket that holds one is refused
//! once the job stands still, and so is a dump that has not been read to its end. Protocols by which the kernel keeps state for a
//! socket (queues of netfilter, audit, connectors) are refused by name. What generic netlink keeps for a port (registrations of
//! single families) nobody can see: it is lost.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use libc::SOL_NETLINK;
use nix::errno::Errno;

use super::super::{No, not_here, unix};
use super::{Asked, Net, Special};
use crate::error::{Error, Result};
use crate::netlink::{ALL, Messages, REQUEST, attributes, u16_at, u32_at};
use crate::procfs;
use crate::sys::network;
use crate::sys::socket::{option, polled, set_option};

/// Protocols (`linux/netlink.h`) that are restored.
const RESTORED: &[(i32, &str)] = &[
    (libc::NETLINK_ROUTE, "route"),
    (libc::NETLINK_USERSOCK, "usersock"),
    (libc::NETLINK_SOCK_DIAG, "sock_diag"),
    (libc::NETLINK_XFRM, "xfrm"),
    (libc::NETLINK_SELINUX, "selinux"),
    (libc::NETLINK_FIB_LOOKUP, "fib_lookup"),
    (libc::NETLINK_KOBJECT_UEVENT, "kobject_uevent"),
    (libc::NETLINK_GENERIC, "generic"),
    (libc::NETLINK_CRYPTO, "crypto"),
];

/// Those that are not, and why.
const REFUSED: &[(i32, &str, &str)] = &[
    (libc::NETLINK_ISCSI, "iscsi", "the kernel takes its owner for the one who runs the sessions"),
    (libc::NETLINK_AUDIT, "audit", "the kernel takes its owner for the audit daemon"),
    (libc::NETLINK_CONNECTOR, "connector", "the kernel does not show which events it asked for"),
    (libc::NETLINK_NETFILTER, "netfilter", "the kernel does not show the queues and logs of packets that hang on it"),
    (libc::NETLINK_ECRYPTFS, "ecryptfs", "the kernel takes its owner for the one who has the keys"),
    (libc::NETLINK_RDMA, "rdma", "the kernel takes its owner for the one who resolves addresses"),
];

const CLOSE: &str = "have the job close it before the checkpoint";

/// A netlink socket.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Netlink {
    /// Its port; 0 if it has none yet.
    pub port: u32,
    /// The port and the groups that it is connected to; zeroes if it is to none.
    pub other: (u32, u32),
    /// The groups whose messages it gets.
    pub groups: Vec<Group>,
    /// Of generic netlink: the families that there were, by number. Programs remember the numbers.
    pub families: Vec<(u16, String)>,
}

/// A group of senders.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub number: u32,
    /// Of generic netlink: the names of its family and of itself, which may have another number after a reboot.
    pub name: Option<(String, String)>,
}

/// What the kernel shows of all netlink sockets.
#[derive(Default)]
pub(super) struct Tables {
    /// Those in the midst of a dump, by inode.
    dumps: OnceCell<HashMap<u64, bool>>,
    families: OnceCell<Vec<Family>>,
}

/// A family of generic netlink.
struct Family {
    number: u16,
    name: String,
    groups: Vec<(u32, String)>,
}

/// The record of a netlink socket.
pub(super) fn describe(asked: &Asked<'_>, tables: &Tables) -> std::result::Result<Netlink, No> {
    let protocol = asked.protocol;
    if let Some((_, name, why)) = REFUSED.iter().find(|(number, ..)| *number == protocol) {
        return Err(No::new(format!("is a netlink socket of {name}: {why}"), CLOSE));
    }
    if !RESTORED.iter().any(|(number, _)| *number == protocol) {
        return Err(No::new(format!("is a netlink socket of protocol {protocol}, which cr does not know"), CLOSE));
    }
    // `struct sockaddr_nl`: family, padding, port, groups.
    let own = network::name(asked.fd).unwrap_or_default();
    let other = network::peer(asked.fd).unwrap_or_default();
    let mut netlink = Netlink {
        port: u32_at(&own, 4),
        other: (u32_at(&other, 4), u32_at(&other, 8)),
        groups: Vec::new(),
        families: Vec::new(),
    };
    if !asked.frozen {
        return Ok(netlink);
    }
    let refused =
        |what: &str, todo| Err(No::new(format!("is a netlink socket ({}) {what}", netlink.place(protocol)), todo));
    if polled(asked.fd, libc::POLLIN) & (libc::POLLIN | libc::POLLERR) != 0 {
        return refused("that holds a message which the job has not read", "try again once it has");
    }
    if tables.dumps.get_or_init(dumps).get(&asked.inode).copied().unwrap_or(false) {
        return refused("in the midst of a dump", "try again once the job has read it to its end");
    }
    let mut groups: Vec<Group> = memberships(asked.fd).map(|number| Group { number, name: None }).collect();
    if protocol == libc::NETLINK_GENERIC {
        let families = tables.families.get_or_init(families);
        for group in &mut groups {
            group.name = name_of(families, group.number);
        }
        netlink.families = families.iter().map(|f| (f.number, f.name.clone())).collect();
    }
    netlink.groups = groups;
    Ok(netlink)
}

/// The numbers of the groups that a socket is in.
fn memberships(fd: BorrowedFd<'_>) -> impl Iterator<Item = u32> {
    let bits = option(fd, SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS).unwrap_or_default();
    let words = (0..bits.len() / 4).map(move |n| u32_at(&bits, 4 * n));
    words.enumerate().flat_map(|(n, word)| {
        let here = (0..32).filter(move |bit| word >> bit & 1 != 0);
        here.map(move |bit| 32 * n as u32 + bit + 1)
    })
}

/// A line of `/proc/net/netlink`: protocol, port, whether it is in the midst of a dump, inode.
fn parse(line: &str) -> Option<(i32, u32, bool, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
    Some((number(1)? as i32, number(2)? as u32, number(6)? != 0, number(9)?))
}

fn lines() -> Vec<(i32, u32, bool, u64)> {
    let text = procfs::text("/proc/thread-self/net/netlink").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

fn dumps() -> HashMap<u64, bool> {
    lines().into_iter().map(|(_, _, dumps, inode)| (inode, dumps)).collect()
}

/// The families of generic netlink (`linux/genetlink.h`); empty if it does not tell.
fn families() -> Vec<Family> {
    /// `GENL_ID_CTRL`, and `struct genlmsghdr` with `CTRL_CMD_GETFAMILY`.
    const CONTROL: u16 = 0x10;
    const QUESTION: [u8; 4] = [3, 1, 0, 0];
    let question = Messages::one(CONTROL, REQUEST | ALL, |out| out.put(&QUESTION));
    crate::netlink::Netlink::open(libc::NETLINK_GENERIC)
        .and_then(|netlink| netlink.show_all(&question, family))
        .inspect_err(|e| log::info!("the families of generic netlink are not known: {e}"))
        .unwrap_or_default()
}

/// One answer: `CTRL_ATTR_FAMILY_ID` is 1, `_NAME` 2, `_MCAST_GROUPS` 7; of a group the name is 1 and the number 2.
fn family(message: &[u8]) -> Option<Family> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    let mut family = Family { number: 0, name: String::new(), groups: Vec::new() };
    for (kind, value) in attributes(message.get(4..)?) {
        match kind {
            1 => family.number = u16_at(value, 0),
            2 => family.name = text(value),
            7 => {
                for (_, group) in attributes(value) {
                    let of = |wanted: u16| attributes(group).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                    family.groups.extend(of(2).map(|number| u32_at(number, 0)).zip(of(1).map(text)));
                }
            }
            _ => {}
        }
    }
    Some(family)
}

fn name_of(families: &[Family], group: u32) -> Option<(String, String)> {
    let find = |f: &Family| Some((f.name.clone(), f.groups.iter().find(|(number, _)| *number == group)?.1.clone()));
    families.iter().find_map(find)
}

/// Whether the ports are free, and generic netlink numbers its families as it did.
///
/// # Errors
/// [`Error::NotHere`].
pub(super) fn check<'a>(sockets: impl Iterator<Item = &'a Net>) -> Result<()> {
    let mut taken: Option<Vec<(i32, u32, bool, u64)>> = None;
    let mut now: Option<Vec<Family>> = None;
    for net in sockets {
        let Special::Netlink(netlink) = &net.special else { continue };
        let is_it = |l: &&(i32, u32, bool, u64)| netlink.port != 0 && (l.0, l.1) == (net.protocol, netlink.port);
        if let Some((.., inode)) = taken.get_or_insert_with(lines).iter().find(is_it) {
            let who = unix::owner_of(*inode, &[]).map_or("somebody else".to_owned(), procfs::who);
            return Err(not_here(net.what(), format!("{who} has that port"), "end that first"));
        }
        for (number, name) in &netlink.families {
            let other = now.get_or_insert_with(families).iter().find(|f| f.name == *name && f.number != *number);
            if let Some(other) = other {
                let why = format!("its family {name} had the number {number}, and has {} now", other.number);
                return Err(not_here(
                    net.what(),
                    why,
                    "have the job close it before the checkpoint, or load the kernel's modules in the order of then",
                ));
            }
        }
        netlink.groups.iter().try_for_each(|g| g.now(net).map(drop))?;
    }
    Ok(())
}

impl Group {
    /// The number that it has now.
    fn now(&self, net: &Net) -> Result<u32> {
        let Some((family, name)) = &self.name else { return Ok(self.number) };
        let families = families();
        let group = families.iter().filter(|f| f.name == *family).flat_map(|f| &f.groups).find(|(_, n)| n == name);
        group.map(|(number, _)| *number).ok_or_else(|| {
            let why = format!("generic netlink has no group {name} of {family} here");
            not_here(net.what(), why, "load the kernel's module for it")
        })
    }
}

impl Netlink {
    /// What it is, in words.
    pub(super) fn place(&self, protocol: i32) -> String {
        let name = RESTORED.iter().find(|(number, _)| *number == protocol).map_or("?", |(_, name)| name);
        if self.port == 0 { format!("of {name}, without a port") } else { format!("of {name}, port {}", self.port) }
    }

    /// Gives it its port, and connects it.
    pub(super) fn bind(&self, net: &Net, fd: BorrowedFd<'_>) -> Result<()> {
        let name = |(port, groups): (u32, u32)| {
            let mut bytes = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(&port.to_ne_bytes());
            bytes.extend_from_slice(&groups.to_ne_bytes());
            bytes
        };
        if self.port != 0 {
            network::bind(fd, &name((self.port, 0))).map_err(|e| match e {
                Errno::EADDRINUSE => not_here(net.what(), "somebody else has that port".to_owned(), "end that first"),
                other => net.failed(other),
            })?;
        }
        if self.other != (0, 0) {
            network::connect(fd, &name(self.other)).map_err(|e| net.failed(e))?;
        }
        Ok(())
    }

    /// Joins its groups.
    pub(super) fn join(&self, net: &Net, fd: BorrowedFd<'_>) -> Result<()> {
        for group in &self.groups {
            let number = group.now(net)?;
            set_option(fd, SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &number.to_ne_bytes())
                .map_err(|e| Error::system(format!("joining group {number} for {}", net.what()), e))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_table_of_netlink_sockets_is_read() {
        let line = "00000000abcdef01 0   812        00000001 0        0        1     2        0        4711    ";
        assert_eq!(parse(line), Some((0, 812, true, 4711)));
        let head = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode";
        assert_eq!(parse(head), None);
    }
}
