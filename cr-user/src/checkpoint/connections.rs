//! What is queued in the TCP connections of a stopped job, and silence on those with somebody outside while nobody answers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::checkpoint::{Job, gone, member};
use crate::error::{Error, Refusal, Result};
use crate::fault;
use crate::netlock::{Flow, Held, Process, Silence};
use crate::object::files::Files;
use crate::object::files::inet::{self, Policy};
use crate::object::threads::{self, Threads};
use crate::procfs::Vma;
use crate::remote::Frozen;
use crate::remote::frame::Context;
use crate::remote::park::{self, Ground, Lot};
use crate::store::Store;

/// The connections with somebody outside of a job that is to be ended, and the silence on them.
#[derive(Debug, Default)]
pub struct Parting {
    silence: Option<Silence>,
    fds: Vec<OwnedFd>,
}

impl Parting {
    /// Ends the job, whose checkpoint is durable: to those outside it has fallen silent, until it is restored.
    ///
    /// # Errors
    /// When it cannot be kept silent, or does not end: it goes on, unless it was ended.
    pub fn end(mut self, frozen: Frozen, store: &Store) -> Result<()> {
        let failed = |e: std::io::Error| Error::system("keeping the job's connections silent", e);
        fault::point("hold")?;
        if let Some(silence) = &mut self.silence {
            let root = Process::of(frozen.root()).map_err(failed)?;
            let dir = store.dir().canonicalize().map_err(failed)?;
            silence.keep(&Held { store: dir, job: store.job(), root })?;
        }
        fault::point("held")?;
        frozen.kill()?;
        // From here on it is away, whatever fails: the silence stays until its restore.
        self.silence.into_iter().for_each(Silence::leave);
        // As long as we have them, they are not closed.
        inet::forsake(self.fds)
    }
}

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
) -> Result<Parting> {
    let silence = begin_silence(job, files)?;
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
    lot.end()?;
    let ended = inet::Connections::ended_meanwhile(files);
    if !ended.is_empty() {
        let refusal = |(pid, fd)| Refusal {
            pid,
            place: format!("fd {fd}"),
            why: "is a TCP connection that ended in that moment".to_owned(),
            todo: "try again".to_owned(),
        };
        return Err(Error::Refused(ended.into_iter().map(refusal).collect()));
    }
    let fds = if job.plan.ends { connections.into_outside(files) } else { Vec::new() };
    Ok(Parting { silence, fds })
}

/// From now on those outside hear nothing of a job that is to be ended. One that goes on needs no silence: what arrives meanwhile,
/// arrives.
fn begin_silence(job: &mut Job, files: &Files) -> Result<Option<Silence>> {
    let flows: Vec<Flow> =
        inet::Connections::outside(files).into_iter().map(|(local, remote)| Flow { local, remote }).collect();
    if flows.is_empty() || !job.plan.ends || job.plan.policy != Policy::Keep {
        return Ok(None);
    }
    fault::point("lock")?;
    let silence = match Silence::begin(None, &flows) {
        Ok(silence) => Some(silence),
        Err(e) => {
            job.notes.push(format!("its {} TCP connections may be reset before it is restored: {e}", flows.len()));
            None
        }
    };
    fault::point("locked")?;
    Ok(silence)
}

/// The process whose memory another has: itself, or an ancestor.
fn owner_of_memory(job: &Job, mut pid: i32) -> i32 {
    while let Some(member) = job.members.iter().find(|m| m.pid == pid && !m.has_own_memory()) {
        pid = member.ppid;
    }
    pid
}
