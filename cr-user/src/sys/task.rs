//! Attributes of other tasks that are asked for by tid.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::sys::check;

/// Head and length of a thread's list of robust futexes (`get_robust_list(2)`).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn robust_list(tid: i32) -> nix::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the call writes one pointer and one size.
    unsafe { check(libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len))? };
    Ok((head, len))
}

/// `struct sched_attr` in its first version (`include/uapi/linux/sched/types.h`), 56 bytes with utilisation clamps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes of this structure.
    pub size: u32,
    /// `SCHED_OTHER`, `SCHED_FIFO`, …
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value of the fair policies.
    pub nice: i32,
    /// Priority of the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE` (and the slice of the fair policies).
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
    /// Lower clamp of utilisation, 0 to 1024.
    pub util_min: u32,
    /// Upper clamp of utilisation, 0 to 1024.
    pub util_max: u32,
}
const _: () = assert!(size_of::<SchedAttr>() == 56);

/// `sched_getattr(2)`.
///
/// # Errors
/// `ESRCH`.
pub fn sched_getattr(tid: i32) -> nix::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most the size passed.
    unsafe {
        check(libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size_of::<SchedAttr>() as u32, 0))?;
    }
    Ok(attr)
}

/// `sched_setattr(2)`.
///
/// # Errors
/// `EPERM`, `EINVAL`, `EBUSY`.
pub fn sched_setattr(tid: i32, attr: &SchedAttr) -> nix::Result<()> {
    // SAFETY: the kernel reads the structure, whose size is in its first field.
    unsafe { check(libc::syscall(libc::SYS_sched_setattr, tid, std::ptr::from_ref(attr), 0))? };
    Ok(())
}

/// The mask of CPUs that the thread may run on, as the kernel's words in bytes.
///
/// # Errors
/// `ESRCH`.
pub fn affinity(tid: i32) -> nix::Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: the kernel writes at most `mask.len()` bytes and returns how many.
    let n = unsafe { check(libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()))? };
    mask.truncate(n as usize);
    Ok(mask)
}

/// `sched_setaffinity(2)`.
///
/// # Errors
/// `EINVAL` when none of the CPUs exists here.
pub fn set_affinity(tid: i32, mask: &[u8]) -> nix::Result<()> {
    // SAFETY: the kernel reads `mask.len()` bytes.
    unsafe { check(libc::syscall(libc::SYS_sched_setaffinity, tid, mask.len(), mask.as_ptr()))? };
    Ok(())
}

/// Sets the nice value of the calling thread alone (`setpriority(2)`); where it has none of its own, the priority of what it reads and
/// writes follows.
///
/// # Errors
/// `EACCES` when it is lower than before, without privilege.
pub fn set_own_nice(nice: i32) -> nix::Result<()> {
    // SAFETY: no memory is passed. To the kernel, unlike to POSIX, 0 is the calling thread.
    unsafe { check(libc::c_long::from(libc::setpriority(libc::PRIO_PROCESS, 0, nice))) }.map(drop)
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// `ioprio_get(2)` of one thread.
///
/// # Errors
/// `ESRCH`.
pub fn ioprio(tid: i32) -> nix::Result<i32> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid)).map(|v| v as i32) }
}

/// `ioprio_set(2)` of one thread.
///
/// # Errors
/// `EPERM`, `EINVAL`.
pub fn set_ioprio(tid: i32, ioprio: i32) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, ioprio))? };
    Ok(())
}

/// Soft and hard limit of one resource of another process (`prlimit(2)`), optionally replaced.
///
/// # Errors
/// `EPERM` when the limit may not be changed, `EINVAL` for an unknown resource.
pub fn prlimit(pid: i32, resource: u32, new: Option<(u64, u64)>) -> nix::Result<(u64, u64)> {
    let new = new.map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard });
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let new_ptr = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `new_ptr` is null or a live `rlimit64`; `old` is written once.
    unsafe { check(libc::syscall(libc::SYS_prlimit64, pid, resource, new_ptr, &raw mut old))? };
    Ok((old.rlim_cur, old.rlim_max))
}

/// Sends a signal to one thread (`tgkill(2)`).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn send(pid: i32, tid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::syscall(libc::SYS_tgkill, pid, tid, signal)) }.map(drop)
}

/// How a child or tracee changed state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stopped under ptrace: the signal, and the event (`PTRACE_EVENT_*`, 0 for none).
    Trapped {
        /// The stop's signal.
        signal: i32,
        /// The stop's event.
        event: i32,
    },
    /// Ended: nothing was reaped yet.
    Ended,
}

/// Waits for `tid` to stop or end. A stop is consumed; an end is left for whoever reaps.
///
/// # Errors
/// `ECHILD` when `tid` is neither child nor tracee (any more).
pub fn wait_change(tid: i32) -> nix::Result<Change> {
    let peek = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
    let info = wait_id(tid, peek)?;
    // SAFETY: `waitid` filled the SIGCHLD part of the union.
    let (code, status) = (info.si_code, unsafe { info.si_status() });
    if matches!(code, libc::CLD_TRAPPED | libc::CLD_STOPPED) {
        wait_id(tid, libc::WSTOPPED | libc::__WALL)?;
        return Ok(Change::Trapped { signal: status & 0xff, event: status >> 8 });
    }
    Ok(Change::Ended)
}

/// As [`wait_change`], without waiting: `None` when nothing has happened yet.
///
/// # Errors
/// `ECHILD` when `tid` is neither child nor tracee (any more).
pub fn poll_change(tid: i32) -> nix::Result<Option<Change>> {
    // Mostly it has stopped. That it has ended is only looked at, as by `wait_change`.
    if let Ok(stopped) = wait_id(tid, libc::WSTOPPED | libc::WNOHANG | libc::__WALL) {
        // SAFETY: `waitid` filled the SIGCHLD part of the union, or left it zeroed.
        let (pid, status) = unsafe { (stopped.si_pid(), stopped.si_status()) };
        if pid != 0 {
            return Ok(Some(Change::Trapped { signal: status & 0xff, event: status >> 8 }));
        }
    }
    let info = wait_id(tid, libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL)?;
    // SAFETY: `waitid` filled the SIGCHLD part of the union, or left it zeroed.
    if unsafe { info.si_pid() } == 0 { Ok(None) } else { wait_change(tid).map(Some) }
}

/// As [`wait_change`], and gives up after so long: `None`. The end of a main thread is told only when we have heard of all others
/// of its process.
///
/// # Errors
/// `ECHILD` when `tid` is neither child nor tracee (any more).
pub fn wait_change_for(tid: i32, patience: Duration) -> nix::Result<Option<Change>> {
    /// What is asked of a thread seldom takes longer; sleeping would.
    const AWAKE: Duration = Duration::from_millis(2);
    let started = Instant::now();
    loop {
        let change = poll_change(tid)?;
        let waited = started.elapsed();
        if change.is_some() || waited > patience {
            return Ok(change);
        }
        if waited < AWAKE { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(100)) }
    }
}

/// Reaps an ended `tid`: `Ok(Some((code, status)))` as in `siginfo_t` of SIGCHLD, `None` when it still runs.
///
/// # Errors
/// `ECHILD` when it is not ours to reap.
pub fn reap(tid: i32) -> nix::Result<Option<(i32, i32)>> {
    let info = wait_id(tid, libc::WEXITED | libc::WNOHANG | libc::__WALL)?;
    // SAFETY: `waitid` filled the SIGCHLD part of the union, or left it zeroed.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some((info.si_code, status)))
}

/// Waits until `tid` has ended, and reaps it.
///
/// # Errors
/// `ECHILD` when it is not ours to wait for.
pub fn wait_end(tid: i32) -> nix::Result<()> {
    wait_id(tid, libc::WEXITED | libc::__WALL).map(drop)
}

fn wait_id(tid: i32, options: i32) -> nix::Result<libc::siginfo_t> {
    loop {
        // SAFETY: an all-zero siginfo is valid, and the call writes one.
        let (ret, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (libc::waitid(libc::P_PID, tid as libc::id_t, &raw mut info, options), info)
        };
        match check(libc::c_long::from(ret)) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(info),
        }
    }
}
