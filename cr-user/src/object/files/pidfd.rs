//! Pidfds of processes of the job, and of processes that have ended and were waited for. The former are opened when the process
//! exists again; a pidfd of nobody is one of a child of ours that has ended.

use std::os::fd::{AsFd, OwnedFd};

use super::survey::Seen;
use super::{Holder, No, set_flags};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::fd::{pidfd_of_nobody, pidfd_open_with};

/// `PID_FS_MAGIC` of `linux/magic.h`: since 6.9 pidfds have a file system of their own.
const PIDFS: i64 = 0x5049_4446;
/// `PIDFD_THREAD` of `linux/pidfd.h`.
const THREAD: i32 = libc::O_EXCL;

/// A pidfd.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Pidfd {
    /// The process; none when it has ended and was waited for.
    pub pid: Option<i32>,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// Whether the descriptor is a pidfd.
pub(super) fn is_pidfd(seen: &Seen) -> bool {
    seen.filesystem == PIDFS || seen.link.as_os_str() == "anon_inode:[pidfd]"
}

/// The record, where the process is of the job.
pub(super) fn describe(holders: &[Holder<'_>], seen: &Seen) -> std::result::Result<Pidfd, No> {
    let info = seen.info()?;
    let pid = match info.get("Pid:").and_then(|p| p.parse::<i32>().ok()) {
        Some(-1) => None,
        Some(pid) if pid > 0 => Some(pid),
        _ => {
            let why = "is a pidfd of a process in another pid namespace".to_owned();
            return Err(No::new(why, "have the job close it before the checkpoint"));
        }
    };
    if let Some(pid) = pid
        && !is_of_job(holders, pid)
    {
        let leader = procfs::thread_leader(pid).filter(|leader| *leader != pid && is_of_job(holders, *leader));
        let why = match leader {
            Some(leader) => format!("is a pidfd of a single thread, {pid} of process {leader}"),
            None => format!("is a pidfd of {}, which is not of the job", procfs::who(pid)),
        };
        return Err(No::new(why, "have the job close it before the checkpoint"));
    }
    Ok(Pidfd { pid, flags: seen.flags })
}

/// Whether a process has a table of descriptors that is looked at, or descends from one that has: a zombie has none.
fn is_of_job(holders: &[Holder<'_>], pid: i32) -> bool {
    let mut one = pid;
    while one > 1 {
        if holders.iter().any(|h| h.pid == one || h.sharers.contains(&one)) {
            return true;
        }
        one = procfs::parent(one).unwrap_or(0);
    }
    false
}

impl Pidfd {
    /// Whether it is opened when the process exists.
    pub(super) fn is_late(&self) -> bool {
        self.pid.is_some()
    }

    /// Opens one of the process, which must exist, or one of nobody.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let thread = self.flags & THREAD;
        let made = self.pid.map_or_else(|| pidfd_of_nobody(thread), |pid| pidfd_open_with(pid, thread));
        let failed = |e: nix::Error| Error::system(format!("opening a pidfd of process {}", self.pid.unwrap_or(-1)), e);
        let fd = made.map_err(failed)?;
        set_flags(fd.as_fd(), self.flags).map_err(failed)?;
        Ok(fd)
    }
}
