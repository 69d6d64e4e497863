//! What was sent to a socket and not yet read. It is looked at and left where it is.

use std::os::fd::{BorrowedFd, OwnedFd};

use libc::{SO_PEEK_OFF, SOL_SOCKET};
use nix::errno::Errno;

use super::super::No;
use super::options::int;
use crate::sys::fd::readable_bytes;
use crate::sys::socket::{self, Peeked, Ucred, peek};

/// Of a stream: bytes that came together. Else: one message.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its bytes.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub bytes: Vec<u8>,
    /// The descriptors in it: indices of their descriptions.
    pub rights: Vec<u32>,
    /// Pid, effective user and group of who sent it, if the socket asks for that.
    pub sender: Option<(i32, u32, u32)>,
    /// The name of the socket that it came from, empty if it had none.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub from: Vec<u8>,
}

/// The same, with descriptors of ours.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) bytes: Vec<u8>,
    pub(super) rights: Vec<OwnedFd>,
    pub(super) sender: Option<Ucred>,
    pub(super) from: Vec<u8>,
}

impl From<Peeked> for Raw {
    fn from(peeked: Peeked) -> Self {
        Self { bytes: peeked.bytes, rights: peeked.rights, sender: peeked.sender, from: peeked.from }
    }
}

/// Reads the queue of a socket of a frozen job.
pub(super) fn read(theirs: BorrowedFd<'_>, kind: i32) -> Result<Vec<Raw>, No> {
    let read = if kind == libc::SOCK_STREAM { stream(theirs) } else { messages(theirs, kind) };
    read.map_err(|e| match e {
        Failure::Kernel(e) => No::new(format!("is a Unix socket whose queue cannot be looked into ({e})"), "try again"),
        Failure::Refused(why) => No::new(format!("is a Unix socket that {why}"), "wait until the job has read it"),
    })
}

enum Failure {
    Kernel(Errno),
    Refused(&'static str),
}

impl From<Errno> for Failure {
    fn from(e: Errno) -> Self {
        Self::Kernel(e)
    }
}

/// The socket's own place for looks into the queue (`SO_PEEK_OFF`), lent to us. It is put back in any case.
struct Place<'a> {
    theirs: BorrowedFd<'a>,
    was: Vec<u8>,
}

impl<'a> Place<'a> {
    fn lend(theirs: BorrowedFd<'a>) -> nix::Result<Self> {
        Ok(Self { theirs, was: socket::option(theirs, SOL_SOCKET, SO_PEEK_OFF)? })
    }

    fn is_unset(&self) -> bool {
        int(&self.was) < 0
    }

    fn go_to(&self, at: usize) -> nix::Result<()> {
        socket::set_option(self.theirs, SOL_SOCKET, SO_PEEK_OFF, &(at as i32).to_ne_bytes())
    }

    fn before_last_piece(&self, at: usize, len: usize) -> nix::Result<usize> {
        self.go_to(at)?;
        socket::before_last_piece(self.theirs, len)
    }

    /// What is `at` bytes from the head.
    fn look(&self, at: usize, room: usize) -> Result<Peeked, Failure> {
        self.go_to(at)?;
        let peeked = peek(self.theirs, room)?;
        if peeked.cut { Err(Failure::Refused("holds descriptors which it may not receive")) } else { Ok(peeked) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let now = socket::option(self.theirs, SOL_SOCKET, SO_PEEK_OFF);
        if now.is_ok_and(|now| now != self.was) {
            // Nothing more can be done.
            let _ = socket::set_option(self.theirs, SOL_SOCKET, SO_PEEK_OFF, &self.was);
        }
    }
}

/// A stream is looked at in one go, up to the first bytes with descriptors, or of another sender. Only if there are such, its
/// place for looks is needed.
fn stream(theirs: BorrowedFd<'_>) -> Result<Vec<Raw>, Failure> {
    use nix::sys::socket::{MsgFlags, recv};
    use std::os::fd::AsRawFd;
    let urgent = MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    if recv(theirs.as_raw_fd(), &mut [0], urgent).is_ok_and(|n| n > 0) {
        return Err(Failure::Refused("holds urgent data (MSG_OOB)"));
    }
    let unread = match readable_bytes(theirs) {
        Ok(0) | Err(Errno::EINVAL) => return Ok(Vec::new()),
        other => other?,
    };
    let place = Place::lend(theirs)?;
    if place.is_unset() {
        let whole = peek(theirs, unread)?;
        if whole.len == unread && whole.rights.is_empty() && !whole.cut {
            return Ok(vec![whole.into()]);
        }
    }
    let (mut all, mut at) = (Vec::new(), 0);
    while at < unread {
        let mut piece = place.look(at, unread - at)?;
        if piece.len == 0 {
            return Err(Failure::Kernel(Errno::EIO));
        }
        let end = at + piece.len;
        if !piece.rights.is_empty() {
            // They came with the last of these bytes. A program that reads just those before must not get them too early.
            let before = place.before_last_piece(at, piece.len)?;
            if before > 0 {
                let bytes = piece.bytes.drain(..before).collect();
                all.push(Raw { bytes, rights: Vec::new(), sender: piece.sender, from: Vec::new() });
            }
        }
        all.push(piece.into());
        at = end;
    }
    Ok(all)
}

/// Messages, one by one. The place for looks counts the bytes of those before.
fn messages(theirs: BorrowedFd<'_>, kind: i32) -> Result<Vec<Raw>, Failure> {
    let place = Place::lend(theirs)?;
    let mut all: Vec<Raw> = Vec::new();
    if place.is_unset() {
        match peek(theirs, 0) {
            Err(Errno::EAGAIN | Errno::ENOTCONN | Errno::EINVAL) => return Ok(all),
            Err(e) => return Err(e.into()),
            Ok(first) if first.len == 0 => {
                if kind == libc::SOCK_SEQPACKET && readable_bytes(theirs)? == 0 {
                    // Nothing more will come; and so it is told to those who read.
                    return Ok(all);
                }
                // An empty message that was looked at once is passed over from then on, unless it is the first.
                all.push(first.into());
            }
            Ok(_) => {}
        }
    }
    let total = if kind == libc::SOCK_SEQPACKET { readable_bytes(theirs).ok() } else { None };
    let (mut at, mut room) = (0, 1 << 16);
    while total.is_none_or(|total| at < total) {
        match place.look(at, room) {
            Err(Failure::Kernel(Errno::EAGAIN | Errno::ENOTCONN | Errno::EINVAL)) => break,
            Err(e) => return Err(e),
            Ok(cut) if cut.len > cut.bytes.len() => room = cut.len,
            Ok(message) => {
                at += message.len;
                all.push(message.into());
            }
        }
    }
    Ok(all)
}
