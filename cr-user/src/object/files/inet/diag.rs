//! What the kernel shows of all TCP sockets of our network namespace (`sock_diag(7)`, `linux/inet_diag.h`): also those that no
//! process has, since they were not accepted yet or are being closed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::sock_diag::{self, u32_at};
use super::{End, phase};

/// Bytes of `struct inet_diag_sockid`.
const ID: usize = 48;

/// A socket, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    family: u8,
    /// Its state (`net/tcp_states.h`).
    pub(super) state: u8,
    /// Its own end.
    pub(super) local: End,
    /// The other.
    pub(super) remote: End,
    /// Its inode; 0 if no process has it.
    pub(super) inode: u64,
    /// Unread bytes.
    pub(super) unread: u32,
    /// The kernel's own name of it.
    id: [u8; ID],
}

impl Shown {
    pub(super) fn is_of(&self, family: i32) -> bool {
        i32::from(self.family) == family
    }
}

/// Asks the kernel.
pub(super) fn ask() -> io::Result<Vec<Shown>> {
    let of = |family: i32| sock_diag::show_all(&question(family as u8, u32::MAX, &[0; ID]), parse);
    let mut all = of(libc::AF_INET)?;
    all.extend(of(libc::AF_INET6)?);
    Ok(all)
}

/// Takes away a socket that no process has: what is left of a closed connection.
pub(super) fn destroy(shown: &Shown) -> io::Result<()> {
    sock_diag::destroy(&question(shown.family, 1 << shown.state, &shown.id))
}

/// `struct inet_diag_req_v2`: `states` is a mask.
fn question(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(id);
    body
}

/// One `struct inet_diag_msg`: family, state, timer, retransmits, the id, then expiry, queues, user, inode.
fn parse(message: &[u8]) -> Option<Shown> {
    if message.len() < 72 {
        return None;
    }
    let id: [u8; ID] = message[4..4 + ID].try_into().expect("so many bytes");
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let ip = |at: usize| match i32::from(message[0]) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&id[at..at + 4]).expect("four bytes"))),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&id[at..at + 16]).expect("sixteen bytes"))),
    };
    let (local, remote) = ((ip(4).to_canonical(), port(0)), (ip(20).to_canonical(), port(2)));
    let inode = u64::from(u32_at(message, 68));
    // What listens shows who waits in place of bytes.
    let unread = if message[1] == phase::LISTEN { 0 } else { u32_at(message, 56) };
    Some(Shown { family: message[0], state: message[1], local, remote, inode, unread, id })
}
