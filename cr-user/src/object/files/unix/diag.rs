//! What the kernel shows of Unix sockets to those who ask (`sock_diag(7)`, `linux/unix_diag.h`): of all that there are in our
//! network namespace, in one answer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use super::super::sock_diag::{self, u16_at, u32_at};
use crate::sys::socket::trim_name;

/// `TCP_LISTEN` of `net/tcp_states.h`, which these sockets use too.
const LISTEN: u8 = 10;

/// A socket, as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// `SOCK_*`.
    pub(super) kind: i32,
    /// Whether it listens.
    pub(super) listening: bool,
    /// Its inode; 0 for a connection that was not accepted yet.
    pub(super) inode: u64,
    /// Its name, empty if it has none.
    pub(super) name: Vec<u8>,
    /// Device and inode (its lower half) of the file that is its name.
    pub(super) file: Option<(u32, u32)>,
    /// The inode of the other end: 0 if that was closed or has none yet, none if there never was one.
    pub(super) peer: Option<u64>,
    /// The clients that wait to be accepted, in their order; 0 for those that were closed meanwhile.
    pub(super) waiting: Vec<u64>,
    /// Unread bytes; of a listener: clients that wait.
    pub(super) unread: u32,
    /// Of a listener: how many clients may wait.
    pub(super) backlog: u32,
    /// `RCV_SHUTDOWN` (1) and `SEND_SHUTDOWN` (2) of `net/sock.h`.
    pub(super) shutdown: u8,
}

/// All Unix sockets of our network namespace.
#[derive(Debug, Default)]
pub(super) struct All {
    /// By inode.
    pub(super) sockets: HashMap<u64, Shown>,
    /// Ends of connections that were not accepted yet.
    pub(super) unaccepted: Vec<Shown>,
}

impl All {
    /// Asks the kernel.
    pub(super) fn ask() -> io::Result<Self> {
        // Name, file, peer, clients that wait, lengths of queues.
        const SHOW: u32 = 0x1f;
        // `struct unix_diag_req`: of any state, inode and cookie.
        let mut question = vec![libc::AF_UNIX as u8, 0, 0, 0];
        question.extend_from_slice(&u32::MAX.to_ne_bytes());
        question.extend_from_slice(&0u32.to_ne_bytes());
        question.extend_from_slice(&SHOW.to_ne_bytes());
        question.extend_from_slice(&[0xff; 8]);
        let shown = sock_diag::show_all(&question, parse)?;
        let (unaccepted, others): (Vec<_>, Vec<_>) = shown.into_iter().partition(|s| s.inode == 0);
        Ok(Self { sockets: others.into_iter().map(|s| (s.inode, s)).collect(), unaccepted })
    }

    /// Whether some socket has the file as its name.
    pub(super) fn has_file(&self, dev: u64, ino: u64) -> bool {
        let file = Some(short_file(dev, ino));
        self.sockets.values().any(|s| s.file == file)
    }

    /// Whom a socket of that kind reaches that connects to a name: a path, or an abstract name.
    pub(super) fn open_to(&self, kind: i32, name: &[u8]) -> Option<&Shown> {
        let is_open = |s: &&Shown| s.kind == kind && (s.listening || kind == libc::SOCK_DGRAM);
        let mut open = self.sockets.values().filter(is_open);
        match name {
            [] => None,
            [0, ..] => open.find(|s| s.name == name),
            path => {
                let meta = fs::metadata(OsStr::from_bytes(path)).ok()?;
                let file = Some(short_file(meta.dev(), meta.ino()));
                open.find(|s| s.file == file)
            }
        }
    }

    /// The socket that has an abstract name.
    pub(super) fn named(&self, name: &[u8]) -> Option<&Shown> {
        self.sockets.values().find(|s| s.name == name)
    }
}

/// Device and inode as [`Shown::file`] has them: the kernel's own number of the device, and half of the inode.
pub(super) fn short_file(dev: u64, ino: u64) -> (u32, u32) {
    (libc::major(dev) << 20 | libc::minor(dev), ino as u32)
}

/// One `struct unix_diag_msg` and its attributes.
fn parse(message: &[u8]) -> Option<Shown> {
    let mut rest = message.get(16..)?;
    let listening = message[2] == LISTEN;
    let mut shown = Shown { kind: message[1].into(), listening, inode: u32_at(message, 4).into(), ..Shown::default() };
    while rest.len() >= 4 {
        let (len, kind) = (u16_at(rest, 0) as usize, u16_at(rest, 2));
        let Some(value) = rest.get(4..len) else { break };
        match (kind, value.len()) {
            (0, _) => shown.name = trim_name(value).to_vec(),
            (1, 8..) => shown.file = Some((u32_at(value, 4), u32_at(value, 0))),
            (2, 4..) => shown.peer = Some(u32_at(value, 0).into()),
            (3, _) => shown.waiting = value.chunks_exact(4).map(|c| u32_at(c, 0).into()).collect(),
            (4, 8..) => (shown.unread, shown.backlog) = (u32_at(value, 0), u32_at(value, 4)),
            (6, 1..) => shown.shutdown = value[0],
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(shown)
}
