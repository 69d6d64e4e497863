//! Event counters (`eventfd(2)`): a count, and whether a read takes all of it or one.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use super::survey::Seen;
use super::{No, set_flags};
use crate::error::{Error, Result};
use crate::sys::events;

/// An event counter.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Eventfd {
    /// Its count.
    pub count: u64,
    /// Whether a read takes one off it (`EFD_SEMAPHORE`) rather than all.
    pub semaphore: bool,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// The record, from the descriptor's `fdinfo`: the count stays.
pub(super) fn describe(seen: &Seen) -> std::result::Result<Eventfd, No> {
    let info = seen.info()?;
    let count = info.get("eventfd-count:").and_then(|n| u64::from_str_radix(n, 16).ok());
    let semaphore = info.get("eventfd-semaphore:").map(|n| n != "0");
    let (Some(count), Some(semaphore)) = (count, semaphore) else {
        let why = "is an eventfd, and this kernel does not say whether it is a semaphore".to_owned();
        return Err(No::new(why, "use Linux 6.5 or later, or have the job close it"));
    };
    if count == u64::MAX {
        let why = "is an eventfd that the kernel has counted beyond its limit".to_owned();
        return Err(No::new(why, "wait until the job has read it"));
    }
    Ok(Eventfd { count, semaphore, flags: seen.flags })
}

impl Eventfd {
    /// Makes it, with its count.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let failed = |e: std::io::Error| Error::system("making an eventfd of the job", e);
        let semaphore = if self.semaphore { libc::EFD_SEMAPHORE } else { 0 };
        let mut counter = File::from(events::eventfd(0, semaphore | libc::EFD_CLOEXEC).map_err(|e| failed(e.into()))?);
        if self.count > 0 {
            counter.write_all(&self.count.to_ne_bytes()).map_err(failed)?;
        }
        set_flags(counter.as_fd(), self.flags).map_err(|e| failed(e.into()))?;
        Ok(counter.into())
    }
}
