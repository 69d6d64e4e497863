//! What can only be done once all processes are there and have their tables: by a process itself, under its own numbers.

use super::locks::Lock;
use super::open::Opened;
use super::unix::{self, Crew};
use super::{Description, Files};
use crate::error::{Error, Result};
use crate::remote::Call;

/// Calls of a process.
#[derive(Debug)]
pub struct Batch {
    /// The calls.
    pub calls: Vec<Call>,
    /// The bytes that they read at the address that was given.
    pub bytes: Vec<u8>,
    /// The lock that they take.
    lock: Option<Lock>,
}

impl Batch {
    fn new((calls, bytes): (Vec<Call>, Vec<u8>)) -> Self {
        Self { calls, bytes, lock: None }
    }

    /// Whether all calls that were made succeeded.
    ///
    /// # Errors
    /// Why the first that did not has failed.
    pub fn judge(&self, files: &Files) -> Result<()> {
        let failed = self.calls.iter().find_map(|c| c.outcome().err().map(|e| (c, e)));
        match (failed, self.lock) {
            (None, _) => Ok(()),
            (Some((_, e)), Some(lock)) => Err(lock.failed(files, e)),
            (Some((call, e)), None) => {
                let what = format!("setting up its descriptors (system call {} with {:x?})", call.number, call.args);
                Err(Error::system(what, e))
            }
        }
    }
}

/// Opens what could not be opened before there were the processes, with their help where the kernel notes who did it.
///
/// # Errors
/// When one cannot be opened.
pub fn open_late(files: &Files, opened: &mut Opened, crew: &mut dyn Crew) -> Result<()> {
    for (description, fd) in files.descriptions.iter().zip(&mut opened.fds) {
        if let Description::Pidfd(pidfd) = description {
            *fd = pidfd.open()?;
        }
    }
    unix::make(files, opened, crew)
}

/// What process `pid` does for its descriptors, batch by batch, the bytes of each at `at`.
pub fn late_calls(files: &Files, opened: &Opened, pid: i32, at: u64) -> Vec<Batch> {
    let Some(table) = files.table_of(pid).filter(|t| t.pids[0] == pid) else { return Vec::new() };
    let number_of = |wanted: usize| table.rows.iter().find(|d| d.description as usize == wanted).map(|d| d.fd);
    let own_lock = |l: &&Lock| table.pids.contains(&l.holder.0);
    let has = |number: i32| table.rows.iter().find(|d| d.fd == number).map(|d| d.description);
    let cloexec = |number: i32| table.rows.iter().any(|d| d.fd == number && d.cloexec);
    let ours = |description: u32| opened.number(description as usize);
    let locks = files.locks.iter().filter(own_lock).filter_map(|l| Some((*l, l.own_call(at)?)));
    let mut batches: Vec<Batch> =
        locks.map(|(lock, (call, bytes))| Batch { calls: vec![call], bytes, lock: Some(lock) }).collect();
    for row in table.rows.iter().filter(|d| files.descriptions[d.description as usize].is_late()) {
        let (mut calls, mut pulled) = (Vec::new(), 0);
        let flags = if row.cloexec { libc::O_CLOEXEC } else { 0 };
        pull(ours(row.description), &mut calls, &mut pulled);
        calls.push(Call::new(libc::SYS_dup3, &[0, row.fd as u64, flags as u64]).first_from(pulled));
        drop_pulled(&mut calls, pulled);
        batches.push(Batch::new((calls, Vec::new())));
    }
    for (index, description) in files.descriptions.iter().enumerate() {
        // Once for each description: by the first process that has it.
        if files.holders(index).first().is_none_or(|(first, _)| *first != pid) {
            continue;
        }
        let Some(fd) = number_of(index) else { continue };
        match description {
            Description::Timerfd(timer) => batches.push(Batch::new(timer.set_calls(fd, at))),
            Description::Epoll(epoll) => {
                batches.extend(epoll.add_calls(fd, has, cloexec, ours, at).into_iter().map(Batch::new));
            }
            _ => {}
        }
    }
    for settings in &files.settings {
        let first = files.holders(settings.description as usize).first().copied();
        let Some((_, fd)) = first.filter(|(first, _)| *first == pid) else { continue };
        let flags = files.descriptions[settings.description as usize].status_flags();
        batches.push(Batch::new(settings.calls(files, fd, flags, at)));
    }
    batches
}

/// Adds calls that fetch our descriptor `ours`; the result of call `pulled` is then what was fetched. The kernel chooses the
/// lowest free number: one that is wanted for something must not be free.
pub(super) fn pull(ours: i32, calls: &mut Vec<Call>, pulled: &mut usize) {
    let from = calls.len();
    calls.push(Call::new(libc::SYS_pidfd_open, &[u64::from(std::process::id()), 0]));
    calls.push(Call::new(libc::SYS_pidfd_getfd, &[0, ours as u64, 0]).first_from(from));
    *pulled = from + 1;
}

/// Adds calls that close what [`pull`] needed and fetched.
pub(super) fn drop_pulled(calls: &mut Vec<Call>, pulled: usize) {
    calls.push(Call::new(libc::SYS_close, &[0]).first_from(pulled));
    calls.push(Call::new(libc::SYS_close, &[0]).first_from(pulled - 1));
}
