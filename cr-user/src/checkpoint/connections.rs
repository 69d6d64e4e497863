//! What is queued in the TCP connections of a stopped job.

use std::sync::Arc;

use crate::checkpoint::{Job, gone, member};
use crate::error::{Error, Result};
use crate::object::files::{Files, inet};
use crate::object::threads::{self, Threads};
use crate::procfs::Vma;
use crate::remote::Frozen;
use crate::remote::frame::Context;
use crate::remote::park::{self, Ground, Lot};

/// Reads all queues into the record, and takes nothing out. Where that takes repair, every thread that could use the socket is
/// parked meanwhile, so that it finds it whole even if we die. Must be called from the thread that stopped the job.
///
/// # Errors
/// [`Error::Refused`] when a thread cannot be parked, or a process outside of the job has the socket, too.
pub fn read_queues(
    mut connections: inet::Connections,
    job: &mut Job,
    frozen: &Frozen,
    all: &[Threads],
    vmas: &[(i32, Arc<Vec<Vma>>)],
    files: &mut Files,
) -> Result<()> {
    connections.find_busy(files)?;
    if job.part.is_some() {
        // A preflight looks for those, but of a part it only notes that the rest is missing.
        let shared = connections.busy_outside(files, &member::holders(&job.members));
        if !shared.is_empty() {
            return Err(Error::Refused(shared));
        }
    }
    let mut lot = Lot::default();
    for pid in connections.users(files) {
        let lost = || gone(pid, "a look at its connections");
        let stopped = frozen.processes().iter().find(|p| p.pid == pid).ok_or_else(lost)?;
        let recorded = all.iter().find(|t| t.pid == pid).ok_or_else(lost)?;
        let memory = owner_of_memory(job, pid);
        let vmas = vmas.iter().find(|(owner, _)| *owner == memory).ok_or_else(lost)?;
        let member = job.members.iter_mut().find(|m| m.pid == pid).ok_or_else(lost)?;
        let ground = Ground { pid, memory, vmas: &vmas.1, gadgets: member.known.gadgets(pid)? };
        // All of them, or it is of no use.
        if recorded.all.iter().map(|t| t.tid).ne(stopped.tids()) {
            return Err(lost());
        }
        for thread in &recorded.all {
            let tid = thread.tid;
            let own = Context { regs: thread.registers(), ..Context::read(tid)? };
            let (call, alternate) = (threads::number_of_wait(thread), thread.altstack);
            lot.park(&ground, &park::Thread { tid, own, call, alternate })?;
        }
    }
    connections.read(files, lot.parked())?;
    lot.end()
}

/// The process whose memory another has: itself, or an ancestor.
fn owner_of_memory(job: &Job, mut pid: i32) -> i32 {
    while let Some(member) = job.members.iter().find(|m| m.pid == pid && !m.has_own_memory()) {
        pid = member.ppid;
    }
    pid
}
