//! Descriptors of processes (`pidfd`): of the job's own. They are opened once all processes are there.

use std::os::fd::OwnedFd;

use super::survey::Seen;
use super::{Holder, No};
use crate::error::{Error, Result};
use crate::sys::fd;

/// A descriptor of a process.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Pidfd {
    /// The process.
    pub pid: i32,
    /// Status flags (`O_*`).
    pub flags: i32,
}

/// The record, from what `fdinfo` says, unless the process is not of the job.
pub(super) fn describe(seen: &Seen, info: &str, holders: &[Holder<'_>]) -> std::result::Result<Pidfd, No> {
    let pid = info.lines().find_map(|l| l.strip_prefix("Pid:")).and_then(|v| v.trim().parse().ok()).unwrap_or(-1);
    let of_job = holders.iter().any(|h| h.pid == pid || h.sharers.contains(&pid));
    if !of_job {
        let what =
            if pid > 0 { format!("process {pid}, which is not of the job") } else { "a process that has ended".into() };
        return Err(No::new(format!("is a pidfd of {what}"), "have the job close it before the checkpoint"));
    }
    Ok(Pidfd { pid, flags: seen.flags })
}

impl Pidfd {
    /// Opens it again, now that there is the process.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let failed = |e| Error::system(format!("opening a pidfd of {}", self.pid), e);
        let fd = fd::pidfd_open(self.pid).map_err(failed)?;
        if self.flags & libc::O_NONBLOCK != 0 {
            use std::os::fd::AsFd;
            fd::fcntl(fd.as_fd(), libc::F_SETFL, libc::O_NONBLOCK.into()).map_err(failed)?;
        }
        Ok(fd)
    }
}
