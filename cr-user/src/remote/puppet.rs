//! A thread of the job that makes system calls for us, and is given back untouched.

use crate::error::{Error, Refusal, Result};
use crate::fault;
use crate::procfs::{self, Status};
use crate::remote::frame::Context;
use crate::remote::gadget::Gadgets;
use crate::remote::runner::{Call, Runner, Scratch};
use crate::remote::{confinement, freeze, kernel_result, restart};
use crate::sys::ptrace::{self, Regs};
use crate::sys::vm;

/// The System V ABI lets a leaf function use this much below its stack pointer.
const RED_ZONE: u64 = 128;

/// Borrowed threads, one at a time. [`Puppet::end`] gives the last one back and takes our mapping out; dropping it without
/// that (an error on the way) does too.
#[derive(Debug)]
pub struct Puppet {
    gadgets: Gadgets,
    /// The thread that maps and unmaps the scratch.
    home: Borrowed,
    /// Registers of `home` to make single calls from: its stack pointer is at a frame when the calls are safe against our
    /// death.
    base: Regs,
    /// Where the frame on its stack is, and what was there: it need not be below a stack that nothing is next to.
    lent: Option<(u64, Vec<u8>)>,
    /// Another thread in use, in place of `home`.
    guest: Option<Borrowed>,
    scratch: Option<Scratch>,
    ended: bool,
}

#[derive(Debug)]
struct Borrowed {
    runner: Runner,
    own: Context,
}

impl Borrowed {
    fn new(pid: i32, tid: i32) -> Result<Self> {
        let own = Context::read(tid)?;
        let runner = Runner::new(pid, tid)?;
        if runner.confinement.as_ref().is_some_and(|c| !c.spares_return()) {
            return Err(refused(pid, tid, "forbids rt_sigreturn, with which it must be able to go on should cr die"));
        }
        if runner.confinement.is_some() {
            // Until we let the thread go, or die.
            confinement::suspend(pid, tid, freeze::OPTIONS)?;
        }
        Ok(Self { runner, own })
    }

    /// The mask first: should we die in between, the frame still brings everything back.
    fn give_back(&self) -> Result<()> {
        ptrace::set_sigmask(self.runner.tid, self.own.sigmask)
            .and_then(|()| ptrace::set_regs(self.runner.tid, &self.own.regs))
            .map_err(|e| Error::system(format!("giving thread {} its registers back", self.runner.tid), e))
    }
}

impl Puppet {
    /// Borrows one of the stopped threads of `pid`: the one that loses least should we die meanwhile.
    ///
    /// # Errors
    /// When no thread can be used.
    pub fn begin(pid: i32, tids: &[i32], gadgets: Gadgets) -> Result<Self> {
        let home = Borrowed::new(pid, Self::choose(pid, tids)?)?;
        let base = home.own.regs;
        let mut puppet = Self { gadgets, home, base, lent: None, guest: None, scratch: None, ended: false };
        puppet.prepare_way_back()?;
        puppet.map_scratch()?;
        Ok(puppet)
    }

    /// A thread that no seccomp confines is better than one, and then one whose interrupted call the kernel restarts from
    /// its arguments alone is better than one with a time left.
    fn choose(pid: i32, tids: &[i32]) -> Result<i32> {
        let mut best = None;
        for &tid in tids {
            let Ok(regs) = ptrace::regs(tid) else { continue };
            let waits = regs.orig_rax as i64 >= 0 && regs.rax as i64 == restart::RESTARTBLOCK;
            let confined = Status::read(pid, tid).is_ok_and(|s| !matches!(s.get("Seccomp"), "" | "0"));
            if best.is_none_or(|(_, worst)| (confined, waits) < worst) {
                best = Some((tid, (confined, waits)));
            }
            if best.is_some_and(|(_, faults)| faults == (false, false)) {
                break;
            }
        }
        let none = || Error::system("finding a thread that can make calls", nix::errno::Errno::ESRCH);
        best.map(|(tid, _)| tid).ok_or_else(none)
    }

    /// Puts a signal frame below the thread's stack, so that `syscall; ret` leads to `rt_sigreturn`.
    fn prepare_way_back(&mut self) -> Result<()> {
        let Some((_, restorer)) = self.gadgets.safe else { return Ok(()) };
        let (pid, own) = (self.home.runner.pid, &self.home.own);
        let at = (own.regs.rsp - RED_ZONE - own.frame_len() as u64) & !63;
        let vmas = procfs::maps(pid).map_err(|e| Error::system(format!("reading the mappings of pid {pid}"), e))?;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let roomy =
            vmas.iter().any(|v| v.start <= at && own.regs.rsp <= v.end && v.prot & writable == writable && !v.shared);
        if !roomy {
            // A stack too small for a signal: single calls are then made bare, a window of microseconds each.
            self.gadgets.safe = None;
            return Ok(());
        }
        let tid = self.home.runner.tid;
        let failed = |e| Error::system(format!("writing a frame to the stack of thread {tid}"), e);
        let mut before = vec![0; own.frame_len()];
        vm::read(tid, &[vm::Range { start: at, len: before.len() as u64 }], &mut before).map_err(failed)?;
        let frame = own.frame(at, restorer);
        self.lent = Some((at, before));
        vm::write(tid, at, &frame).map_err(failed)?;
        self.base.rsp = at;
        Ok(())
    }

    fn map_scratch(&mut self) -> Result<()> {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let code = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let data = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let base = self.single(&Call::new(libc::SYS_mmap, &[0, Scratch::LEN, code, flags, u64::MAX, 0]), "mmap")?;
        let scratch = Scratch { base };
        self.scratch = Some(scratch);
        fault::point("remote.scratch")?;
        let rest = [base + Scratch::CODE_LEN, Scratch::LEN - Scratch::CODE_LEN, data];
        self.single(&Call::new(libc::SYS_mprotect, &rest), "mprotect")?;
        self.home.runner.install(scratch)?;
        self.write_frame()
    }

    /// Puts the frame of the thread in use where the stub's end finds it, or the `ret` behind a single call.
    fn write_frame(&self) -> Result<()> {
        let scratch = self.scratch.expect("mapped by begin");
        let thread = self.current();
        let restorer = self.gadgets.safe.map_or(0, |(_, restorer)| restorer);
        vm::write(thread.runner.tid, scratch.frame(), &thread.own.frame(scratch.frame(), restorer))
            .map_err(|e| Error::system(format!("writing to the scratch mapping of pid {}", thread.runner.pid), e))
    }

    fn current(&self) -> &Borrowed {
        self.guest.as_ref().unwrap_or(&self.home)
    }

    /// The thread in use.
    pub fn tid(&self) -> i32 {
        self.current().runner.tid
    }

    /// What the thread in use goes back to.
    pub fn context(&self) -> &Context {
        &self.current().own
    }

    /// Gives the thread in use back and borrows `tid` instead.
    ///
    /// # Errors
    /// When either thread died.
    pub fn switch(&mut self, tid: i32) -> Result<()> {
        if tid == self.tid() {
            return Ok(());
        }
        self.requeue_strays()?;
        self.current().give_back()?;
        self.guest = if tid == self.home.runner.tid { None } else { Some(Borrowed::new(self.home.runner.pid, tid)?) };
        self.write_frame()
    }

    /// Room for structures and results in the job's memory: address and bytes.
    pub fn data(&self) -> (u64, u64) {
        (self.scratch.map_or(0, Scratch::data), Scratch::DATA_LEN)
    }

    /// Runs a table of calls on the thread in use; `tail` is run by the job only if we die meanwhile.
    ///
    /// # Errors
    /// When the thread dies. What single calls answer is in [`Call::outcome`].
    pub fn batch(&mut self, calls: &mut [Call], tail: &[Call]) -> Result<()> {
        let scratch = self.scratch.expect("mapped by begin");
        let thread = self.guest.as_mut().unwrap_or(&mut self.home);
        if thread.runner.survives(calls, tail) {
            thread.runner.run(scratch, &thread.own.regs, calls, tail)?;
        } else {
            Self::one_by_one(self.gadgets, thread, scratch, calls, tail)?;
        }
        fault::point("remote.batch")?;
        Ok(())
    }

    /// Calls that seccomp would end the thread for, were it to make them without us. So each is made by itself, and in
    /// between the thread is where it can go on: what is left is the instant between our last word to the kernel and the
    /// call.
    fn one_by_one(
        gadgets: Gadgets,
        thread: &mut Borrowed,
        scratch: Scratch,
        calls: &mut [Call],
        tail: &[Call],
    ) -> Result<()> {
        let (pid, tid) = (thread.runner.pid, thread.runner.tid);
        let (Some((at, _)), true) = (gadgets.safe, tail.is_empty()) else {
            return Err(refused(
                pid,
                tid,
                "would end it for a call that cr must have it make, should cr die meanwhile",
            ));
        };
        let regs = Regs { rsp: scratch.frame(), ..thread.own.regs };
        for call in calls {
            call.result = thread.runner.single(at, &regs, call)?;
            thread.give_back()?;
        }
        Ok(())
    }

    /// Makes one call on the home thread through the borrowed instructions.
    fn single(&mut self, call: &Call, name: &str) -> Result<u64> {
        let at = self.gadgets.safe.map_or(self.gadgets.syscall, |(call, _)| call);
        let result = self.home.runner.single(at, &self.base, call)?;
        kernel_result(result).map_err(|e| Error::system(format!("{name} on behalf of pid {}", self.home.runner.pid), e))
    }

    /// Takes our mapping out and gives the thread its own registers back.
    ///
    /// # Errors
    /// When the thread died.
    pub fn end(mut self) -> Result<()> {
        fault::point("remote.end")?;
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.requeue_strays()?;
        if let Some(guest) = self.guest.take() {
            guest.give_back()?;
        }
        if let Some(scratch) = self.scratch.take() {
            // Failing here leaves a mapping that nobody uses: no reason to touch the job any further.
            let _ = self.single(&Call::new(libc::SYS_munmap, &[scratch.base, Scratch::LEN]), "munmap");
        }
        self.home.give_back()?;
        let Some((at, before)) = self.lent.take() else { return Ok(()) };
        let tid = self.home.runner.tid;
        vm::write(tid, at, &before).map_err(|e| Error::system(format!("writing to the stack of thread {tid}"), e))
    }

    /// Signals that came under the marker's number go back to the thread's queue, blocked until it is itself again.
    fn requeue_strays(&mut self) -> Result<()> {
        let Some(scratch) = self.scratch else { return Ok(()) };
        let thread = self.guest.as_mut().unwrap_or(&mut self.home);
        for info in std::mem::take(&mut thread.runner.strays) {
            let failed = |e| Error::system(format!("queueing a signal of thread {} again", thread.runner.tid), e);
            vm::write(thread.runner.tid, scratch.data(), &info).map_err(failed)?;
            let requeue = thread.runner.queue_call(&info, scratch.data(), false);
            let mut requeue = [requeue];
            if thread.runner.survives(&requeue, &[]) {
                thread.runner.run(scratch, &thread.own.regs, &mut requeue, &[])?;
            } else {
                Self::one_by_one(self.gadgets, thread, scratch, &mut requeue, &[])?;
            }
        }
        Ok(())
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if let Err(e) = self.give_back() {
            log::error!("pid {}: {e}", self.home.runner.pid);
        }
    }
}

fn refused(pid: i32, tid: i32, what: &str) -> Error {
    Error::Refused(vec![Refusal {
        pid,
        place: format!("thread {tid}"),
        why: format!("runs under a seccomp filter that {what}"),
        todo: "have the filter allow it".to_owned(),
    }])
}
