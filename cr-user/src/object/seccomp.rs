//! Seccomp: strict mode, and chains of filters of the threads of a job.
//!
//! A filter cannot be told from an equal one: threads of one process with equal chains are taken to share them. Filters
//! come last but for the credentials, since installing them takes privilege, and what is left to do they might forbid: it
//! is done with seccomp suspended.

use std::collections::HashSet;

use crate::error::{Error, Refusal, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::procfs::{self, Status};
use crate::remote::confinement::{Confinement, Filter};
use crate::remote::{Call, freeze};
use crate::sys::ptrace;

/// The record of the job's seccomp state.
pub const KIND: RecordKind = RecordKind { id: 11, version: 1, name: "seccomp" };

const FLAG_TSYNC: u64 = 1 << 0;
const FLAG_LOG: u64 = 1 << 1;
const FLAG_SPEC_ALLOW: u64 = 1 << 2;

/// Seccomp of the job's threads; those that are under none are not named.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Seccomp {
    /// Every different filter of the job.
    pub filters: Vec<Filter>,
    /// By thread.
    pub threads: Vec<ThreadSeccomp>,
}

/// Seccomp of one thread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ThreadSeccomp {
    /// The process.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
    /// Strict mode, which knows no filters.
    pub strict: bool,
    /// Its filters, oldest first: indices into the table.
    pub chain: Vec<u32>,
    /// Whether the CPU may still speculate past stores (`SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
    pub speculates: bool,
}

/// What a running process's seccomp keeps us from. One thread of each kind is stopped for a moment.
///
/// # Errors
/// When the process is gone, or cannot be stopped.
pub fn refusals(pid: i32) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut seen = HashSet::new();
    for tid in procfs::threads(pid).map_err(|e| Error::system(format!("examining pid {pid}"), e))? {
        let Ok(status) = Status::read(pid, tid) else { continue };
        if status.get("State").starts_with(['Z', 'X']) {
            continue;
        }
        let kind = (status.get("Seccomp").to_owned(), status.get("Seccomp_filters").to_owned());
        if matches!(kind.0.as_str(), "" | "0") || !seen.insert(kind) {
            continue;
        }
        match freeze::at_rest(pid, tid, || confinement_of(pid, tid, &status)) {
            Ok(_) => {}
            Err(Error::Refused(why)) => refusals.extend(why),
            Err(e) => return Err(e),
        }
    }
    Ok(refusals)
}

/// How a stopped thread is confined, if we can deal with it.
fn confinement_of(pid: i32, tid: i32, status: &Status) -> Result<Option<Confinement>> {
    let refuse = |why: &str, todo: &str| {
        let place = format!("thread {tid}");
        Err(Error::Refused(vec![Refusal { pid, place, why: why.to_owned(), todo: todo.to_owned() }]))
    };
    if let Some(why) = powerless() {
        return refuse(&format!("runs under seccomp, and {why}"), "run cr as root, outside of any seccomp filter");
    }
    let found = Confinement::read(pid, tid, status)?;
    match &found {
        Some(confinement) if confinement.may_notify() => {
            refuse("runs under a seccomp filter that asks a supervisor", "start the job without that supervisor")
        }
        Some(confinement) if !confinement.spares_return() => refuse(
            "runs under a seccomp filter that forbids rt_sigreturn, with which it must be able to go on should cr die",
            "have the filter allow it",
        ),
        _ => Ok(found),
    }
}

/// Why we cannot suspend another's seccomp, if so.
fn powerless() -> Option<&'static str> {
    const CAP_SYS_ADMIN: u32 = 21;
    let me = std::process::id() as i32;
    let status = Status::read(me, me).ok()?;
    if !matches!(status.get("Seccomp"), "" | "0") {
        return Some("cr itself is under a seccomp filter");
    }
    (status.mask("CapEff") >> CAP_SYS_ADMIN & 1 == 0).then_some("suspending that takes CAP_SYS_ADMIN")
}

impl Seccomp {
    /// Captures a stopped thread.
    ///
    /// # Errors
    /// [`Error::Refused`] when we could not make it again.
    pub fn add(&mut self, pid: i32, tid: i32, status: &Status) -> Result<()> {
        if matches!(status.get("Seccomp"), "" | "0") {
            return Ok(());
        }
        let (strict, filters) = match confinement_of(pid, tid, status)? {
            Some(Confinement::Filters(filters)) => (false, filters),
            found => (found.is_some(), Vec::new()),
        };
        let chain = filters.into_iter().map(|f| self.number(f)).collect();
        let speculates = status.get("Speculation_Store_Bypass") == "thread vulnerable";
        self.threads.push(ThreadSeccomp { pid, tid, strict, chain, speculates });
        Ok(())
    }

    fn number(&mut self, filter: Filter) -> u32 {
        let at = self.filters.iter().position(|f| *f == filter).unwrap_or_else(|| {
            self.filters.push(filter);
            self.filters.len() - 1
        });
        at as u32
    }

    /// Before anything is restored: we must be able to make threads that are confined as these, and no more than these.
    ///
    /// # Errors
    /// [`Error::NotHere`] that says why not.
    pub fn check(&self) -> Result<()> {
        let me = std::process::id() as i32;
        let confined = Status::read(me, me).is_ok_and(|s| !matches!(s.get("Seccomp"), "" | "0"));
        let why = if confined {
            "cr itself is under a seccomp filter, which the job would inherit, and which may forbid what a restore needs"
        } else if !self.threads.is_empty()
            && let Some(why) = powerless()
        {
            why
        } else {
            return Ok(());
        };
        Err(Error::NotHere {
            what: "the job's seccomp state".to_owned(),
            why: why.to_owned(),
            todo: "run cr as root, outside of any seccomp filter (in a container: --security-opt seccomp=unconfined)"
                .to_owned(),
        })
    }

    /// What the threads `tids` of a restored process must do, the main one first. `at`: where the bytes of a step will lie.
    pub fn steps(&self, pid: i32, tids: &[i32], at: u64) -> Vec<Step> {
        let of = |tid: i32| self.threads.iter().find(|t| t.pid == pid && t.tid == tid);
        let chain = |tid: i32| of(tid).map_or(&[][..], |t| &t.chain);
        let first = chain(tids[0]);
        // What all have in common they share, as if the main thread had made the others after it had installed it.
        let common = (0..first.len()).take_while(|&n| tids.iter().all(|t| chain(*t).get(n) == first.get(n))).count();
        let mut steps = Vec::new();
        for (index, tid) in tids.iter().enumerate() {
            let Some(own) = of(*tid) else { continue };
            let from = if index == 0 { 0 } else { common };
            for (n, filter) in own.chain.iter().enumerate().skip(from) {
                let sync = if n < common && tids.len() > 1 { FLAG_TSYNC } else { 0 };
                let speculation = if own.speculates { FLAG_SPEC_ALLOW } else { 0 };
                steps.push(install(index, &self.filters[*filter as usize], sync | speculation, at));
            }
            if own.strict {
                let call = Call::new(libc::SYS_prctl, &[libc::PR_SET_SECCOMP as u64, 1]);
                steps.push(Step { thread: index, bytes: Vec::new(), call });
            }
        }
        steps
    }
}

/// A call to be made by one thread of a restored process.
#[derive(Clone, Debug)]
pub struct Step {
    /// The thread's index.
    pub thread: usize,
    /// Bytes that the call reads.
    pub bytes: Vec<u8>,
    /// The call. It must answer 0: a positive number is that of a thread that could not follow.
    pub call: Call,
}

fn install(thread: usize, filter: &Filter, flags: u64, at: u64) -> Step {
    const SET_MODE_FILTER: u64 = 1;
    let flags = flags | if filter.log { FLAG_LOG } else { 0 };
    // `struct sock_fprog`: the number of instructions, and where they are.
    let mut bytes = (filter.program.len() as u64).to_le_bytes().to_vec();
    bytes.extend((at + 16).to_le_bytes());
    bytes.extend(filter.program.iter().flat_map(|i| i.to_le_bytes()));
    Step { thread, bytes, call: Call::new(libc::SYS_seccomp, &[SET_MODE_FILTER, flags, at]) }
}

/// From here on until it is let go, a restored thread may make any call.
///
/// # Errors
/// When the kernel refuses.
pub fn suspend(tid: i32) -> Result<()> {
    ptrace::set_options(tid, ptrace::OPTIONS_PUPPET | ptrace::O_SUSPEND_SECCOMP)
        .map_err(|e| Error::system(format!("suspending seccomp of thread {tid}"), e))
}

impl Sound for Seccomp {
    fn fault(&self) -> Option<String> {
        let wrong = self.threads.iter().find(|t| t.chain.iter().any(|filter| *filter as usize >= self.filters.len()));
        wrong.map(|t| format!("thread {} is under a filter that is not there", t.tid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(tid: i32, chain: &[u32]) -> ThreadSeccomp {
        ThreadSeccomp { pid: 1, tid, strict: false, chain: chain.to_vec(), speculates: false }
    }

    #[test]
    fn what_all_threads_have_is_installed_once_for_all() {
        let filters = (0..3).map(|n| Filter { program: vec![n], log: n == 1 }).collect();
        let threads = vec![thread(1, &[0, 1]), thread(2, &[0, 2]), thread(3, &[0])];
        let seccomp = Seccomp { filters, threads };
        let steps = seccomp.steps(1, &[1, 2, 3], 0x1000);
        let told: Vec<(usize, u64, u8)> = steps.iter().map(|s| (s.thread, s.call.args[1], s.bytes[16])).collect();
        assert_eq!(told, [(0, FLAG_TSYNC, 0), (0, FLAG_LOG, 1), (1, 0, 2)]);
        assert_eq!(seccomp.steps(1, &[3], 0).len(), 1);
        assert!(seccomp.steps(2, &[5], 0).is_empty());
    }

    #[test]
    fn a_thread_without_filters_shares_none() {
        let filters = vec![Filter { program: vec![7], log: false }];
        let seccomp = Seccomp { filters, threads: vec![thread(1, &[0])] };
        let steps = seccomp.steps(1, &[1, 2], 0);
        assert_eq!((steps.len(), steps[0].call.args[1]), (1, 0));
    }
}
