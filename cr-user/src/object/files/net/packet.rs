//! Packet sockets (`packet(7)`): an interface and a protocol, and what else of the interface they take in. Rings in memory shared
//! with the kernel, and groups of sockets that share the work (fanout), are refused.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;

use libc::SOL_PACKET;
use nix::errno::Errno;

use super::super::No;
use super::super::sock_diag;
use super::address::{interface_name, interface_number};
use super::{Asked, Net};
use crate::error::{Error, Result};
use crate::netlink::{attributes, u16_at, u32_at};
use crate::sys::network;
use crate::sys::socket::set_option;

/// `linux/packet_diag.h`: what is asked for, and what comes.
const SHOW_MEMBERSHIPS: u32 = 2;
const SHOW_RINGS: u32 = 4;
const SHOW_FANOUT: u32 = 8;
const MEMBERSHIPS: u16 = 1;
const RECEIVE_RING: u16 = 2;
const SEND_RING: u16 = 3;
const FANOUT: u16 = 4;
/// Bytes of `struct packet_diag_msg` and `struct packet_diag_mclist`.
const HEADER: usize = 16;
const MEMBERSHIP: usize = 44;

const CLOSE: &str = "have the job close it before the checkpoint";

/// A packet socket.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// `ETH_P_*`, in the order of the network; 0: it takes nothing in.
    pub protocol: u16,
    /// The interface's name; empty for all.
    pub interface: String,
    /// What of an interface it takes in besides.
    pub memberships: Vec<Membership>,
}

/// What of an interface is taken in besides (`PACKET_ADD_MEMBERSHIP`).
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The interface's name.
    pub interface: String,
    /// `PACKET_MR_*`.
    pub kind: u16,
    /// The address of the link layer.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub address: Vec<u8>,
    /// How often it was asked for.
    pub times: u32,
}

/// What the kernel shows of all packet sockets.
#[derive(Default)]
pub(super) struct Tables {
    by_inode: OnceCell<io::Result<HashMap<u64, Shown>>>,
}

/// A socket, as it is shown.
#[derive(Default)]
struct Shown {
    rings: bool,
    fanout: bool,
    /// With the interface's number.
    memberships: Vec<(u32, Membership)>,
}

impl Tables {
    fn get(&self, inode: u64) -> std::result::Result<Option<&Shown>, No> {
        match self.by_inode.get_or_init(ask) {
            Ok(all) => Ok(all.get(&inode)),
            Err(e) => {
                let why = format!("is a packet socket, and the kernel does not show whether it has rings ({e})");
                Err(No::new(
                    why,
                    "use a kernel with CONFIG_PACKET_DIAG, or have the job close it before the checkpoint",
                ))
            }
        }
    }
}

fn ask() -> io::Result<HashMap<u64, Shown>> {
    // `struct packet_diag_req`: family, protocol, padding, inode, what to show, cookie.
    let mut question = vec![libc::AF_PACKET as u8, 0, 0, 0, 0, 0, 0, 0];
    question.extend_from_slice(&(SHOW_MEMBERSHIPS | SHOW_RINGS | SHOW_FANOUT).to_ne_bytes());
    question.extend_from_slice(&[0; 8]);
    sock_diag::show_all(&question, parse).map(|all| all.into_iter().collect())
}

fn parse(message: &[u8]) -> Option<(u64, Shown)> {
    let mut shown = Shown::default();
    for (kind, value) in attributes(message.get(HEADER..)?) {
        match kind {
            RECEIVE_RING | SEND_RING => shown.rings = true,
            FANOUT => shown.fanout = true,
            MEMBERSHIPS => shown.memberships.extend(value.chunks_exact(MEMBERSHIP).map(membership)),
            _ => {}
        }
    }
    Some((u64::from(u32_at(message, 4)), shown))
}

/// One `struct packet_diag_mclist`.
fn membership(bytes: &[u8]) -> (u32, Membership) {
    let len = usize::from(u16_at(bytes, 10)).min(MEMBERSHIP - 12);
    let address = bytes[12..12 + len].to_vec();
    (
        u32_at(bytes, 0),
        Membership { interface: String::new(), kind: u16_at(bytes, 8), address, times: u32_at(bytes, 4) },
    )
}

/// The record of a packet socket.
pub(super) fn describe(asked: &Asked<'_>, tables: &Tables) -> std::result::Result<Packet, No> {
    // `struct sockaddr_ll`: family, protocol, interface.
    let name = network::name(asked.fd).unwrap_or_default();
    let (protocol, number) = (u16_at(&name, 2), u32_at(&name, 4));
    let interface = interface_name(number);
    if number != 0 && interface.is_empty() {
        let why = format!("is a packet socket of an interface that is gone (its number was {number})");
        return Err(No::new(why, CLOSE));
    }
    let mut packet = Packet { protocol, interface, memberships: Vec::new() };
    if let Some(shown) = tables.get(asked.inode)? {
        let refused = |what: &str| Err(No::new(format!("is a packet socket ({}) {what}", packet.place()), CLOSE));
        if shown.rings {
            return refused("with a ring of packets in memory shared with the kernel (PACKET_RX_RING, PACKET_TX_RING)");
        }
        if shown.fanout {
            return refused("that shares its packets with others (PACKET_FANOUT)");
        }
        for (number, membership) in &shown.memberships {
            let interface = interface_name(*number);
            if !interface.is_empty() {
                packet.memberships.push(Membership { interface, ..membership.clone() });
            }
        }
    }
    Ok(packet)
}

impl Packet {
    /// Where it is, in words.
    pub(super) fn place(&self) -> String {
        let interface = if self.interface.is_empty() { "all interfaces" } else { &self.interface };
        format!("on {interface}, protocol {:#06x}", u16::from_be(self.protocol))
    }

    /// Whether every interface is here.
    pub(super) fn check(&self, net: &Net) -> Result<()> {
        let own = std::iter::once(&self.interface).filter(|name| !name.is_empty());
        let mut names = own.chain(self.memberships.iter().map(|m| &m.interface));
        names.try_for_each(|name| interface_number(name, &net.what()).map(drop))
    }

    /// Lets packets in.
    pub(super) fn settle(&self, net: &Net, fd: BorrowedFd<'_>) -> Result<()> {
        let what = net.what();
        for membership in &self.memberships {
            // `struct packet_mreq`: interface, kind, length, eight bytes of an address.
            let mut value = interface_number(&membership.interface, &what)?.to_ne_bytes().to_vec();
            value.extend_from_slice(&membership.kind.to_ne_bytes());
            value.extend_from_slice(&(membership.address.len() as u16).to_ne_bytes());
            value.extend_from_slice(&membership.address);
            value.resize(value.len().max(16), 0);
            for _ in 0..membership.times.max(1) {
                set_option(fd, SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &value).map_err(|e| {
                    Error::system(format!("making {what}, which takes more in (PACKET_ADD_MEMBERSHIP)"), e)
                })?;
            }
        }
        if self.protocol == 0 && self.interface.is_empty() {
            return Ok(());
        }
        let number = if self.interface.is_empty() { 0 } else { interface_number(&self.interface, &what)? };
        let mut name = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
        name.extend_from_slice(&self.protocol.to_ne_bytes());
        name.extend_from_slice(&number.to_ne_bytes());
        name.resize(20, 0);
        match network::bind(fd, &name) {
            // It is bound; the interface is down, which it tells whoever reads next, as it did before.
            Ok(()) | Err(Errno::ENETDOWN) => Ok(()),
            Err(e) => Err(net.failed(e)),
        }
    }
}
