//! Descriptors that signals are read from (`signalfd(2)`): a set of signals. The signals themselves are pending in the process
//! that reads, and are restored with it.

use std::os::fd::{AsFd, OwnedFd};

use super::survey::Seen;
use super::{No, set_flags};
use crate::error::{Error, Result};
use crate::sys::events;

/// A descriptor that signals are read from.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Signalfd {
    /// The signals, signal 1 as the lowest bit.
    pub mask: u64,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// The record.
pub(super) fn describe(seen: &Seen) -> std::result::Result<Signalfd, No> {
    let info = seen.info()?;
    let mask = info.get("sigmask:").and_then(|m| u64::from_str_radix(m, 16).ok());
    let mask =
        mask.ok_or_else(|| No::new("is a signalfd whose signals the kernel does not tell".to_owned(), "try again"))?;
    Ok(Signalfd { mask, flags: seen.flags })
}

impl Signalfd {
    /// Makes it.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let failed = |e: nix::Error| Error::system("making a signalfd of the job", e);
        let fd = events::signalfd(self.mask, libc::SFD_CLOEXEC).map_err(failed)?;
        set_flags(fd.as_fd(), self.flags).map_err(failed)?;
        Ok(fd)
    }
}
