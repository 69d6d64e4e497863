//! Options of sockets: as bytes, those that differ from a new socket's.

use std::os::fd::BorrowedFd;

use libc::SOL_SOCKET;

use crate::error::{Error, Result};
use crate::sys::socket::{option, set_option};

/// `SO_BUF_LOCK` of `asm-generic/socket.h`: which buffer sizes were set by the program.
const SO_BUF_LOCK: i32 = 72;
/// Since 6.5: each message comes with a pidfd of its sender.
const SO_PASSPIDFD: i32 = 76;
/// Since 6.16: whether descriptors may be received.
const SO_PASSRIGHTS: i32 = 83;

/// Options that are read and set in one form.
const PLAIN: &[i32] = &[
    libc::SO_DEBUG,
    libc::SO_REUSEADDR,
    libc::SO_DONTROUTE,
    libc::SO_BROADCAST,
    libc::SO_KEEPALIVE,
    libc::SO_OOBINLINE,
    libc::SO_LINGER,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    libc::SO_PRIORITY,
    libc::SO_MARK,
    libc::SO_PEEK_OFF,
    libc::SO_PASSSEC,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
    libc::SO_PASSCRED,
    SO_BUF_LOCK,
];

/// One option.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SocketOption {
    /// `SO_*`.
    pub name: i32,
    /// Its value, as the kernel shows it.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub value: Vec<u8>,
}

/// What the options are now. Those that the kernel does not know are left out.
pub(super) fn read(fd: BorrowedFd<'_>) -> Vec<SocketOption> {
    // The sizes first: to set one also locks it, and what is locked is set last.
    [libc::SO_SNDBUF, libc::SO_RCVBUF]
        .iter()
        .chain(PLAIN)
        .filter_map(|name| Some(SocketOption { name: *name, value: option(fd, SOL_SOCKET, *name).ok()? }))
        .collect()
}

/// Sets what is not so already.
pub(super) fn set(fd: BorrowedFd<'_>, options: &[SocketOption]) -> Result<()> {
    for SocketOption { name, value } in options {
        if option(fd, SOL_SOCKET, *name).is_ok_and(|now| now == *value) {
            continue;
        }
        let set = match *name {
            libc::SO_SNDBUF => set_size(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, int(value) / 2),
            libc::SO_RCVBUF => set_size(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, int(value) / 2),
            name => set_option(fd, SOL_SOCKET, name, value),
        };
        set.map_err(|e| Error::system(format!("setting option {name} of a Unix socket of the job"), e))?;
    }
    Ok(())
}

/// Makes room for everything that is to be sent.
pub(super) fn make_room(fd: BorrowedFd<'_>) -> nix::Result<()> {
    set_size(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, 1 << 28)
}

/// The kernel doubles what it is told, and shows the double.
fn set_size(fd: BorrowedFd<'_>, force: i32, ask: i32, size: i32) -> nix::Result<()> {
    let size = size.to_ne_bytes();
    set_option(fd, SOL_SOCKET, force, &size).or_else(|_| set_option(fd, SOL_SOCKET, ask, &size))
}

/// The value of an option that is an int.
pub(super) fn int(value: &[u8]) -> i32 {
    value.get(..4).map_or(0, |b| i32::from_ne_bytes(b.try_into().expect("four bytes")))
}
