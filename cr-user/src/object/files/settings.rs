//! Who gets a signal when something can be read or written (`F_SETOWN`), which one (`F_SETSIG`), and whether at all
//! (`O_ASYNC`). They belong to the description.
//!
//! Signals are sent with the rights of whoever set the owner, so a process of the job sets it, as the user that did so before. An
//! owner that is a thread does not exist before the job is complete: then we set it, which does as long as that user is ours.

use std::os::fd::BorrowedFd;

use super::locks::LockKind;
use super::{Files, Holder, No};
use crate::error::{Error, Result};
use crate::procfs;
use crate::remote::Call;
use crate::sys::fd;

/// The settings of one description, where they are not those of a new one.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Index of the description.
    pub description: u32,
    /// `F_OWNER_*`, and the number of the thread, process or group; 0 for nobody.
    pub owner: (i32, i32),
    /// Real and effective user of whoever set the owner.
    pub users: (u32, u32),
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
) -> std::result::Result<Option<Settings>, No> {
    const F_GETSIG: i32 = 11;
    let owner = fd::owner(ours).unwrap_or_default();
    let signal = fd::fcntl(ours, F_GETSIG, 0).unwrap_or(0);
    let asynchronous = flags & libc::O_ASYNC != 0;
    if owner.1 == 0 && signal == 0 && !asynchronous {
        return Ok(None);
    }
    let users = fd::owner_users(ours).unwrap_or_else(|_| own_users());
    let settings = Settings { description, owner, users, signal, asynchronous };
    if owner.1 == 0 {
        return Ok(Some(settings));
    }
    let (kind, is_of_job) = match owner.0 {
        fd::OWNER_THREAD => ("thread", pids(holders).any(|pid| has_thread(pid, owner.1))),
        fd::OWNER_GROUP => ("process group", comes_back(holders, owner.1)),
        _ => ("process", pids(holders).any(|pid| pid == owner.1)),
    };
    if !is_of_job {
        let why = format!("sends signals to {kind} {}, which is not of the job (F_SETOWN)", owner.1);
        return Err(No::new(why, "have the job clear that with fcntl(F_SETOWN, 0)"));
    }
    if settings.is_late(pids(holders)) && users != own_users() {
        let why = format!("sends signals to thread {} with the rights of user {} (F_SETOWN_EX)", owner.1, users.1);
        return Err(No::new(why, "have it signal the process (F_OWNER_PID), or run cr as that user"));
    }
    Ok(Some(settings))
}

fn pids<'a>(holders: &'a [Holder<'_>]) -> impl Iterator<Item = i32> + 'a {
    holders.iter().flat_map(|h| std::iter::once(h.pid).chain(h.sharers.iter().copied()))
}

fn has_thread(pid: i32, tid: i32) -> bool {
    std::fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(false)
}

/// Whether a process group has the same number after a restore: it is led by a process of the job, or by none any more.
fn comes_back(holders: &[Holder<'_>], group: i32) -> bool {
    let of_job = |number: i32| pids(holders).any(|pid| pid == number);
    let leader_is_gone = || procfs::parent(group).is_none_or(of_job);
    of_job(group) || pids(holders).any(|pid| group_of(pid) == Some(group)) && leader_is_gone()
}

fn group_of(pid: i32) -> Option<i32> {
    procfs::stat(pid).ok()?.get(2)?.parse().ok()
}

/// Real and effective user of ours.
fn own_users() -> (u32, u32) {
    (nix::unistd::getuid().as_raw(), nix::unistd::geteuid().as_raw())
}

impl Settings {
    /// Whether the owner is a thread that is made last of all: none that leads a process.
    fn is_late(&self, mut leaders: impl Iterator<Item = i32>) -> bool {
        self.owner.0 == fd::OWNER_THREAD && self.owner.1 != 0 && leaders.all(|pid| pid != self.owner.1)
    }

    /// The calls by which a process that has the description as `fd` sets them, and the bytes that they read at `at`.
    pub(super) fn calls(&self, files: &Files, fd: i32, flags: i32, at: u64) -> (Vec<Call>, Vec<u8>) {
        const F_SETSIG: u64 = 10;
        const F_SETOWN_EX: u64 = 15;
        const KEEP: u64 = u32::MAX as u64;
        let fcntl = |command: u64, argument: u64| Call::new(libc::SYS_fcntl, &[fd as u64, command, argument]);
        let (mut calls, mut bytes) = (Vec::new(), Vec::new());
        // A lease brings it along.
        let leased = files.locks.iter().any(|l| l.kind == LockKind::Lease && l.description == self.description);
        if self.asynchronous && !leased {
            calls.push(fcntl(libc::F_SETFL as u64, (flags | libc::O_ASYNC) as u64));
        }
        let owner = if self.is_late(leaders(files)) { (fd::OWNER_THREAD, 0) } else { self.owner };
        bytes.extend_from_slice(&owner.0.to_le_bytes());
        bytes.extend_from_slice(&owner.1.to_le_bytes());
        // The saved user stays, and with it the way back.
        let become_user = |(real, effective): (u32, u32)| {
            Call::new(libc::SYS_setresuid, &[u64::from(real), u64::from(effective), KEEP])
        };
        let other = owner.1 != 0 && self.users != own_users();
        calls.extend(other.then(|| become_user(self.users)));
        calls.push(fcntl(F_SETOWN_EX, at));
        calls.extend(other.then(|| become_user(own_users())));
        calls.push(fcntl(F_SETSIG, self.signal as u64));
        (calls, bytes)
    }
}

fn leaders(files: &Files) -> impl Iterator<Item = i32> {
    files.tables.iter().flat_map(|t| t.pids.iter().copied())
}

/// Sets the owners that are threads, once the threads are there.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn settle<'a>(files: &Files, ours: impl Fn(usize) -> BorrowedFd<'a>) -> Result<()> {
    for settings in files.settings.iter().filter(|s| s.is_late(leaders(files))) {
        fd::set_owner(ours(settings.description as usize), settings.owner)
            .map_err(|e| Error::system(format!("having a descriptor signal thread {}", settings.owner.1), e))?;
    }
    Ok(())
}
