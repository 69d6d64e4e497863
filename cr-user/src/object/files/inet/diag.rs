//! What the kernel shows of all TCP sockets of our network namespace (`sock_diag(7)`, `linux/inet_diag.h`): also those that no
//! process has, since they were not accepted yet or are being closed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};

use super::{End, phase};
use crate::sys::socket::socket;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Since 4.5, if the kernel is built so.
const SOCK_DESTROY: u16 = 21;
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
    let netlink = open()?;
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        body.extend_from_slice(&u32::MAX.to_ne_bytes());
        body.extend_from_slice(&[0; ID]);
        request(&netlink, SOCK_DIAG_BY_FAMILY, 0x301, &body)?;
        answers(&netlink, &mut |message| all.extend(parse(message)))?;
    }
    Ok(all)
}

/// Takes away a socket that no process has: what is left of a closed connection.
pub(super) fn destroy(shown: &Shown) -> io::Result<()> {
    let netlink = open()?;
    let mut body = vec![shown.family, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&(1u32 << shown.state).to_ne_bytes());
    body.extend_from_slice(&shown.id);
    request(&netlink, SOCK_DESTROY, 0x5, &body)?;
    answers(&netlink, &mut |_| ())
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)?)
}

fn request(netlink: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    send(netlink.as_raw_fd(), &bytes, MsgFlags::empty())?;
    Ok(())
}

fn answers(netlink: &OwnedFd, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    const DONE: u16 = 3;
    const ERROR: u16 = 2;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..n];
        while rest.len() >= 16 {
            let (len, kind) = (u32_at(rest, 0) as usize, u16::from_ne_bytes([rest[4], rest[5]]));
            if len < 16 || len > rest.len() {
                return Err(io::Error::other("the answer about sockets is cut short"));
            }
            match kind {
                DONE => return Ok(()),
                ERROR => match -(u32_at(rest, 16) as i32) {
                    0 => return Ok(()),
                    error => return Err(io::Error::from_raw_os_error(error)),
                },
                _ => take(&rest[16..len]),
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
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

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
}
