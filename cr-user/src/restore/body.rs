//! A new process that is nothing yet: stopped, emptied, and ready to be told what to do.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::procfs;
use crate::remote::{Call, Runner, Scratch};
use crate::sys::ptrace::{self, Regs};
use crate::sys::task::{self, Change};
use crate::sys::{clone, stub, vm};

/// The process under construction. It dies with us, and when this is dropped before it was let go.
#[derive(Debug)]
pub struct Body {
    pid: i32,
    /// Runners of its threads, the main one first.
    threads: Vec<Runner>,
    scratch: Scratch,
    /// Registers to make calls from.
    regs: Regs,
    released: bool,
}

impl Body {
    /// Makes the process with the pid that it had, stops it, and takes everything out of its address space but the kernel's
    /// entry and our scratch mapping, which lies where nothing of `keep_free` (first byte, past the last) will come to lie.
    ///
    /// # Errors
    /// When the pid is taken, or the kernel refuses.
    pub fn make(pid: i32, keep_free: &[(u64, u64)]) -> Result<Self> {
        spawn(pid)?;
        // From here on dropping the body ends the process.
        let mut body =
            Self { pid, threads: Vec::new(), scratch: Scratch { base: 0 }, regs: ptrace::no_regs(), released: false };
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
        let outcome = |call: &Call| {
            let context = || format!("{what} (system call {} with {:x?})", call.number, call.args);
            call.outcome().map_err(|e| Error::system(context(), e))
        };
        calls.iter().map(outcome).collect()
    }

    /// Runs calls on thread `index`; what they answered is for the caller to judge.
    ///
    /// # Errors
    /// When the process dies.
    pub fn try_run(&mut self, index: usize, calls: &mut [Call]) -> Result<()> {
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
        vm::write(self.pid, self.data(), bytes)
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
        let set_tid_at = self.data() + clone::CLONE_ARGS_SIZE as u64;
        let args = clone::CloneArgs { flags: flags as u64, set_tid: set_tid_at, set_tid_size: 1, ..Default::default() };
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
        made.map_err(|e| match e {
            Errno::EEXIST => taken(tid, "thread"),
            e => Error::system(format!("making thread {tid}"), e),
        })?;
        wait_stop(tid)?;
        self.threads.push(Runner::new(self.pid, tid)?);
        Ok(self.threads.len() - 1)
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
            ptrace::detach(thread.tid, 0).map_err(|e| Error::system(format!("letting thread {} go", thread.tid), e))?;
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

fn spawn(pid: i32) -> Result<()> {
    let old = clone::block_signals().map_err(|e| Error::system("blocking signals", e))?;
    let spawned = patiently(pid, || clone::spawn_puppet(pid));
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
        todo: "end that process first, or restore inside a fresh pid namespace (unshare --pid --fork --mount-proc)"
            .to_owned(),
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
