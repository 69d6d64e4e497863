//! System V objects: what of the job decides which of them are its own.

use std::sync::Arc;

use crate::checkpoint::Job;
use crate::checkpoint::watch::Watch;
use crate::error::{Error, Result};
use crate::object::ipc::sem::{self, Undone};
use crate::object::ipc::{Kind, Past, Users};
use crate::procfs::{self, Vma};
use crate::remote::Frozen;
use crate::sys::ptrace;
use crate::track::undo::UndoList;

/// Whether there is any set of semaphores, of whomever.
pub fn has_semaphores() -> bool {
    Kind::Semaphores.rows().is_ok_and(|rows| !rows.is_empty())
}

/// The running job, at a glance.
pub fn look<'a>(job: &'a Job, zombies: &[i32]) -> Users<'a> {
    let pids = job.members.iter().map(|m| m.pid).chain(zombies.iter().copied());
    let mut users = Users::new(job.pid(), pids.collect(), &job.ipc);
    for member in job.members.iter().filter(|m| m.has_own_memory()) {
        users.add_mappings(&procfs::maps(member.pid).unwrap_or_default());
    }
    for member in &job.members {
        for tid in procfs::threads(member.pid).unwrap_or_default() {
            // The number of the call in decimal, then its arguments in hexadecimal.
            let text = procfs::text(&format!("/proc/{}/task/{tid}/syscall", member.pid)).unwrap_or_default();
            let mut words = text.split_whitespace();
            let number = words.next().and_then(|w| w.parse().ok());
            let first = words.next().and_then(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok());
            if let (Some(number), Some(first)) = (number, first) {
                users.add_call(number, first);
            }
        }
    }
    users
}

/// The job as it stands still, each address space with its mappings.
///
/// # Errors
/// [`Error::Refused`] when nobody can tell what is undone in its semaphores.
pub fn of_frozen<'a>(
    root: i32,
    frozen: &Frozen,
    vmas: &[(i32, Arc<Vec<Vma>>)],
    past: &'a Past,
    watch: &mut Option<Watch>,
) -> Result<Users<'a>> {
    let zombies = frozen.zombies().iter().map(|z| z.pid);
    let pids: Vec<i32> = frozen.processes().iter().map(|p| p.pid).chain(zombies).collect();
    let mut users = Users { frozen: true, ..Users::new(root, pids, past) };
    for (_, vmas) in vmas {
        users.add_mappings(vmas);
    }
    for tid in frozen.processes().iter().flat_map(crate::remote::freeze::Stopped::tids) {
        if let Ok(regs) = ptrace::regs(tid) {
            // A call that is to start again is not in the kernel any more.
            let number = if regs.orig_rax == u64::MAX { regs.rax } else { regs.orig_rax };
            users.add_call(number as i64, regs.rdi);
        }
    }
    if has_semaphores() {
        users.undo = undone(frozen, &users, watch)?;
    }
    Ok(users)
}

/// What is undone when processes of the job end.
fn undone(frozen: &Frozen, users: &Users<'_>, watch: &mut Option<Watch>) -> Result<Vec<Undone>> {
    let not_seen = |why: String| {
        // Sets of others are no concern, should that be all.
        let own = sem::first_of(users)?;
        own.map_or(Ok(Vec::new()), |id| Err(Error::Refused(vec![sem::not_seen(users.root, id, &why)])))
    };
    let watch = match watch {
        Some(watch) => watch,
        None => match Watch::look_only() {
            Ok(new) => watch.insert(new),
            Err(e) => return not_seen(e.to_string()),
        },
    };
    let sizes = sem::sizes()?;
    let mut lists: Vec<(i32, UndoList)> = Vec::new();
    for process in frozen.processes() {
        match watch.hints.semaphore_undo(process.pid, &sizes) {
            Ok(found) => lists.extend(found.into_iter().map(|list| (process.pid, list))),
            Err(e) => return not_seen(e.to_string()),
        }
    }
    let mut undone = Vec::new();
    for (at, (pid, list)) in lists.iter().enumerate() {
        let shared = lists[..at].iter().find(|(other, known)| known.name == list.name || other == pid);
        if let Some((other, _)) = shared {
            return Err(Error::Refused(vec![sem::strange_sharing(*pid, *other)]));
        }
        for (set, adjustments) in &list.sets {
            let all = adjustments.iter().enumerate().filter(|(_, adjustment)| **adjustment != 0);
            undone.extend(all.map(|(number, adjustment)| Undone {
                pid: *pid,
                set: *set,
                number: number as u16,
                adjustment: *adjustment,
            }));
        }
    }
    Ok(undone)
}
