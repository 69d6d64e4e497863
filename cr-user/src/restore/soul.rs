//! What makes the emptied process the job again: its attributes, its threads, and what each of them was doing.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::object::credentials;
use crate::object::process;
use crate::object::scheduling;
use crate::object::seccomp::{self, Seccomp};
use crate::object::signals;
use crate::object::threads::{self, Head, Thread, Wait};
use crate::object::timers;
use crate::object::zombies::Zombie;
use crate::procfs::Status;
use crate::remote::frame;
use crate::remote::{Call, restart};
use crate::restore::body::Body;
use crate::restore::saved::{Living, Saved};
use crate::sys::{ptrace, stub};

/// Gives a process that is to be a zombie what is still seen of one.
///
/// # Errors
/// When the kernel refuses something.
pub fn dress(body: &mut Body, zombie: &Zombie) -> Result<()> {
    let mut name = zombie.name.clone();
    name.push(0);
    body.put(&name)?;
    let ids = [u64::from(zombie.uid); 3];
    let calls = vec![
        Call::new(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, body.data()]),
        Call::new(libc::SYS_setresuid, &ids),
    ];
    body.run(0, calls, "making a process that is to end").map(drop)
}

/// Makes the threads, and gives each what it had. What takes privilege comes before the credentials.
///
/// # Errors
/// When the kernel refuses something, or a thread's number is taken.
pub fn breathe(body: &mut Body, saved: &Living, job: &Saved) -> Result<()> {
    let (calls, bytes) = signals::restore_calls(&saved.signals, body.data());
    body.put(&bytes)?;
    body.run(0, calls, "setting the signal actions")?;
    // The first one is there, whichever it is.
    for thread in &saved.threads.all[1..] {
        body.add_thread(thread.tid)?;
    }
    job.cgroups.enter(body.pid(), true);
    for (index, thread) in saved.threads.all.iter().enumerate() {
        own_calls(body, index, thread, saved)?;
        queue_signals(body, index, thread.tid, saved)?;
    }
    queue_shared_signals(body, saved)?;
    process::restore_knobs(&saved.process)?;
    saved.scheduling.threads.iter().try_for_each(scheduling::restore)?;
    let threads = saved.signals.threads.iter().flat_map(|t| &t.queued);
    let expired: Vec<i32> = saved.signals.queued.iter().chain(threads).filter_map(|i| saved.timers.own(i)).collect();
    let (calls, bytes) = timers::restore_calls(&saved.timers, &expired, body.data());
    body.put(&bytes)?;
    body.run(0, calls, "setting the timers")?;
    body.run(0, process::memory_calls(&saved.process, &saved.mappings), "setting what holds for all its memory")?;
    if let Some(head) = &saved.threads.head {
        lose_head(body, head, saved)?;
    }
    confine(body, saved, &job.seccomp)?;
    for (index, thread) in saved.threads.all.iter().enumerate() {
        take_credentials(body, index, thread.tid, saved)?;
    }
    body.run(0, process::late_calls(&saved.process), "making it dumpable").map(drop)
}

/// Has the main thread end, as it did long ago, with what is still seen of it.
fn lose_head(body: &mut Body, head: &Head, saved: &Living) -> Result<()> {
    let mut name = head.name.clone();
    name.push(0);
    body.put(&name)?;
    let set_name = Call::new(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, body.data()]);
    body.run_head(vec![set_name], "naming the main thread")?;
    if let Some(own) = saved.credentials.threads.iter().find(|t| t.tid == body.pid()) {
        let (calls, bytes) = credentials::restore_calls(own, bounding_set(body, body.pid())?, body.data());
        body.put(&bytes)?;
        body.run_head(calls, "setting the credentials of the main thread")?;
    }
    body.lose_head(head.code)
}

fn bounding_set(body: &Body, tid: i32) -> Result<u64> {
    let status = Status::read(body.pid(), tid);
    status.map(|s| s.mask("CapBnd")).map_err(|e| Error::system(format!("reading the status of thread {tid}"), e))
}

fn own_calls(body: &mut Body, index: usize, thread: &Thread, saved: &Living) -> Result<()> {
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

fn queue_signals(body: &mut Body, index: usize, tid: i32, saved: &Living) -> Result<()> {
    let queued = saved.signals.threads.iter().find(|t| t.tid == tid).map_or(&[][..], |t| &t.queued);
    queued.iter().filter(|i| saved.timers.own(i).is_none()).try_for_each(|info| queue(body, index, info, false))
}

fn queue_shared_signals(body: &mut Body, saved: &Living) -> Result<()> {
    let queued = saved.signals.queued.iter().filter(|i| saved.timers.own(i).is_none());
    queued.into_iter().try_for_each(|info| queue(body, 0, info, true))
}

fn queue(body: &mut Body, index: usize, info: &[u8], shared: bool) -> Result<()> {
    let info = signals::info(info);
    body.put(&info)?;
    let at = body.data();
    let (runner, ..) = body.thread(index);
    let call = runner.queue_call(&info, at, shared);
    body.run(index, vec![call], "queueing a pending signal again").map(drop)
}

/// Puts the threads under seccomp, and suspends it: what is left to do may be forbidden to them.
fn confine(body: &mut Body, saved: &Living, seccomp: &Seccomp) -> Result<()> {
    let tids: Vec<i32> = saved.threads.all.iter().map(|t| t.tid).collect();
    let steps = seccomp.steps(body.pid(), &tids, body.data());
    if !steps.is_empty() {
        tids.iter().try_for_each(|tid| seccomp::suspend(*tid))?;
    }
    for step in steps {
        let what = format!("putting thread {} under seccomp", tids[step.thread]);
        body.put(&step.bytes)?;
        if body.run(step.thread, vec![step.call], &what)? != [0] {
            return Err(Error::system(what, Errno::EBUSY));
        }
    }
    Ok(())
}

fn take_credentials(body: &mut Body, index: usize, tid: i32, saved: &Living) -> Result<()> {
    let Some(own) = saved.credentials.threads.iter().find(|t| t.tid == tid) else { return Ok(()) };
    let (calls, bytes) = credentials::restore_calls(own, bounding_set(body, tid)?, body.data());
    body.put(&bytes)?;
    body.run(index, calls, &format!("giving thread {tid} its credentials")).map(drop)
}

/// Starts the waits again that the kernel alone knew how to go on with, as long before the thaw as needed and no longer.
///
/// # Errors
/// When a thread dies.
pub fn resume_waits(body: &mut Body, saved: &Living) -> Result<Vec<ptrace::Regs>> {
    let mut all = Vec::new();
    for (index, thread) in saved.threads.all.iter().enumerate() {
        let mut regs = thread.registers();
        match thread.wait {
            None => {}
            Some(Wait::Anew(number)) => {
                regs.orig_rax = number;
                regs = frame::resumed(&regs);
            }
            Some(wait) => {
                let call = wait_call(body, wait, &regs)?;
                let (runner, scratch, base) = body.thread(index);
                let left = runner.interrupted(scratch.code() + stub::syscall_offset(), &base, &call)?;
                regs.rax = left as u64;
                if left != restart::RESTARTBLOCK {
                    // It was over at once (the futex had changed, the time was up): that is its result.
                    regs.orig_rax = u64::MAX;
                }
            }
        }
        all.push(regs);
    }
    Ok(all)
}

/// The interrupted call with the time that was left. All but the time is still in its registers.
fn wait_call(body: &Body, wait: Wait, regs: &ptrace::Regs) -> Result<Call> {
    const FUTEX_WAIT_BITSET: u64 = 9;
    const FUTEX_COMMANDS: u64 = 0x7f;
    let own = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    let left = match wait {
        Wait::Sleep(sleep) => sleep.left,
        Wait::Futex(left) | Wait::Poll(left) => left,
        Wait::Anew(_) => 0,
    };
    let time: Vec<u8> = [left / 1_000_000_000, left % 1_000_000_000].iter().flat_map(|w| w.to_le_bytes()).collect();
    body.put(&time)?;
    Ok(match wait {
        Wait::Sleep(s) => Call::new(libc::SYS_clock_nanosleep, &[s.clock as u64, 0, body.data(), s.report]),
        // Its limit is a point in time, not a duration: it stays.
        Wait::Futex(_) if own[1] & FUTEX_COMMANDS == FUTEX_WAIT_BITSET => Call::new(libc::SYS_futex, &own),
        Wait::Futex(_) => Call::new(libc::SYS_futex, &[own[0], own[1], own[2], body.data(), own[4], own[5]]),
        Wait::Poll(_) => {
            let milliseconds = i32::try_from(left.div_ceil(1_000_000)).unwrap_or(-1);
            Call::new(libc::SYS_poll, &[own[0], own[1], milliseconds as u64])
        }
        Wait::Anew(number) => Call::new(number as i64, &own),
    })
}

/// Puts each thread where it was. After this nothing may be run on its behalf any more.
///
/// # Errors
/// When the CPU cannot hold a thread's state.
pub fn put_in_place(saved: &Living, regs: &[ptrace::Regs]) -> Result<()> {
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
