//! Who gets a signal when something can be read or written (`F_SETOWN`), which one (`F_SETSIG`), and whether at all
//! (`O_ASYNC`). They belong to the description. A process of the job sets them, since whoever sets the owner lends it its
//! rights.

use std::os::fd::BorrowedFd;

use super::locks::LockKind;
use super::{Files, Holder, No};
use crate::remote::Call;
use crate::sys::fd;

/// The settings of one description, where they are not those of a new one.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Index of the description.
    pub description: u32,
    /// `F_OWNER_*`, and the number of the thread, process or group; 0 for nobody.
    pub owner: (i32, i32),
    /// The signal; 0 for SIGIO.
    pub signal: i32,
    /// `O_ASYNC`.
    pub asynchronous: bool,
}

/// What is set on a description, or why it cannot be set again; none when nothing is.
pub(super) fn describe(
    ours: BorrowedFd<'_>,
    description: u32,
    flags: i32,
    holders: &[Holder<'_>],
) -> Result<Option<Settings>, No> {
    const F_GETSIG: i32 = 11;
    let owner = fd::owner(ours).unwrap_or_default();
    let signal = fd::fcntl(ours, F_GETSIG, 0).unwrap_or(0);
    let asynchronous = flags & libc::O_ASYNC != 0;
    if owner.1 == 0 && signal == 0 && !asynchronous {
        return Ok(None);
    }
    let of_job = |pid: i32| holders.iter().any(|h| h.pid == pid || h.sharers.contains(&pid));
    if owner.0 == fd::OWNER_PROCESS && owner.1 != 0 && !of_job(owner.1) {
        let why = format!("sends signals to process {}, which is not of the job (F_SETOWN)", owner.1);
        return Err(No::new(why, "have the job clear that with fcntl(F_SETOWN, 0)"));
    }
    Ok(Some(Settings { description, owner, signal, asynchronous }))
}

impl Settings {
    /// The calls by which a process that has the description as `fd` sets them, and the bytes that they read at `at`.
    pub(super) fn calls(&self, files: &Files, fd: i32, flags: i32, at: u64) -> (Vec<Call>, Vec<u8>) {
        const F_SETSIG: u64 = 10;
        const F_SETOWN_EX: u64 = 15;
        let fcntl = |command: u64, argument: u64| Call::new(libc::SYS_fcntl, &[fd as u64, command, argument]);
        let (mut calls, mut bytes) = (Vec::new(), Vec::new());
        // A lease brings it along.
        let leased = files.locks.iter().any(|l| l.kind == LockKind::Lease && l.description == self.description);
        if self.asynchronous && !leased {
            calls.push(fcntl(libc::F_SETFL as u64, (flags | libc::O_ASYNC) as u64));
        }
        bytes.extend_from_slice(&self.owner.0.to_le_bytes());
        bytes.extend_from_slice(&self.owner.1.to_le_bytes());
        calls.push(fcntl(F_SETOWN_EX, at));
        calls.push(fcntl(F_SETSIG, self.signal as u64));
        (calls, bytes)
    }
}
