//! Processes of a controller's own: starting the job, going to the background, what became of somebody else's child.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};
use tokio::io::unix::AsyncFd;

use crate::sys::check;

/// Which of the two processes this is, after [`split_off`].
#[derive(Debug)]
pub enum Side {
    /// The caller, with the end of a pipe to read from.
    Foreground(File),
    /// Its grandchild in a session of its own, with the end of the pipe to write to.
    Background(File),
}

/// Makes a copy of the calling process that outlives it and its terminal, with a pipe from the copy to the caller.
///
/// # Errors
/// When the kernel makes no process or no pipe.
///
/// # Panics
/// When the process has more than one thread: only the calling one would go on in the copy.
pub fn split_off() -> nix::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "a controller must go to the background before it has threads");
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: there is one thread, so the child's copy of the memory is consistent.
    if let ForkResult::Parent { child } = unsafe { fork()? } {
        drop(writer);
        waitpid(child, None)?;
        return Ok(Side::Foreground(reader.into()));
    }
    drop(reader);
    let second = setsid().and_then(|_| {
        // SAFETY: as above.
        unsafe { fork() }
    });
    match second {
        Ok(ForkResult::Child) => Ok(Side::Background(writer.into())),
        // The caller sees the end of the pipe without a message where the second fork failed.
        Ok(ForkResult::Parent { .. }) | Err(_) => {
            // SAFETY: nothing of the caller's may run here, such as its exit handlers.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Which of the two processes this is, after [`enter_pid_namespace`].
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// The caller; its child is the init of a new pid namespace.
    Outside(Pid),
    /// That child, with `/proc` showing the new namespace.
    Inside,
}

/// Makes a child of the calling process that is the first process of a fresh pid namespace, and has a mount namespace of its
/// own with the right `/proc`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
///
/// # Panics
/// When the process has more than one thread: only the calling one would go on in the child.
pub fn enter_pid_namespace() -> nix::Result<Place> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "a controller must enter a pid namespace before it has threads");
    unshare(CloneFlags::CLONE_NEWPID)?;
    // SAFETY: there is one thread, so the child's copy of the memory is consistent.
    if let ForkResult::Parent { child } = unsafe { fork()? } {
        return Ok(Place::Outside(child));
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, nothing)?;
    Ok(Place::Inside)
}

/// Has `command` run with exactly this mask of blocked signals.
pub fn start_with_mask(command: &mut Command, mask: SigSet) -> &mut Command {
    // SAFETY: the closure only makes one async-signal-safe call.
    unsafe { command.pre_exec(move || mask.thread_set_mask().map_err(Into::into)) }
}

/// Has the event loop that runs now wait for a descriptor.
///
/// # Errors
/// `EPERM` for what cannot be waited for, such as regular files.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, which the `AsyncFd` does last.
    Ok(unsafe { AsyncFd::register(fd)? })
}

/// Has the event loop that runs now wait for signals.
///
/// # Errors
/// None that is known.
pub fn watch_signals(fd: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: a `SignalFd` is an `OwnedFd`, see above.
    Ok(unsafe { AsyncFd::register(fd)? })
}

/// `struct pidfd_info` (`include/uapi/linux/pidfd.h`) in its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}
const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: u64 = (3 << 30) | ((size_of::<PidfdInfo>() as u64) << 16) | (0xff << 8) | 0x0b;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The wait status of a process that ended and was reaped by its parent; `None` as long as it was not reaped.
///
/// # Errors
/// `ENOTTY` or `EINVAL` before Linux 6.15, where only the parent learns of it.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> nix::Result<Option<i32>> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: PIDFD_GET_INFO reads and writes one `struct pidfd_info` of the size in its number.
    unsafe { check(libc::c_long::from(libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info)))? };
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
}

/// Our securebits (`capabilities(7)`).
///
/// # Errors
/// None that is known.
pub fn secure_bits() -> nix::Result<u64> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_GET_SECUREBITS) }.into()).map(|bits| bits as u64)
}
