//! Event counters (`eventfd`).

use std::os::fd::{AsFd, OwnedFd};

use super::survey::Seen;
use crate::error::{Error, Result};
use crate::sys::anon;

/// An event counter.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Eventfd {
    /// What it has counted.
    pub count: u64,
    /// Each read takes one (`EFD_SEMAPHORE`) rather than all.
    pub semaphore: bool,
    /// Status flags (`O_*`).
    pub flags: i32,
}

/// The record, from what `fdinfo` says.
pub(super) fn describe(seen: &Seen, info: &str) -> Eventfd {
    let value = |key: &str| info.lines().find_map(|l| l.strip_prefix(key)).map_or("", str::trim);
    Eventfd {
        count: u64::from_str_radix(value("eventfd-count:"), 16).unwrap_or(0),
        semaphore: value("eventfd-semaphore:") == "1",
        flags: seen.flags,
    }
}

impl Eventfd {
    /// A new one with the same count.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let failed = |e| Error::system("making an event counter", e);
        let flags = libc::EFD_CLOEXEC
            | if self.semaphore { libc::EFD_SEMAPHORE } else { 0 }
            | if self.flags & libc::O_NONBLOCK != 0 { libc::EFD_NONBLOCK } else { 0 };
        // The call takes 32 bits; the rest is written.
        let first = self.count.min(u32::MAX.into()) as u32;
        let fd = anon::eventfd(first, flags).map_err(failed)?;
        if self.count > u64::from(first) {
            nix::unistd::write(fd.as_fd(), &(self.count - u64::from(first)).to_ne_bytes()).map_err(failed)?;
        }
        Ok(fd)
    }
}
