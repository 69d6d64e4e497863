//! Socket filters (`SO_ATTACH_FILTER`): the kernel keeps the instructions of a classic BPF program, and shows them. Those of an
//! eBPF program (`SO_ATTACH_BPF`) it shows to nobody by way of the socket.

use std::os::fd::BorrowedFd;

use libc::SOL_SOCKET;
use nix::errno::Errno;

use super::super::No;
use super::super::inet::options;
use crate::error::{Error, Result};
use crate::sys::network;

/// What is let in.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Its instructions (`struct sock_filter`), one after the other; none: everything is let in.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub instructions: Vec<u8>,
    /// Nobody may change it (`SO_LOCK_FILTER`).
    pub locked: bool,
}

/// The filter of a socket, whatever its family; none if it has none, and may get one.
///
/// # Errors
/// Why it cannot be read.
pub(in super::super) fn read(fd: BorrowedFd<'_>) -> std::result::Result<Option<Filter>, No> {
    let locked = options::int(fd, SOL_SOCKET, libc::SO_LOCK_FILTER) != 0;
    match network::filter(fd) {
        Ok(instructions) if instructions.is_empty() && !locked => Ok(None),
        Ok(instructions) => Ok(Some(Filter { instructions, locked })),
        Err(Errno::EACCES) => {
            let why = "is a socket with an eBPF program as its filter (SO_ATTACH_BPF), which the kernel does not show";
            Err(No::new(why.to_owned(), "have the job detach it (SO_DETACH_FILTER) before the checkpoint"))
        }
        Err(e) => {
            let why = format!("is a socket whose filter cannot be read ({e})");
            Err(No::new(why, "have the job detach it (SO_DETACH_FILTER) before the checkpoint"))
        }
    }
}

impl Filter {
    /// Attaches it. Locking it is another matter ([`lock`](Self::lock)): a socket whose filter is locked takes no other.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn attach(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if self.instructions.is_empty() {
            return Ok(());
        }
        network::attach_filter(fd, &self.instructions)
            .map_err(|e| Error::system("attaching the filter of a socket of the job (SO_ATTACH_FILTER)", e))
    }

    /// Locks it, if it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lock(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if !self.locked {
            return Ok(());
        }
        options::set_int(fd, SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
            .map_err(|e| Error::system("locking the filter of a socket of the job (SO_LOCK_FILTER)", e))
    }
}
