//! A new process that is nothing yet: stopped, emptied, and ready to be told what to do.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::procfs;
use crate::remote::{Call, Runner, Scratch, freeze};
use crate::sys::ptrace::{self, Regs};
use crate::sys::task::{self, Change};
use crate::sys::{clone, stub, vm};

/// The process under construction. It dies with us, and when this is dropped before it was let go.
#[derive(Debug)]
pub struct Body {
    pid: i32,
    /// Runners of its threads, the main one first.
    threads: Vec<Runner>,
    /// The main thread, where it is to end before the others: it makes no calls for these.
    head: Option<Runner>,
    scratch: Scratch,
    /// Registers to make calls from.
    regs: Regs,
    /// Calls of its first thread that were started and not waited for, and what they are for.
    under_way: Option<(Vec<Call>, &'static str)>,
    released: bool,
}

impl Body {
    /// Makes the process with the pid that it had, stops it, and takes everything out of its address space but the kernel's
    /// entry and our scratch mapping, which lies where nothing of `keep_free` (first byte, past the last) will come to lie.
    ///
    /// # Errors
    /// When the pid is taken, or the kernel refuses.
    pub fn make(pid: i32, exit_signal: i32, keep_free: &[(u64, u64)]) -> Result<Self> {
        spawn(pid, exit_signal)?;
        // From here on dropping the body ends the process.
        let mut body = Self {
            pid,
            threads: Vec::new(),
            head: None,
            scratch: Scratch { base: 0 },
            regs: ptrace::no_regs(),
            under_way: None,
            released: false,
        };
        ptrace::seize(pid, ptrace::OPTIONS_PUPPET)
            .and_then(|()| ptrace::interrupt(pid))
            .map_err(|e| Error::system(format!("tracing the new process {pid}"), e))?;
        wait_stop(pid)?;
        body.regs = ptrace::regs(pid).map_err(|e| Error::system(format!("reading the registers of {pid}"), e))?;
        body.threads.push(Runner::new(pid, pid)?);
        body.leave_our_rseq()?;
        body.map_scratch(keep_free)?;
        body.empty()?;
        Ok(body)
    }

    /// The copy of our thread is registered for restartable sequences in memory that is about to go.
    fn leave_our_rseq(&mut self) -> Result<()> {
        const RSEQ_FLAG_UNREGISTER: u64 = 1;
        let rseq = ptrace::rseq(self.pid).unwrap_or_default();
        if rseq.address == 0 {
            return Ok(());
        }
        let args = [rseq.address, u64::from(rseq.size), RSEQ_FLAG_UNREGISTER, u64::from(rseq.signature)];
        self.bootstrap(&Call::new(libc::SYS_rseq, &args), "rseq").map(drop)
    }

    fn map_scratch(&mut self, keep_free: &[(u64, u64)]) -> Result<()> {
        let own =
            procfs::maps(self.pid).map_err(|e| Error::system(format!("reading the mappings of {}", self.pid), e))?;
        let mut taken: Vec<(u64, u64)> =
            own.iter().map(|v| (v.start, v.end)).chain(keep_free.iter().copied()).collect();
        taken.sort_unstable();
        let mut base = 1 << 32;
        for (start, end) in taken {
            if base + Scratch::LEN <= start {
                break;
            }
            base = base.max(end);
        }
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let code = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let data = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        self.bootstrap(&Call::new(libc::SYS_mmap, &[base, Scratch::LEN, code, flags, u64::MAX, 0]), "mmap")?;
        let writable = [base + Scratch::CODE_LEN, Scratch::LEN - Scratch::CODE_LEN, data];
        self.bootstrap(&Call::new(libc::SYS_mprotect, &writable), "mprotect")?;
        self.scratch = Scratch { base };
        self.threads[0].install(self.scratch)
    }

    /// One call by way of the copy of our own code.
    fn bootstrap(&mut self, call: &Call, name: &str) -> Result<u64> {
        let regs = self.regs;
        let result = self.threads[0].single(stub::syscall_instruction(), &regs, call)?;
        crate::remote::kernel_result(result)
            .map_err(|e| Error::system(format!("{name} in the new process {}", self.pid), e))
    }

    fn empty(&mut self) -> Result<()> {
        let own =
            procfs::maps(self.pid).map_err(|e| Error::system(format!("reading the mappings of {}", self.pid), e))?;
        let ours = self.scratch.base..self.scratch.base + Scratch::LEN;
        let calls = own
            .iter()
            .filter(|v| v.name != "[vsyscall]" && !ours.contains(&v.start))
            .map(|v| Call::new(libc::SYS_munmap, &[v.start, v.len()]))
            .collect();
        self.run(0, calls, "emptying the new process").map(drop)
    }

    /// Makes a child of this process: a copy of it as it is now, stopped, with the pid that it had. `flags`: of `clone(2)`.
    ///
    /// # Errors
    /// When the pid is taken, or the kernel refuses.
    pub fn fork(&mut self, pid: i32, exit_signal: i32, flags: u64) -> Result<Self> {
        let exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { exit_signal as u64 } else { 0 };
        self.clone_with(clone::CloneArgs { flags, exit_signal, ..Default::default() }, pid, "process")?;
        // From here on dropping the body ends the process.
        let mut body = Self {
            pid,
            threads: Vec::new(),
            head: None,
            scratch: self.scratch,
            regs: self.regs,
            under_way: None,
            released: false,
        };
        wait_stop(pid)?;
        body.regs = ptrace::regs(pid).map_err(|e| Error::system(format!("reading the registers of {pid}"), e))?;
        body.threads.push(Runner::new(pid, pid)?);
        Ok(body)
    }

    /// The pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Addresses of our scratch mapping.
    pub fn own_range(&self) -> std::ops::Range<u64> {
        self.scratch.base..self.scratch.base + Scratch::LEN
    }

    /// Runs calls on thread `index`; every one must succeed. Gives back their results.
    ///
    /// # Errors
    /// The first call that failed, with `what` and its place.
    pub fn run(&mut self, index: usize, mut calls: Vec<Call>, what: &str) -> Result<Vec<u64>> {
        self.try_run(index, &mut calls)?;
        outcomes(&calls, what)
    }

    /// Starts calls on the first thread and does not wait for them: whatever else the process is to do waits.
    ///
    /// # Errors
    /// When the process dies. What single calls answer is looked at later.
    pub fn start(&mut self, mut calls: Vec<Call>, what: &'static str) -> Result<()> {
        self.settle()?;
        let (scratch, regs) = (self.scratch, self.regs);
        self.threads[0].start(scratch, &regs, &mut calls)?;
        self.under_way = Some((calls, what));
        Ok(())
    }

    /// Waits for what was started. Reads must have given all that was asked for.
    ///
    /// # Errors
    /// The first call that failed.
    pub fn settle(&mut self) -> Result<()> {
        let Some((mut calls, what)) = self.under_way.take() else { return Ok(()) };
        self.threads[0].finish(self.scratch, &mut calls)?;
        let done = outcomes(&calls, what)?;
        let is_short = |(call, got): (&Call, &u64)| call.number == libc::SYS_pread64 && call.args[2] != *got;
        if calls.iter().zip(&done).any(is_short) {
            return Err(Error::system("reading an image (it is shorter than its index says)", Errno::EIO));
        }
        Ok(())
    }

    /// Runs calls on thread `index`; what they answered is for the caller to judge.
    ///
    /// # Errors
    /// When the process dies.
    pub fn try_run(&mut self, index: usize, calls: &mut [Call]) -> Result<()> {
        self.settle()?;
        let (scratch, regs) = (self.scratch, self.regs);
        self.threads[index].run(scratch, &regs, calls, &[])
    }

    /// Where [`Body::put`] puts bytes.
    pub fn data(&self) -> u64 {
        self.scratch.data()
    }

    /// Most bytes that [`Body::put`] takes.
    pub const ROOM: usize = Scratch::DATA_LEN as usize;

    /// Puts bytes at [`Body::data`], for calls to read.
    ///
    /// # Errors
    /// When the process died.
    pub fn put(&self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= Self::ROOM, "{} bytes do not fit into the scratch mapping", bytes.len());
        vm::write(self.threads[0].tid, self.data(), bytes)
            .map_err(|e| Error::system(format!("writing to the new process {}", self.pid), e))
    }

    /// Adds a thread with the number that it had.
    ///
    /// # Errors
    /// When the number is taken.
    pub fn add_thread(&mut self, tid: i32) -> Result<usize> {
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        self.clone_with(clone::CloneArgs { flags: flags as u64, ..Default::default() }, tid, "thread")?;
        wait_stop(tid)?;
        self.threads.push(Runner::new(self.pid, tid)?);
        Ok(self.threads.len() - 1)
    }

    /// Makes the first of the threads that outlive the main one. From here on it is the first in all: what it makes (children
    /// whose parent's thread ends are told of that) and what is asked of thread 0.
    ///
    /// # Errors
    /// When the number is taken.
    pub fn give_successor(&mut self, tid: i32) -> Result<()> {
        self.add_thread(tid)?;
        self.head = Some(self.threads.remove(0));
        Ok(())
    }

    /// Runs calls on a main thread that is to end; every one must succeed.
    ///
    /// # Errors
    /// The first call that failed, with `what`.
    pub fn run_head(&mut self, mut calls: Vec<Call>, what: &str) -> Result<()> {
        let (scratch, regs) = (self.scratch, self.regs);
        let Some(head) = &mut self.head else { return Ok(()) };
        head.run(scratch, &regs, &mut calls, &[])?;
        let failed = calls.iter().find_map(|c| c.outcome().err());
        failed.map_or(Ok(()), |e| Err(Error::system(format!("{what} of pid {}", self.pid), e)))
    }

    /// Has the main thread end by itself, which is the last that it does. Nobody may trace it then: it would be left to its
    /// tracer to notice, when the others have ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn lose_head(&mut self, code: u8) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let Some(head) = self.head.take() else { return Ok(()) };
        let failed = |e| Error::system(format!("ending the main thread of pid {}", self.pid), e);
        let exit = Regs {
            rip: self.scratch.code() + stub::syscall_offset(),
            rax: libc::SYS_exit as u64,
            rdi: code.into(),
            orig_rax: u64::MAX,
            ..self.regs
        };
        head.set_regs(&exit)?;
        // Whatever is pending is for the others.
        ptrace::set_sigmask(head.tid, u64::MAX).map_err(failed)?;
        ptrace::detach(head.tid, 0).map_err(failed)?;
        let started = Instant::now();
        while procfs::stat(head.tid).is_ok_and(|s| s.first().is_none_or(|state| state != "Z")) {
            if started.elapsed() > PATIENCE {
                return Err(failed(Errno::ETIMEDOUT));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        procfs::find_voice(self.pid);
        Ok(())
    }

    fn clone_with(&mut self, args: clone::CloneArgs, tid: i32, kind: &str) -> Result<()> {
        let set_tid = self.data() + clone::CLONE_ARGS_SIZE as u64;
        let args = clone::CloneArgs { set_tid, set_tid_size: 1, ..args };
        let mut bytes = args.to_bytes().to_vec();
        bytes.extend_from_slice(&tid.to_le_bytes());
        self.put(&bytes)?;
        let mut failed = None;
        let made = patiently(tid, || {
            let mut calls = [Call::new(libc::SYS_clone3, &[self.data(), clone::CLONE_ARGS_SIZE as u64])];
            failed = self.try_run(0, &mut calls).err();
            calls[0].outcome()
        });
        if let Some(e) = failed {
            return Err(e);
        }
        made.map(drop).map_err(|e| match e {
            Errno::EEXIST => taken(tid, kind),
            e => Error::system(format!("making {kind} {tid}"), e),
        })
    }

    /// Has the process end as `wait(2)` is to tell of it, and leaves it to its parent to notice.
    ///
    /// # Errors
    /// When it does not.
    pub fn end_as(mut self, status: i32) -> Result<()> {
        let signal = status & 0x7f;
        let (scratch, regs) = (self.scratch, self.regs);
        if signal == 0 {
            self.threads[0].last_call(
                scratch,
                &regs,
                &Call::new(libc::SYS_exit_group, &[(status >> 8 & 0xff) as u64]),
            )?;
        } else {
            // The copy of us that it is may handle the signal, and must not write a core file.
            task::prlimit(self.pid, libc::RLIMIT_CORE, Some((0, 0)))
                .map_err(|e| Error::system(format!("setting a limit of pid {}", self.pid), e))?;
            if ![libc::SIGKILL, libc::SIGSTOP].contains(&signal) {
                self.put(&[0; 32])?;
                let default = Call::new(libc::SYS_rt_sigaction, &[signal as u64, self.data(), 0, 8]);
                self.run(0, vec![default], "preparing its end")?;
            }
            self.threads[0].die_by(scratch, &regs, signal)?;
        }
        self.released = true;
        self.bury()
    }

    /// Stops the process as job control would, by `signal`, while we go on tracing it: nothing but registers and signal mask
    /// may be set afterwards.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(&mut self, signal: i32) -> Result<()> {
        let failed = |e| Error::system(format!("stopping pid {} as it was", self.pid), e);
        let tids: Vec<i32> = self.threads.iter().map(|t| t.tid).collect();
        for tid in &tids {
            ptrace::set_sigmask(*tid, !(1 << (signal - 1))).map_err(failed)?;
        }
        // The first thread takes the signal, the others follow it.
        task::send(self.pid, tids[0], signal).map_err(failed)?;
        for tid in tids {
            let mut deliver = 0;
            loop {
                ptrace::cont(tid, deliver).map_err(failed)?;
                match task::wait_change(tid).map_err(failed)? {
                    Change::Trapped { signal: by, event: ptrace::EVENT_STOP } if by == signal => break,
                    Change::Trapped { signal: by, event: 0 } if by == signal => deliver = signal,
                    Change::Trapped { .. } => deliver = 0,
                    Change::Ended => return Err(Error::JobGone { pid: self.pid, during: "the restore" }),
                }
            }
        }
        Ok(())
    }

    /// Ends a helper, so that nobody notices.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn vanish(mut self, parent: Option<&mut Self>) -> Result<()> {
        let failed = |e| Error::system("ending a helper", e);
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).map_err(failed)?;
        self.released = true;
        self.bury()?;
        if let Some(parent) = parent {
            let reap = Call::new(libc::SYS_wait4, &[self.pid as u64, 0, libc::__WALL as u64, 0]);
            parent.run(0, vec![reap], "reaping a helper")?;
        }
        Ok(())
    }

    /// Waits for an ended process: what is our own child is gone then, and others are their parents' to notice.
    fn bury(&self) -> Result<()> {
        task::wait_end(self.pid).map_err(|e| Error::system(format!("waiting for the end of {}", self.pid), e))
    }

    /// The runner of thread `index`, and what is needed to use it.
    pub fn thread(&mut self, index: usize) -> (&mut Runner, Scratch, Regs) {
        (&mut self.threads[index], self.scratch, self.regs)
    }

    /// Takes our mapping out, with the `syscall` instruction at `at` in the process's own code.
    ///
    /// # Errors
    /// When the process dies.
    pub fn remove_scratch(&mut self, at: u64) -> Result<()> {
        let regs = self.regs;
        let call = Call::new(libc::SYS_munmap, &[self.scratch.base, Scratch::LEN]);
        let result = self.threads[0].single(at, &regs, &call)?;
        crate::remote::kernel_result(result)
            .map(drop)
            .map_err(|e| Error::system(format!("munmap in the new process {}", self.pid), e))
    }

    /// Lets every thread go, with the registers that were set last.
    ///
    /// # Errors
    /// When one could not be let go: then the process is ended.
    pub fn release(mut self) -> Result<()> {
        for thread in &self.threads {
            match ptrace::detach(thread.tid, 0) {
                // Those that run before it may end it, and wait for it.
                Err(Errno::ESRCH) => freeze::owe(self.pid, thread.tid),
                other => other.map_err(|e| Error::system(format!("letting thread {} go", thread.tid), e))?,
            }
        }
        self.released = true;
        Ok(())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.released {
            let pid = nix::unistd::Pid::from_raw(self.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            // Its threads are tracees that nobody else waits for; the main one is our child.
            for thread in self.threads.iter().rev().map(|t| t.tid).chain([self.pid]) {
                let _ = task::wait_end(thread);
            }
        }
    }
}

/// The results of calls of which none may have failed.
fn outcomes(calls: &[Call], what: &str) -> Result<Vec<u64>> {
    let outcome = |call: &Call| {
        let context = || format!("{what} (system call {} with {:x?})", call.number, call.args);
        call.outcome().map_err(|e| Error::system(context(), e))
    };
    calls.iter().map(outcome).collect()
}

fn spawn(pid: i32, exit_signal: i32) -> Result<()> {
    let old = clone::block_signals().map_err(|e| Error::system("blocking signals", e))?;
    let spawned = patiently(pid, || clone::spawn_puppet(pid, exit_signal));
    old.thread_set_mask().map_err(|e| Error::system("restoring the signal mask", e))?;
    spawned.map_err(|e| match e {
        Errno::EEXIST => taken(pid, "process"),
        Errno::EPERM => Error::NotHere {
            what: format!("pid {pid}"),
            why: "choosing a pid takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN".to_owned(),
            todo: "run cr as root".to_owned(),
        },
        Errno::EINVAL => Error::NotHere {
            what: format!("pid {pid}"),
            why: "it is above /proc/sys/kernel/pid_max here".to_owned(),
            todo: "raise that limit".to_owned(),
        },
        e => Error::system(format!("making a process with pid {pid}"), e),
    })
}

/// A number stays taken for a moment after its process has gone from `/proc`.
fn patiently<T>(tid: i32, mut make: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let started = Instant::now();
    loop {
        match make() {
            Err(Errno::EEXIST)
                if started.elapsed() < PATIENCE && !std::fs::exists(format!("/proc/{tid}")).unwrap_or(true) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn taken(tid: i32, kind: &str) -> Error {
    let owner = std::fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
    Error::NotHere {
        what: format!("{kind} {tid}"),
        why: format!("that number is taken by `{}`", owner.trim()),
        todo: "end that process first, or restore with --pid-namespace".to_owned(),
    }
}

fn wait_stop(tid: i32) -> Result<()> {
    loop {
        match task::wait_change(tid).map_err(|e| Error::system(format!("waiting for the new thread {tid}"), e))? {
            Change::Trapped { event: ptrace::EVENT_STOP, .. } => return Ok(()),
            Change::Trapped { .. } => {
                ptrace::cont(tid, 0).map_err(|e| Error::system(format!("tracing the new thread {tid}"), e))?;
            }
            Change::Ended => return Err(Error::JobGone { pid: tid, during: "the restore" }),
        }
    }
}
