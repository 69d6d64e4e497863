//! A thread of the job that makes system calls for us, and is given back untouched.

use crate::error::{Error, Result};
use crate::fault;
use crate::procfs;
use crate::remote::frame::{self, Context};
use crate::remote::gadget::Gadgets;
use crate::remote::runner::{Call, Runner, Scratch};
use crate::remote::{kernel_result, restart};
use crate::sys::ptrace::{self, Regs};
use crate::sys::vm;

/// The System V ABI lets a leaf function use this much below its stack pointer.
const RED_ZONE: u64 = 128;

/// A borrowed thread. [`Puppet::end`] gives it back; dropping it without that (an error on the way) does too.
#[derive(Debug)]
pub struct Puppet {
    runner: Runner,
    own: Context,
    gadgets: Gadgets,
    /// Registers to make single calls from: its stack pointer is at a frame when the calls are safe against our death.
    base: Regs,
    scratch: Option<Scratch>,
    ended: bool,
}

impl Puppet {
    /// Borrows one of the stopped threads of `pid`: the one that loses least should we die meanwhile.
    ///
    /// # Errors
    /// When no thread can be used.
    pub fn begin(pid: i32, tids: &[i32], gadgets: Gadgets) -> Result<Self> {
        let tid = Self::choose(tids)?;
        let lost = |e| Error::system(format!("reading the registers of thread {tid}"), e);
        let own = Context {
            regs: ptrace::regs(tid).map_err(lost)?,
            xstate: ptrace::xstate(tid).map_err(lost)?,
            sigmask: ptrace::sigmask(tid).map_err(lost)?,
        };
        let runner = Runner::new(pid, tid)?;
        let mut puppet = Self { base: own.regs, runner, own, gadgets, scratch: None, ended: false };
        puppet.prepare_way_back()?;
        puppet.map_scratch()?;
        Ok(puppet)
    }

    /// A thread whose interrupted call the kernel restarts from its arguments alone is better than one with a time left.
    fn choose(tids: &[i32]) -> Result<i32> {
        let mut fallback = None;
        for &tid in tids {
            let Ok(regs) = ptrace::regs(tid) else { continue };
            if regs.orig_rax as i64 >= 0 && regs.rax as i64 == restart::RESTARTBLOCK {
                fallback = fallback.or(Some(tid));
            } else {
                return Ok(tid);
            }
        }
        fallback.ok_or_else(|| Error::system("finding a thread that can make calls", nix::errno::Errno::ESRCH))
    }

    /// Puts a signal frame below the thread's stack, so that `syscall; ret` leads to `rt_sigreturn`.
    fn prepare_way_back(&mut self) -> Result<()> {
        let Some((_, restorer)) = self.gadgets.safe else { return Ok(()) };
        let at = (self.own.regs.rsp - RED_ZONE - self.own.frame_len() as u64) & !63;
        let vmas = procfs::maps(self.runner.pid)
            .map_err(|e| Error::system(format!("reading the mappings of pid {}", self.runner.pid), e))?;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let roomy = vmas.iter().any(|v| {
            v.start <= at && self.own.regs.rsp <= v.end && v.prot & writable == writable && !v.shared
        });
        if !roomy {
            // A stack too small for a signal: single calls are then made bare, a window of microseconds each.
            self.gadgets.safe = None;
            return Ok(());
        }
        vm::write(self.runner.pid, at, &self.own.frame(at, restorer))
            .map_err(|e| Error::system(format!("writing a frame to the stack of thread {}", self.runner.tid), e))?;
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
        self.runner.install(scratch)?;
        // The stub's own end calls rt_sigreturn: this frame needs no restorer.
        vm::write(self.runner.pid, scratch.frame(), &self.own.frame(scratch.frame(), 0))
            .map_err(|e| Error::system(format!("writing to the scratch mapping of pid {}", self.runner.pid), e))
    }

    /// The thread in use.
    pub fn tid(&self) -> i32 {
        self.runner.tid
    }

    /// Room for structures and results in the job's memory: address and bytes.
    pub fn data(&self) -> (u64, u64) {
        (self.scratch.map_or(0, Scratch::data), Scratch::DATA_LEN)
    }

    /// Runs a table of calls; `tail` is run by the job only if we die meanwhile.
    ///
    /// # Errors
    /// When the thread dies. What single calls answer is in [`Call::outcome`].
    pub fn batch(&mut self, calls: &mut [Call], tail: &[Call]) -> Result<()> {
        let scratch = self.scratch.expect("mapped by begin");
        self.runner.run(scratch, &self.own.regs, calls, tail)?;
        fault::point("remote.batch")?;
        Ok(())
    }

    /// Makes one call through the borrowed instructions.
    fn single(&mut self, call: &Call, name: &str) -> Result<u64> {
        let at = self.gadgets.safe.map_or(self.gadgets.syscall, |(call, _)| call);
        let result = self.runner.single(at, &self.base, call)?;
        kernel_result(result).map_err(|e| Error::system(format!("{name} on behalf of pid {}", self.runner.pid), e))
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
        if let Some(scratch) = self.scratch.take() {
            // Failing here leaves a mapping that nobody uses: no reason to touch the job any further.
            let _ = self.single(&Call::new(libc::SYS_munmap, &[scratch.base, Scratch::LEN]), "munmap");
        }
        // The mask first: should we die in between, the frame still brings everything back.
        ptrace::set_sigmask(self.runner.tid, self.own.sigmask)
            .and_then(|()| ptrace::set_regs(self.runner.tid, &self.own.regs))
            .map_err(|e| Error::system(format!("giving thread {} its registers back", self.runner.tid), e))
    }

    fn requeue_strays(&mut self) -> Result<()> {
        let strays = std::mem::take(&mut self.runner.strays);
        let Some(scratch) = self.scratch else { return Ok(()) };
        for info in strays {
            let signal = u64::from(u32::from_le_bytes(info[..4].try_into().expect("four bytes")));
            vm::write(self.runner.pid, scratch.data(), &info)
                .map_err(|e| Error::system(format!("writing to the scratch mapping of pid {}", self.runner.pid), e))?;
            let status = procfs::Status::read(self.runner.pid, self.runner.tid)
                .map_err(|e| Error::system(format!("reading the status of thread {}", self.runner.tid), e))?;
            let ns = |key: &str| status.numbers(key).last().map_or(0, |v| u64::from(*v));
            let args = [ns("NStgid"), ns("NSpid"), signal, scratch.data()];
            // Blocked for the moment, so that it waits for the thread to be itself again.
            ptrace::set_sigmask(self.runner.tid, u64::MAX)
                .map_err(|e| Error::system(format!("blocking signals of thread {}", self.runner.tid), e))?;
            self.single(&Call::new(libc::SYS_rt_tgsigqueueinfo, &args), "rt_tgsigqueueinfo")?;
        }
        Ok(())
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if let Err(e) = self.give_back() {
            log::error!("thread {}: {e}", self.runner.tid);
        }
    }
}

/// Registers with an interrupted system call set up to start again; see [`frame::resumed`].
pub fn resumed(regs: &Regs) -> Regs {
    frame::resumed(regs)
}
