//! Running a table of system calls on a stopped thread that has the stub mapped.

use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::procfs::Status;
use crate::remote::{Confinement, freeze, kernel_result};
use crate::sys::ptrace::{self, Regs};
use crate::sys::task::{self, Change};
use crate::sys::{stub, vm};

/// Signals that tell us that a table has run. All are ignored unless the job handles them: harmless should we die before we
/// take the signal back.
const MARKERS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

/// One system call to be made by the tracee.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its number (`libc::SYS_*`).
    pub number: i64,
    /// Its arguments.
    pub args: [u64; 6],
    /// Replaces argument 0 by the result of an earlier call of the same table.
    pub first_from: Option<usize>,
    /// Its result once it ran.
    pub result: i64,
}

impl Call {
    /// A call with up to six arguments.
    pub fn new(number: i64, args: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Self { number, args: all, first_from: None, result: -i64::from(libc::ENOSYS) }
    }

    /// The same call with argument 0 taken from the result of call `index` of the table.
    #[must_use]
    pub fn first_from(mut self, index: usize) -> Self {
        self.first_from = Some(index);
        self
    }

    /// Its outcome.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn outcome(&self) -> nix::Result<u64> {
        kernel_result(self.result)
    }
}

/// A mapping of ours in the address space of the job: stub, frame, table, and room for results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Its first byte, page-aligned.
    pub base: u64,
}

impl Scratch {
    /// Bytes of the mapping.
    pub const LEN: u64 = 0x2_0000;
    /// Bytes from its base that are code, and never writable.
    pub const CODE_LEN: u64 = 0x1000;
    /// Bytes of [`Scratch::data`].
    pub const DATA_LEN: u64 = 0x1_0000;
    const FRAME: u64 = 0x1000;
    const TABLE: u64 = 0x8000;
    const DATA: u64 = 0x1_0000;
    /// Most calls in one table, with the marker.
    pub const MAX_CALLS: usize = ((Self::DATA - Self::TABLE) / stub::ENTRY) as usize - 1;

    /// Where the stub begins.
    pub fn code(self) -> u64 {
        self.base
    }

    /// Where the signal frame lies.
    pub fn frame(self) -> u64 {
        self.base + Self::FRAME
    }

    /// Where the table of calls lies.
    pub fn table(self) -> u64 {
        self.base + Self::TABLE
    }

    /// Where calls may put their results, and find their structures.
    pub fn data(self) -> u64 {
        self.base + Self::DATA
    }
}

/// A stopped thread and the stub.
#[derive(Debug)]
pub struct Runner {
    /// The process, as we see it.
    pub pid: i32,
    /// The thread, as we see it.
    pub tid: i32,
    ns_pid: u64,
    ns_tid: u64,
    marker: i32,
    /// What seccomp would do to its calls without us.
    pub confinement: Option<Confinement>,
    /// Signals that arrived under the marker's number while a table ran, to be queued again.
    pub strays: Vec<ptrace::SigInfo>,
}

impl Runner {
    /// Prepares to run tables on the stopped thread.
    ///
    /// # Errors
    /// When the thread is gone, or every signal that could serve as a marker is pending already.
    pub fn new(pid: i32, tid: i32) -> Result<Self> {
        let status =
            Status::read(pid, tid).map_err(|e| Error::system(format!("reading the status of thread {tid}"), e))?;
        let pending = status.mask("SigPnd") | status.mask("ShdPnd");
        let marker = MARKERS
            .into_iter()
            .find(|s| pending >> (s - 1) & 1 == 0)
            .ok_or_else(|| Error::system(format!("finding a free marker signal for thread {tid}"), Errno::EBUSY))?;
        let innermost = |key: &str| status.numbers(key).last().copied().map(u64::from);
        Ok(Self {
            pid,
            tid,
            ns_pid: innermost("NStgid").unwrap_or(pid as u64),
            ns_tid: innermost("NSpid").unwrap_or(tid as u64),
            marker,
            confinement: Confinement::read(pid, tid, &status)?,
            strays: Vec::new(),
        })
    }

    /// Every signal but the marker: what the thread must block while it runs for us.
    pub fn mask(&self) -> u64 {
        !(1 << (self.marker - 1))
    }

    /// The call that queues a signal for the thread (`rt_tgsigqueueinfo`) or its process (`rt_sigqueueinfo`); its
    /// information lies at `info_at` in the process. The marker is moved off that signal's number, so that it stays queued.
    pub fn queue_call(&mut self, info: &ptrace::SigInfo, info_at: u64, shared: bool) -> Call {
        let signal = i32::from_le_bytes(info[..4].try_into().expect("four bytes"));
        if self.marker == signal {
            self.marker = MARKERS[(MARKERS.iter().position(|m| *m == signal).unwrap_or(0) + 1) % MARKERS.len()];
        }
        if shared {
            Call::new(libc::SYS_rt_sigqueueinfo, &[self.ns_pid, signal as u64, info_at])
        } else {
            Call::new(libc::SYS_rt_tgsigqueueinfo, &[self.ns_pid, self.ns_tid, signal as u64, info_at])
        }
    }

    /// Whether the thread would survive to run this table, or what is left of it, without us.
    pub fn survives(&self, calls: &[Call], tail: &[Call]) -> bool {
        let marker = self.marker_call();
        let mut all = calls.iter().chain([&marker]).chain(tail);
        self.confinement.as_ref().is_none_or(|c| c.spares_return() && all.all(|call| c.spares(call)))
    }

    /// Writes the stub into the code page of a mapped scratch.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn install(&self, scratch: Scratch) -> Result<()> {
        use std::os::unix::fs::FileExt;
        // Through /proc/PID/mem, since the page is never writable for the job.
        let path = format!("/proc/{}/mem", self.tid);
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|f| f.write_all_at(stub::code(), scratch.code()))
            .map_err(|e| Error::system(format!("writing {path}"), e))
    }

    /// Runs `calls` from `regs` (whose stack, segments and flags are kept), and fills in their results. `tail` is run only
    /// if we die before the thread is given its own registers back.
    ///
    /// # Errors
    /// When the thread dies or does something else than run the table. What single calls answer is in [`Call::outcome`].
    pub fn run(&mut self, scratch: Scratch, regs: &Regs, calls: &mut [Call], tail: &[Call]) -> Result<()> {
        let mut start = 0;
        while start < calls.len() {
            let end = end_of_table(calls, start, Scratch::MAX_CALLS - tail.len());
            let chunk = &mut calls[start..end];
            // Places are counted from the beginning of each table.
            for call in chunk.iter_mut() {
                call.first_from = call.first_from.map(|of| of - start);
            }
            self.run_table(scratch, regs, chunk, tail)?;
            start = end;
        }
        Ok(())
    }

    /// Starts `calls`, of which the last ones still run afterwards: [`finish`](Self::finish) waits for them.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn start(&mut self, scratch: Scratch, regs: &Regs, calls: &mut [Call]) -> Result<()> {
        assert!(calls.iter().all(|call| call.first_from.is_none()), "calls that do not need each other's results");
        let (first, last) = calls.split_at_mut(calls.len().saturating_sub(Scratch::MAX_CALLS));
        self.run(scratch, regs, first, &[])?;
        let marker = self.marker_call();
        self.start_table(scratch, regs, &last.iter().chain([&marker]).collect::<Vec<_>>())
    }

    /// Waits for the rest of what was started, and fills in their results.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn finish(&mut self, scratch: Scratch, calls: &mut [Call]) -> Result<()> {
        let last = calls.len().saturating_sub(Scratch::MAX_CALLS);
        self.finish_table(scratch, &mut calls[last..])
    }

    fn run_table(&mut self, scratch: Scratch, regs: &Regs, calls: &mut [Call], tail: &[Call]) -> Result<()> {
        let marker = self.marker_call();
        let all: Vec<&Call> = calls.iter().chain([&marker]).chain(tail).collect();
        self.start_table(scratch, regs, &all)?;
        self.finish_table(scratch, calls)
    }

    fn finish_table(&mut self, scratch: Scratch, calls: &mut [Call]) -> Result<()> {
        self.wait_for_marker()?;
        let mut back = vec![0; calls.len() * stub::ENTRY as usize];
        let range = vm::Range { start: scratch.table(), len: back.len() as u64 };
        vm::read(self.tid, &[range], &mut back)
            .map_err(|e| Error::system(format!("reading the call results of pid {}", self.pid), e))?;
        for (call, entry) in calls.iter_mut().zip(back.chunks(stub::ENTRY as usize)) {
            call.result = i64::from_le_bytes(entry[56..64].try_into().expect("eight bytes"));
        }
        Ok(())
    }

    fn marker_call(&self) -> Call {
        Call::new(libc::SYS_tgkill, &[self.ns_pid, self.ns_tid, self.marker as u64])
    }

    /// Makes a call from which the thread does not come back, and waits for its end.
    ///
    /// # Errors
    /// When it does something else.
    pub fn last_call(&mut self, scratch: Scratch, regs: &Regs, call: &Call) -> Result<()> {
        self.start_table(scratch, regs, &[call])?;
        self.wait_for_end(0)
    }

    /// Has the thread die by a signal, whose action must be the default one, and waits for its end.
    ///
    /// # Errors
    /// When it does something else.
    pub fn die_by(&mut self, scratch: Scratch, regs: &Regs, signal: i32) -> Result<()> {
        let call = Call::new(libc::SYS_tgkill, &[self.ns_pid, self.ns_tid, signal as u64]);
        self.marker = signal;
        self.start_table(scratch, regs, &[&call])?;
        self.wait_for_end(signal)
    }

    fn wait_for_end(&self, deliver: i32) -> Result<()> {
        loop {
            match self.wait()? {
                Change::Ended => return Ok(()),
                Change::Trapped { signal, event: 0 } if signal == deliver => {
                    ptrace::cont(self.tid, signal).map_err(|e| self.gone(e))?;
                }
                Change::Trapped { event: ptrace::EVENT_STOP, .. } => {
                    ptrace::cont(self.tid, 0).map_err(|e| self.gone(e))?;
                }
                Change::Trapped { .. } => {
                    let rip = ptrace::regs(self.tid).map_or(0, |r| r.rip);
                    return Err(self.unexpected(rip));
                }
            }
        }
    }

    /// Writes a table and lets the thread run into it.
    fn start_table(&mut self, scratch: Scratch, regs: &Regs, all: &[&Call]) -> Result<()> {
        let bytes = table(scratch.table(), all);
        vm::write(self.tid, scratch.table(), &bytes)
            .map_err(|e| Error::system(format!("writing the call table of pid {}", self.pid), e))?;
        let mut r = *regs;
        r.rip = scratch.code();
        r.r15 = scratch.table();
        r.r14 = all.len() as u64;
        r.r13 = scratch.frame() + 8;
        r.rsp = scratch.frame();
        r.orig_rax = u64::MAX;
        r.rax = 0;
        self.set_regs(&r)?;
        ptrace::set_sigmask(self.tid, self.mask()).map_err(|e| self.gone(e))?;
        ptrace::cont(self.tid, 0).map_err(|e| self.gone(e))
    }

    /// Makes one call with the `syscall` instruction at `at`, from `regs` with their stack pointer as it is.
    ///
    /// # Errors
    /// When the thread dies or does something else.
    pub fn single(&mut self, at: u64, regs: &Regs, call: &Call) -> Result<i64> {
        let mut r = *regs;
        r.rip = at;
        r.rax = call.number as u64;
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = call.args;
        r.orig_rax = u64::MAX;
        self.set_regs(&r)?;
        ptrace::set_sigmask(self.tid, self.mask()).map_err(|e| self.gone(e))?;
        let mut stops = 0;
        while stops < 2 {
            ptrace::syscall(self.tid).map_err(|e| self.gone(e))?;
            match self.wait()? {
                Change::Trapped { signal: ptrace::SYSCALL_STOP, event: 0 } => stops += 1,
                Change::Trapped { signal, event: 0 } if signal == self.marker => self.stash()?,
                Change::Trapped {
                    event: ptrace::EVENT_STOP | libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK,
                    ..
                } => {}
                Change::Trapped { .. } => return Err(self.unexpected(at)),
                Change::Ended => return Err(self.ended()),
            }
        }
        Ok(ptrace::regs(self.tid).map_err(|e| self.gone(e))?.rax as i64)
    }

    /// Starts a call that will wait, and interrupts it: the kernel then remembers how to go on with it.
    /// Gives back what the call left in `rax`.
    ///
    /// # Errors
    /// When the thread dies or does something else.
    pub fn interrupted(&mut self, at: u64, regs: &Regs, call: &Call) -> Result<i64> {
        let mut r = *regs;
        r.rip = at;
        r.rax = call.number as u64;
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = call.args;
        r.orig_rax = u64::MAX;
        self.set_regs(&r)?;
        ptrace::set_sigmask(self.tid, u64::MAX).map_err(|e| self.gone(e))?;
        let mut stops = 0;
        while stops < 2 {
            ptrace::syscall(self.tid).map_err(|e| self.gone(e))?;
            if stops == 1 {
                ptrace::interrupt(self.tid).map_err(|e| self.gone(e))?;
            }
            match self.wait()? {
                Change::Trapped { signal: ptrace::SYSCALL_STOP, event: 0 } => stops += 1,
                Change::Trapped { event: ptrace::EVENT_STOP, .. } => {}
                Change::Trapped { .. } => return Err(self.unexpected(at)),
                Change::Ended => return Err(self.ended()),
            }
        }
        Ok(ptrace::regs(self.tid).map_err(|e| self.gone(e))?.rax as i64)
    }

    fn wait_for_marker(&mut self) -> Result<()> {
        loop {
            match self.wait()? {
                Change::Trapped { signal, event: 0 } if signal == self.marker => {
                    if self.is_ours()? {
                        return Ok(());
                    }
                    self.stash()?;
                }
                Change::Trapped {
                    event: ptrace::EVENT_STOP | libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK,
                    ..
                } => {}
                Change::Trapped { .. } => {
                    let rip = ptrace::regs(self.tid).map_or(0, |r| r.rip);
                    return Err(self.unexpected(rip));
                }
                Change::Ended => return Err(self.ended()),
            }
            ptrace::cont(self.tid, 0).map_err(|e| self.gone(e))?;
        }
    }

    fn is_ours(&self) -> Result<bool> {
        let info = ptrace::siginfo(self.tid).map_err(|e| self.gone(e))?;
        let int = |at: usize| i32::from_le_bytes(info[at..at + 4].try_into().expect("four bytes"));
        Ok(int(8) == libc::SI_TKILL && int(16) as u64 == self.ns_pid)
    }

    fn stash(&mut self) -> Result<()> {
        self.strays.push(ptrace::siginfo(self.tid).map_err(|e| self.gone(e))?);
        Ok(())
    }

    /// Sets the thread's registers.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn set_regs(&self, regs: &Regs) -> Result<()> {
        ptrace::set_regs(self.tid, regs).map_err(|e| self.gone(e))
    }

    fn wait(&self) -> Result<Change> {
        /// How often it is looked at whether it will ever come: the end of a main thread that is killed is not told while we have
        /// not heard of the other threads, who are waited for by nobody now.
        const PATIENCE: Duration = Duration::from_millis(10);
        loop {
            match task::wait_change_for(self.tid, PATIENCE).map_err(|e| self.gone(e))? {
                Some(change) => return Ok(change),
                None if freeze::has_ended(self.tid) => return Ok(Change::Ended),
                None => {}
            }
        }
    }

    fn gone(&self, e: Errno) -> Error {
        if e == Errno::ESRCH { self.ended() } else { Error::system(format!("tracing thread {}", self.tid), e) }
    }

    fn ended(&self) -> Error {
        Error::JobGone { pid: self.pid, during: "a call on its behalf" }
    }

    fn unexpected(&self, rip: u64) -> Error {
        let what = format!("running a call in thread {} (it stopped at {rip:#x} instead)", self.tid);
        Error::system(what, Errno::EFAULT)
    }
}

/// Where a table ends that begins with call `start` and has `most` calls at most: before a call whose result a later one needs.
fn end_of_table(calls: &[Call], start: usize, most: usize) -> usize {
    let mut end = calls.len().min(start + most);
    while let Some(needed) = calls[end..].iter().filter_map(|c| c.first_from).min().filter(|of| *of < end) {
        assert!(needed > start, "calls that need each other's results fit into one table");
        end = needed;
    }
    end
}

/// The bytes of a table that lies at `at`.
fn table(at: u64, calls: &[&Call]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(calls.len() * stub::ENTRY as usize);
    for (i, call) in calls.iter().enumerate() {
        let entry = at + i as u64 * stub::ENTRY;
        let first = call.first_from.map_or(entry + 64, |of| at + of as u64 * stub::ENTRY + 56);
        for word in [call.number as u64, first, call.args[1], call.args[2], call.args[3], call.args[4], call.args[5]] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&(call.result as u64).to_le_bytes());
        bytes.extend_from_slice(&call.args[0].to_le_bytes());
    }
    bytes
}
