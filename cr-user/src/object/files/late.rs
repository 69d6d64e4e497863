//! What can only be done once all processes are there and have their tables: by a process itself, under its own numbers.

use super::open::Opened;
use super::{Description, Files};
use crate::error::Result;
use crate::remote::Call;

/// Calls of a process, and the bytes that they read at the address that was given.
pub type Batch = (Vec<Call>, Vec<u8>);

/// Opens what could not be opened before there were the processes.
///
/// # Errors
/// When one cannot be opened.
pub fn open_late(files: &Files, opened: &mut Opened) -> Result<()> {
    for (description, fd) in files.descriptions.iter().zip(&mut opened.fds) {
        if let Description::Pidfd(pidfd) = description {
            *fd = pidfd.open()?;
        }
    }
    Ok(())
}

/// What process `pid` does for its descriptors, batch by batch, the bytes of each at `at`.
pub fn late_calls(files: &Files, opened: &Opened, pid: i32, at: u64) -> Vec<Batch> {
    let Some(table) = files.table_of(pid).filter(|t| t.pids[0] == pid) else { return Vec::new() };
    let number_of = |wanted: usize| table.rows.iter().find(|d| d.description as usize == wanted).map(|d| d.fd);
    let has = |number: i32| table.rows.iter().find(|d| d.fd == number).map(|d| d.description);
    let cloexec = |number: i32| table.rows.iter().any(|d| d.fd == number && d.cloexec);
    let ours = |description: u32| opened.number(description as usize);
    let mut batches = Vec::new();
    for row in table.rows.iter().filter(|d| files.descriptions[d.description as usize].is_late()) {
        let (mut calls, mut pulled) = (Vec::new(), 0);
        let flags = if row.cloexec { libc::O_CLOEXEC } else { 0 };
        pull(ours(row.description), &mut calls, &mut pulled);
        calls.push(Call::new(libc::SYS_dup3, &[0, row.fd as u64, flags as u64]).first_from(pulled));
        drop_pulled(&mut calls, pulled);
        batches.push((calls, Vec::new()));
    }
    for (index, description) in files.descriptions.iter().enumerate() {
        // Once for each description: by the first process that has it.
        if files.holders(index).first().is_none_or(|(first, _)| *first != pid) {
            continue;
        }
        let Some(fd) = number_of(index) else { continue };
        match description {
            Description::Timerfd(timer) => batches.push(timer.set_calls(fd, at)),
            Description::Epoll(epoll) => batches.extend(epoll.add_calls(fd, has, cloexec, ours, at)),
            _ => {}
        }
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
