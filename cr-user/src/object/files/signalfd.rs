//! Signals as a file (`signalfd`): only the set of signals is its own. What waits to be read is queued at the process.

use std::os::fd::OwnedFd;

use super::survey::Seen;
use crate::error::{Error, Result};
use crate::sys::anon;

/// A descriptor that gives signals.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Signalfd {
    /// The signals, bit `n - 1` for signal `n`.
    pub mask: u64,
    /// Status flags (`O_*`).
    pub flags: i32,
}

/// The record, from what `fdinfo` says.
pub(super) fn describe(seen: &Seen, info: &str) -> Signalfd {
    let mask = info.lines().find_map(|l| l.strip_prefix("sigmask:")).map_or("", str::trim);
    Signalfd { mask: u64::from_str_radix(mask, 16).unwrap_or(0), flags: seen.flags }
}

impl Signalfd {
    /// A new one for the same signals.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let flags = libc::SFD_CLOEXEC | if self.flags & libc::O_NONBLOCK != 0 { libc::SFD_NONBLOCK } else { 0 };
        anon::signalfd(self.mask, flags).map_err(|e| Error::system("making a descriptor for signals", e))
    }
}
