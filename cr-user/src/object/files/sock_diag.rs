//! Questions to `sock_diag(7)`, where the kernel shows the sockets of our network namespace: also those that no process has.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};

use crate::sys::socket::socket;

/// `linux/sock_diag.h`: show, and (since 4.5, if the kernel is built so) take away.
const SHOW: u16 = 20;
const DESTROY: u16 = 21;

/// `linux/netlink.h`.
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const ALL: u16 = 0x300;
const INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// All sockets that the kernel shows when it is asked so, as far as `parse` knows them.
///
/// # Errors
/// What the kernel says.
pub(super) fn show_all<T>(question: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    dump(libc::NETLINK_SOCK_DIAG, SHOW, question, parse)
}

/// All that another part of the kernel shows by netlink when it is asked so.
///
/// # Errors
/// What the kernel says.
pub(super) fn dump<T>(
    protocol: i32,
    kind: u16,
    question: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    /// An answer that others changed while it was given may have holes.
    const TRIES: usize = 10;
    let mut all = Vec::new();
    for _ in 0..TRIES {
        let netlink = ask(protocol, kind, REQUEST | ALL, question)?;
        all.clear();
        let interrupted = answers(&netlink, &mut |message| all.extend(parse(message)))?;
        if !interrupted {
            break;
        }
    }
    Ok(all)
}

/// Takes a socket away.
///
/// # Errors
/// What the kernel says.
pub(super) fn destroy(which: &[u8]) -> io::Result<()> {
    answers(&ask(libc::NETLINK_SOCK_DIAG, DESTROY, REQUEST | ACKNOWLEDGE, which)?, &mut |_| ()).map(drop)
}

fn ask(protocol: i32, kind: u16, flags: u16, body: &[u8]) -> io::Result<OwnedFd> {
    let netlink = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
    let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    send(netlink.as_raw_fd(), &bytes, MsgFlags::empty())?;
    Ok(netlink)
}

/// Takes every message apart until the last one, and says whether the answer was interrupted.
fn answers(netlink: &OwnedFd, take: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    let mut interrupted = false;
    loop {
        let n = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..n];
        while rest.len() >= HEADER {
            let (len, kind, flags) = (u32_at(rest, 0) as usize, u16_at(rest, 4), u16_at(rest, 6));
            if len < HEADER || len > rest.len() {
                return Err(io::Error::other("the answer about sockets is cut short"));
            }
            interrupted |= flags & INTERRUPTED != 0;
            match kind {
                DONE => return Ok(interrupted),
                ERROR => match -(u32_at(rest, HEADER) as i32) {
                    0 => return Ok(interrupted),
                    error => return Err(io::Error::from_raw_os_error(error)),
                },
                _ => take(&rest[HEADER..len]),
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The attributes of a message (`struct nlattr`): kind and value of each.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Two bits of the kind say how the value is written.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(u16_at(bytes, 0)), u16_at(bytes, 2) & KIND);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The 32-bit word there; 0 behind the end.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
}

/// The 16-bit word there; 0 behind the end.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_ne_bytes(b.try_into().expect("two bytes")))
}
