//! Stopping every thread of a process, and letting all go again whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::ptrace;
use crate::sys::task::{self, Change};

/// A process whose every thread is stopped. Dropping it lets them go.
#[derive(Debug)]
pub struct Frozen {
    pid: i32,
    /// Stopped threads and whether they were in a job-control stop already.
    threads: BTreeMap<i32, bool>,
}

impl Frozen {
    /// Stops every thread of `pid`, those born meanwhile included. A signal that a thread was about to take is taken
    /// (its handler entered, not run) before the stop.
    ///
    /// # Errors
    /// When the process may not be traced, has a tracer already, or ends meanwhile. Nothing stays stopped then.
    pub fn freeze(pid: i32) -> Result<Self> {
        let mut frozen = Self { pid, threads: BTreeMap::new() };
        let mut seized = BTreeSet::new();
        match frozen.stop_all(&mut seized) {
            Ok(()) if frozen.threads.is_empty() => Err(gone(pid)),
            Ok(()) => {
                frozen.threads.keys().for_each(|tid| resume_endless_wait(*tid));
                Ok(frozen)
            }
            Err(e) => {
                frozen.adopt(&seized);
                Err(e)
            }
        }
    }

    fn stop_all(&mut self, seized: &mut BTreeSet<i32>) -> Result<()> {
        loop {
            let mut tids = procfs::threads(self.pid).map_err(|_| gone(self.pid))?;
            tids.retain(|tid| !seized.contains(tid));
            if tids.is_empty() {
                return Ok(());
            }
            for &tid in &tids {
                match ptrace::seize(tid, libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACESYSGOOD) {
                    Ok(()) => {}
                    Err(Errno::ESRCH) => continue,
                    // A thread born of a seized one is seized already, and stops by itself.
                    Err(Errno::EPERM) if traced_by_us(self.pid, tid) => {}
                    Err(e) => return Err(refused(self.pid, tid, e)),
                }
                seized.insert(tid);
                let _ = ptrace::interrupt(tid);
            }
            // Stopped threads bear no more: once all known ones stand still, one more look finds the stragglers.
            for tid in tids {
                if seized.contains(&tid)
                    && let Some(in_job_stop) = wait_stopped(tid)?
                {
                    self.threads.insert(tid, in_job_stop);
                }
            }
        }
    }

    /// Only a stopped thread can be let go: waits for those that were seized before something failed.
    fn adopt(&mut self, seized: &BTreeSet<i32>) {
        for &tid in seized {
            if !self.threads.contains_key(&tid)
                && let Ok(Some(stop)) = wait_stopped(tid)
            {
                self.threads.insert(tid, stop);
            }
        }
    }

    /// The stopped process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its threads, the main one first.
    pub fn tids(&self) -> Vec<i32> {
        let mut tids: Vec<i32> = self.threads.keys().copied().collect();
        tids.sort_by_key(|t| (*t != self.pid, *t));
        tids
    }

    /// Whether job control had stopped the process before we did.
    pub fn was_stopped(&self) -> bool {
        self.threads.values().any(|s| *s)
    }

    /// Lets every thread go.
    ///
    /// # Errors
    /// When a thread could not be let go; the others were.
    pub fn thaw(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let mut first = None;
        for (tid, _) in std::mem::take(&mut self.threads) {
            match ptrace::detach(tid, 0) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => first = first.or(Some(Error::system(format!("letting thread {tid} go"), e))),
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(e) = self.release() {
            log::error!("pid {}: {e}", self.pid);
        }
    }
}

/// Some calls answer `EINTR` at any stop, and are not started again by the kernel (`signal(7)`). One that would have waited
/// for ever starts again, as if nobody had stopped it. One with a time limit cannot: how much of it is left is not known.
fn resume_endless_wait(tid: i32) {
    const SYS_EPOLL_PWAIT2: i64 = 441;
    let Ok(mut regs) = ptrace::regs(tid) else { return };
    let endless = match regs.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => (regs.r10 as u32) == u32::MAX,
        SYS_EPOLL_PWAIT2 | libc::SYS_semtimedop => regs.r10 == 0,
        libc::SYS_rt_sigtimedwait => regs.rdx == 0,
        libc::SYS_io_getevents => regs.r8 == 0,
        libc::SYS_semop => true,
        _ => false,
    };
    if endless && regs.rax as i64 == -i64::from(libc::EINTR) {
        regs.rax = regs.orig_rax;
        regs.rip -= 2;
        regs.orig_rax = u64::MAX;
        if let Err(e) = ptrace::set_regs(tid, &regs) {
            log::warn!("thread {tid}: its wait ends early ({e})");
        }
    }
}

/// Waits until `tid` stands still: `Some(was in a job-control stop)`, or `None` when it ended instead.
fn wait_stopped(tid: i32) -> Result<Option<bool>> {
    loop {
        match task::wait_change(tid) {
            Ok(Change::Trapped { signal, event: ptrace::EVENT_STOP }) => return Ok(Some(signal != libc::SIGTRAP)),
            // On its way to take a signal, or just past a clone: let it, the interrupt is still due.
            Ok(Change::Trapped { signal, event }) => {
                let deliver = if event == 0 { signal } else { 0 };
                match ptrace::cont(tid, deliver) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(e) => return Err(Error::system(format!("stopping thread {tid}"), e)),
                }
            }
            Ok(Change::Ended) | Err(Errno::ECHILD) => return Ok(None),
            Err(e) => return Err(Error::system(format!("waiting for thread {tid} to stop"), e)),
        }
    }
}

fn traced_by_us(pid: i32, tid: i32) -> bool {
    let tracer = procfs::Status::read(pid, tid).map(|s| s.numbers("TracerPid").first().copied().unwrap_or(0));
    tracer
        .is_ok_and(|t| t != 0 && procfs::threads(std::process::id() as i32).is_ok_and(|own| own.contains(&(t as i32))))
}

fn gone(pid: i32) -> Error {
    Error::JobGone { pid, during: "the freeze" }
}

fn refused(pid: i32, tid: i32, e: Errno) -> Error {
    let tracer = procfs::Status::read(pid, tid).map_or(0, |s| s.numbers("TracerPid").first().copied().unwrap_or(0));
    if tracer != 0 {
        return Error::NotAllowed {
            pid,
            why: format!("thread {tid} is traced by pid {tracer} (a debugger or strace)"),
            todo: "let that one detach first".to_owned(),
        };
    }
    match e {
        Errno::EPERM => Error::NotAllowed {
            pid,
            why: format!("the kernel does not let us trace thread {tid}"),
            todo: "run cr as root, or as the job's owner".to_owned(),
        },
        e => Error::system(format!("seizing thread {tid}"), e),
    }
}
