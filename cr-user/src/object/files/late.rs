//! What is made only when the job's processes exist: files in `/proc` that belong to them, pidfds of them, their namespaces;
//! and what a process must set by itself: epoll sets and timers. Sockets come first of all, since they need processes to make
//! them, and everything else may lie in their queues or watch them.
//!
//! In the place of a descriptor that is made late, a process first gets a pidfd of cr. When all processes exist, cr opens
//! the real one, and each process fetches it from cr by way of that pidfd: so several processes can share one.

use std::os::fd::{AsRawFd, OwnedFd};

use super::batch::{Batch, Batches};
use super::epoll::{Epoll, Trigger};
use super::open::Opened;
use super::unix::{self, Crew};
use super::{Description, Files, pty, timerfd};
use crate::error::{Error, Result};
use crate::remote::Call;
use crate::sys::fd::pidfd_open;

/// Milliseconds in which a watch that is made to report surely does.
const PATIENCE: u64 = 10_000;

/// Calls for process `pid` that fill the epoll sets and set the timers for which it is responsible, with the descriptors that
/// it inherited from us; to be made before those are put into place. What the calls read lies at `at`.
pub fn early_calls(files: &Files, pid: i32, opened: &Opened, at: u64) -> Vec<Batch> {
    let mut out = Batches::new(at);
    for (index, description) in files.descriptions.iter().enumerate() {
        if let Description::Epoll(set) = description {
            fill(set, index, files, pid, opened, &mut out);
        }
    }
    for (index, description) in files.descriptions.iter().enumerate() {
        match description {
            Description::Timerfd(timer) if files.responsible(index) == pid => timer.set(opened.number(index), &mut out),
            _ => {}
        }
    }
    out.finish()
}

/// One-shot watches that have reported come first: only while they are alone is it sure that it is their report which is taken.
fn fill(set: &Epoll, index: usize, files: &Files, pid: i32, opened: &Opened, out: &mut Batches) {
    let set_fd = opened.number(index);
    let watches = || set.watches.iter().filter(|w| w.pid == pid && !files.is_late(w.description));
    for watch in watches().filter(|w| w.spent.is_some()).chain(watches().filter(|w| w.spent.is_none())) {
        let watched = opened.number(watch.description as usize);
        out.call(Call::new(libc::SYS_dup3, &[watched as u64, watch.fd as u64, 0]));
        match watch.spent {
            Some(Trigger::Expiry) => timerfd::expire(watched, out),
            Some(Trigger::Byte) => {
                let byte = out.put(&[0]);
                out.call(Call::new(libc::SYS_write, &[opened.writer(watch.description) as u64, byte, 1]));
            }
            Some(Trigger::Nothing) | None => {}
        }
        let event = out.put(&watch.event());
        out.call(add(set_fd, watch.fd, event));
        if watch.spent.is_some() {
            let report = out.put(&[0; 12]);
            out.call(Call::new(libc::SYS_epoll_pwait, &[set_fd as u64, report, 1, PATIENCE, 0, 8]));
        }
        match (watch.spent, &files.descriptions[watch.description as usize]) {
            (Some(Trigger::Expiry), Description::Timerfd(timer)) => timer.set(watched, out),
            (Some(Trigger::Byte), _) => {
                let byte = out.put(&[0]);
                out.call(Call::new(libc::SYS_read, &[watched as u64, byte, 1]));
            }
            _ => {}
        }
    }
}

fn add(set: i32, fd: i32, event: u64) -> Call {
    Call::new(libc::SYS_epoll_ctl, &[set as u64, libc::EPOLL_CTL_ADD as u64, fd as u64, event])
}

/// What takes the place of a descriptor that is opened late: a pidfd of ours.
pub(super) fn placeholder() -> Result<OwnedFd> {
    pidfd_open(std::process::id() as i32).map_err(|e| Error::system("opening a pidfd of cr itself", e))
}

/// Descriptors of ours for what is opened late. They must stay open until every process has fetched its own.
#[derive(Debug)]
pub struct Late {
    /// With the index of the description.
    fds: Vec<(usize, OwnedFd)>,
}

/// Makes the sockets of the job and settles its terminals, and gives them to its processes under the numbers that everything else was inherited with.
/// What else is opened late and lies in a message must be opened before: it is given back.
///
/// # Errors
/// When one cannot be made.
pub fn make_sockets(files: &Files, opened: &mut Opened, crew: &mut dyn Crew) -> Result<Late> {
    let mut late = Late { fds: pty::settle(files, opened, crew)? };
    let queued = unix::queued(files);
    late.open(files, |index| queued.contains(&index))?;
    unix::make(files, opened, &late, crew)?;
    Ok(late)
}

impl Late {
    /// Opens the rest of what is opened late. All processes of the job must exist, each with its address space.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open_rest(&mut self, files: &Files) -> Result<()> {
        self.open(files, |_| true)
    }

    fn open(&mut self, files: &Files, wanted: impl Fn(usize) -> bool) -> Result<()> {
        for (index, description) in files.descriptions.iter().enumerate() {
            if !wanted(index) || self.number(index).is_some() {
                continue;
            }
            match description {
                Description::Pidfd(r) if r.is_late() => self.fds.push((index, r.open()?)),
                Description::Proc(r) if r.is_late() => self.fds.push((index, r.open()?)),
                Description::Namespace(r) => self.fds.push((index, r.open()?)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The number of ours for a description that is opened late, and is open already.
    pub(super) fn number(&self, description: usize) -> Option<i32> {
        self.fds.iter().find(|(index, _)| *index == description).map(|(_, fd)| fd.as_raw_fd())
    }

    /// Calls for process `pid` that put what is opened late into its table, which is otherwise as recorded, and into its epoll
    /// sets. What they read lies at `at`.
    pub fn calls(&self, files: &Files, pid: i32, at: u64) -> Vec<Batch> {
        let mut out = Batches::new(at);
        let Some(table) = files.table_of(pid) else { return Vec::new() };
        for row in &table.rows {
            let Some((_, ours)) = self.fds.iter().find(|(index, _)| *index == row.description as usize) else {
                continue;
            };
            let flags = if row.cloexec { libc::O_CLOEXEC } else { 0 };
            let got = out.call(Call::new(libc::SYS_pidfd_getfd, &[row.fd as u64, ours.as_raw_fd() as u64, 0]));
            out.call(Call::new(libc::SYS_dup3, &[0, row.fd as u64, flags as u64]).first_from(got));
            out.call(Call::new(libc::SYS_close, &[]).first_from(got));
        }
        for (index, description) in files.descriptions.iter().enumerate() {
            let Description::Epoll(set) = description else { continue };
            let Some(row) = table.rows.iter().find(|r| r.description as usize == index) else { continue };
            for watch in set.watches.iter().filter(|w| w.pid == pid && files.is_late(w.description)) {
                let event = out.put(&watch.event());
                out.call(add(row.fd, watch.fd, event));
            }
        }
        out.finish()
    }
}
