//! What makes the emptied process the job again: its attributes, its threads, and what each of them was doing.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::object::credentials;
use crate::object::process;
use crate::object::scheduling;
use crate::object::signals;
use crate::object::threads::{self, Thread};
use crate::object::timers;
use crate::procfs::Status;
use crate::remote::frame;
use crate::remote::{Call, kernel_result};
use crate::restore::body::Body;
use crate::restore::saved::Saved;
use crate::sys::{ptrace, stub};

/// Makes the threads, and gives each what it had. What takes privilege comes before the credentials.
///
/// # Errors
/// When the kernel refuses something, or a thread's number is taken.
pub fn breathe(body: &mut Body, saved: &Saved) -> Result<()> {
    let (calls, bytes) = signals::restore_calls(&saved.signals, body.data());
    body.put(&bytes)?;
    body.run(0, calls, "setting the signal actions")?;
    for thread in &saved.threads.all[1..] {
        body.add_thread(thread.tid)?;
    }
    for (index, thread) in saved.threads.all.iter().enumerate() {
        own_calls(body, index, thread, saved)?;
        queue_signals(body, index, thread.tid, saved)?;
    }
    queue_shared_signals(body, saved)?;
    process::restore_knobs(&saved.process)?;
    saved.scheduling.threads.iter().try_for_each(scheduling::restore)?;
    let (calls, bytes) = timers::restore_calls(&saved.timers, body.data());
    body.put(&bytes)?;
    body.run(0, calls, "setting the timers")?;
    for (index, thread) in saved.threads.all.iter().enumerate() {
        take_credentials(body, index, thread.tid, saved)?;
    }
    body.run(0, process::late_calls(&saved.process), "making it dumpable").map(drop)
}

fn own_calls(body: &mut Body, index: usize, thread: &Thread, saved: &Saved) -> Result<()> {
    let mut bytes = threads::altstack_bytes(thread).to_vec();
    let mut calls = threads::restore_calls(thread, body.data());
    let name_at = body.data() + bytes.len() as u64;
    bytes.extend_from_slice(&thread.name);
    bytes.push(0);
    calls.push(Call::new(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name_at]));
    if let Some(turns) = saved.scheduling.threads.iter().find(|t| t.tid == thread.tid) {
        calls.extend(scheduling::restore_calls(turns));
    }
    body.put(&bytes)?;
    body.run(index, calls, &format!("restoring thread {}", thread.tid)).map(drop)
}

fn queue_signals(body: &mut Body, index: usize, tid: i32, saved: &Saved) -> Result<()> {
    let queued = saved.signals.threads.iter().find(|t| t.tid == tid).map_or(&[][..], |t| &t.queued);
    queued.iter().try_for_each(|info| queue(body, index, info, false))
}

fn queue_shared_signals(body: &mut Body, saved: &Saved) -> Result<()> {
    saved.signals.queued.iter().try_for_each(|info| queue(body, 0, info, true))
}

fn queue(body: &mut Body, index: usize, info: &[u8], shared: bool) -> Result<()> {
    let info = signals::info(info);
    body.put(&info)?;
    let at = body.data();
    let (runner, ..) = body.thread(index);
    let call = runner.queue_call(&info, at, shared);
    body.run(index, vec![call], "queueing a pending signal again").map(drop)
}

fn take_credentials(body: &mut Body, index: usize, tid: i32, saved: &Saved) -> Result<()> {
    let Some(own) = saved.credentials.threads.iter().find(|t| t.tid == tid) else { return Ok(()) };
    let status = Status::read(body.pid(), tid).map_err(|e| Error::system(format!("reading the status of thread {tid}"), e))?;
    let (calls, bytes) = credentials::restore_calls(own, status.mask("CapBnd"), body.data());
    body.put(&bytes)?;
    body.run(index, calls, &format!("giving thread {tid} its credentials")).map(drop)
}

/// Starts the waits again that the kernel alone knew how to go on with, as long before the thaw as needed and no longer.
///
/// # Errors
/// When a thread dies.
pub fn resume_waits(body: &mut Body, saved: &Saved) -> Result<Vec<ptrace::Regs>> {
    let mut all = Vec::new();
    for (index, thread) in saved.threads.all.iter().enumerate() {
        let regs = thread.registers();
        all.push(match (thread.has_restart_block(), wait_call(body, thread)?) {
            (false, _) => regs,
            // The time left is not known: with its whole time.
            (true, None) => frame::resumed(&regs),
            (true, Some(call)) => {
                let (runner, scratch, base) = body.thread(index);
                let left = runner.interrupted(scratch.code() + stub::syscall_offset(), &base, &call)?;
                let mut regs = regs;
                regs.rax = left as u64;
                if kernel_result(left).is_ok() || left > -512 {
                    // It was over at once (the futex had changed, the time was up).
                    regs.orig_rax = u64::MAX;
                }
                regs
            }
        });
    }
    Ok(all)
}

/// The interrupted call with the time that was left.
fn wait_call(body: &Body, thread: &Thread) -> Result<Option<Call>> {
    let Some(left) = thread.time_left else { return Ok(None) };
    let regs = thread.registers();
    let mut args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    let number = regs.orig_rax as i64;
    let mut time = [0; 16];
    time[..8].copy_from_slice(&(left / 1_000_000_000).to_le_bytes());
    time[8..].copy_from_slice(&(left % 1_000_000_000).to_le_bytes());
    body.put(&time)?;
    match number {
        libc::SYS_nanosleep => args[0] = body.data(),
        libc::SYS_clock_nanosleep => args[2] = body.data(),
        libc::SYS_futex => args[3] = body.data(),
        libc::SYS_poll => args[2] = left.div_ceil(1_000_000),
        _ => return Ok(None),
    }
    Ok(Some(Call { args, ..Call::new(number, &[]) }))
}

/// Puts each thread where it was. After this nothing may be run on its behalf any more.
///
/// # Errors
/// When the CPU cannot hold a thread's state.
pub fn put_in_place(saved: &Saved, regs: &[ptrace::Regs]) -> Result<()> {
    for (thread, regs) in saved.threads.all.iter().zip(regs) {
        let tid = thread.tid;
        let mask = saved.signals.threads.iter().find(|t| t.tid == tid).map_or(0, |t| t.mask);
        let failed = |what: &str, e: Errno| Error::system(format!("setting the {what} of thread {tid}"), e);
        ptrace::set_xstate(tid, &thread.extended_state()).map_err(|e| failed("extended state", e))?;
        ptrace::set_sigmask(tid, mask).map_err(|e| failed("signal mask", e))?;
        ptrace::set_regs(tid, regs).map_err(|e| failed("registers", e))?;
    }
    Ok(())
}
