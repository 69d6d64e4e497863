//! Descriptors of other processes, and closing what a new process inherited.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

use crate::sys::check;

/// `pidfd_open(2)`.
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` for a thread that is not a group leader.
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    pidfd_open_with(pid, 0)
}

/// The pidfd is of a single thread, which need not be the main one (Linux 6.9 and later).
pub const PIDFD_THREAD: i32 = libc::O_EXCL;

/// `pidfd_open(2)` with flags (`PIDFD_NONBLOCK`, `PIDFD_THREAD`).
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` for unknown flags.
pub fn pidfd_open_with(pid: i32, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// `pidfd_getfd(2)`: a duplicate of descriptor `fd` of the process behind `pidfd`.
///
/// # Errors
/// `EBADF` when the process has no such descriptor, `EPERM` when it may not be traced.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// `pidfd_send_signal(2)` without siginfo: a signal that cannot hit another process that took over the pid.
///
/// # Errors
/// `ESRCH` when the process is gone.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    // SAFETY: a null siginfo is allowed and no other memory is passed.
    unsafe {
        check(libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0))?;
    }
    Ok(())
}

/// A pidfd of a process that has ended and was waited for.
///
/// # Errors
/// When no process can be made.
pub fn pidfd_of_nobody(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the child is a copy of the caller that only makes one async-signal-safe call.
    let child = unsafe {
        match nix::unistd::fork()? {
            nix::unistd::ForkResult::Child => libc::_exit(0),
            nix::unistd::ForkResult::Parent { child } => child,
        }
    };
    let fd = pidfd_open_with(child.as_raw(), flags);
    crate::sys::task::wait_end(child.as_raw())?;
    fd
}

/// Compares the open file descriptions behind descriptor `fd1` of `pid1` and `fd2` of `pid2` (`kcmp(2)`): equal when they
/// are one, else in an order that holds until reboot and means nothing.
///
/// # Errors
/// `EPERM`, `ESRCH` or `EBADF`.
pub fn compare_descriptions(pid1: i32, fd1: RawFd, pid2: i32, fd2: RawFd) -> nix::Result<Ordering> {
    const KCMP_FILE: i32 = 0;
    kcmp(pid1, pid2, KCMP_FILE, fd1.into(), fd2.into())
}

/// What two tasks may share: the kinds of `kcmp(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// The address space.
    Memory = 1,
    /// The table of descriptors.
    Files = 2,
    /// Directories and umask.
    Directories = 3,
    /// Signal handlers.
    Handlers = 4,
}

/// Compares what two tasks have of one kind (`kcmp(2)`): equal when it is one, else in an order that holds until reboot and
/// means nothing.
///
/// # Errors
/// `EPERM` or `ESRCH`.
pub fn compare(tid1: i32, tid2: i32, what: Shared) -> nix::Result<Ordering> {
    kcmp(tid1, tid2, what as i32, 0, 0)
}

/// Whether two tasks share something.
///
/// # Errors
/// `EPERM` or `ESRCH`.
pub fn shares(tid1: i32, tid2: i32, what: Shared) -> nix::Result<bool> {
    compare(tid1, tid2, what).map(Ordering::is_eq)
}

/// Whether two threads have one table of descriptors.
///
/// # Errors
/// `EPERM` or `ESRCH`.
pub fn same_table(tid1: i32, tid2: i32) -> nix::Result<bool> {
    shares(tid1, tid2, Shared::Files)
}

/// Compares descriptor `fd` of `pid` with what an epoll set watches (`kcmp(2)`): descriptor `set` of `set_pid`, and in it the
/// entry with the number `watched`, of several with that number the one after `skip` others.
///
/// # Errors
/// `ENOENT` when the set has no such entry; `EPERM`, `ESRCH` or `EBADF`.
pub fn is_watched(pid: i32, fd: RawFd, set_pid: i32, set: RawFd, watched: i32, skip: u32) -> nix::Result<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // `struct kcmp_epoll_slot` of `include/uapi/linux/kcmp.h`.
    let slot = [set as u32, watched as u32, skip];
    // SAFETY: the kernel reads the three words of the slot.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, pid, set_pid, KCMP_EPOLL_TFD, libc::c_long::from(fd), slot.as_ptr()) };
    check(order).map(|order| order == 0)
}

fn kcmp(pid1: i32, pid2: i32, what: i32, index1: libc::c_long, index2: libc::c_long) -> nix::Result<Ordering> {
    // SAFETY: only one kind takes an address, and its caller passes that of a live structure.
    let order = unsafe { check(libc::syscall(libc::SYS_kcmp, pid1, pid2, what, index1, index2))? };
    Ok(match order {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

/// `tee(2)` without waiting: duplicates up to `len` bytes of pipe `from` into pipe `to` and consumes none of them. Returns
/// how many bytes; the boundaries of packets are kept.
///
/// # Errors
/// `EAGAIN` when there is nothing to copy or no room.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> nix::Result<usize> {
    // SAFETY: no memory is passed.
    let n = unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), len, libc::SPLICE_F_NONBLOCK) };
    check(n as libc::c_long).map(|n| n as usize)
}

/// `fcntl(F_DUPFD_CLOEXEC)`-like duplicate at or above `min`, without close-on-exec.
///
/// # Errors
/// `EMFILE` or `EINVAL` when `min` is beyond the limit of open files.
pub fn dup_above(fd: BorrowedFd<'_>, min: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, min)))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// `fcntl(2)` commands that take and return plain integers (`F_GETPIPE_SZ`, `F_SETPIPE_SZ`, `F_GETFL`, `F_SETFL`, …).
///
/// # Errors
/// What the command says.
pub fn fcntl(fd: BorrowedFd<'_>, command: i32, arg: libc::c_long) -> nix::Result<i32> {
    // SAFETY: callers pass commands with integer arguments; the kernel treats `arg` as such and touches no memory.
    unsafe { check(libc::c_long::from(libc::fcntl(fd.as_raw_fd(), command, arg))).map(|v| v as i32) }
}

/// `F_OWNER_TID` (`asm-generic/fcntl.h`).
pub const OWNER_THREAD: i32 = 0;
/// `F_OWNER_PID`.
pub const OWNER_PROCESS: i32 = 1;
/// `F_OWNER_PGRP`.
pub const OWNER_GROUP: i32 = 2;

/// Whom a description signals (`F_GETOWN_EX`): the kind (`F_OWNER_*`) and the number, 0 for nobody.
///
/// # Errors
/// None that is known.
pub fn owner(fd: BorrowedFd<'_>) -> nix::Result<(i32, i32)> {
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: the kernel writes one `struct f_owner_ex`, which is two ints.
    unsafe { check(libc::c_long::from(libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr())))? };
    Ok((owner[0], owner[1]))
}

/// Whose rights signals to the owner are sent with: real and effective user (`F_GETOWNER_UIDS`).
///
/// # Errors
/// `EINVAL` on a kernel without `CONFIG_CHECKPOINT_RESTORE`.
pub fn owner_users(fd: BorrowedFd<'_>) -> nix::Result<(u32, u32)> {
    const F_GETOWNER_UIDS: i32 = 17;
    let mut users = [0u32; 2];
    // SAFETY: the kernel writes two user ids.
    unsafe { check(libc::c_long::from(libc::fcntl(fd.as_raw_fd(), F_GETOWNER_UIDS, users.as_mut_ptr())))? };
    Ok((users[0], users[1]))
}

/// Says whom a description signals (`F_SETOWN_EX`).
///
/// # Errors
/// `ESRCH` when there is no such thread, process or group.
pub fn set_owner(fd: BorrowedFd<'_>, owner: (i32, i32)) -> nix::Result<()> {
    const F_SETOWN_EX: i32 = 15;
    let owner = [owner.0, owner.1];
    // SAFETY: the kernel reads one `struct f_owner_ex`, which is two ints.
    unsafe { check(libc::c_long::from(libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()))) }.map(drop)
}

/// `flock(2)` without waiting.
///
/// # Errors
/// `EAGAIN` when somebody else holds one that is in the way.
pub fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> nix::Result<()> {
    let how = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: no memory is passed.
    unsafe { check(libc::c_long::from(libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB))) }.map(drop)
}

/// Locks a range of bytes for the open file description (`F_OFD_SETLK`), without waiting. `len` 0: up to the end.
///
/// # Errors
/// `EAGAIN` when somebody else holds one that is in the way.
pub fn lock_range(fd: BorrowedFd<'_>, exclusive: bool, start: u64, len: u64) -> nix::Result<()> {
    let lock = libc::flock {
        l_type: if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start as i64,
        l_len: len as i64,
        l_pid: 0,
    };
    // SAFETY: the kernel reads one `struct flock`.
    unsafe { check(libc::c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock))) }.map(drop)
}

/// `FIONREAD`: bytes that can be read at once.
///
/// # Errors
/// What the driver says.
pub fn readable_bytes(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut n)))? };
    Ok(n as usize)
}

/// Marks every descriptor from `first` on close-on-exec (`close_range(2)`): for programs that start jobs, whose own
/// caller may have left descriptors open that no job should inherit.
///
/// # Errors
/// `EINVAL` on kernels before 5.11.
pub fn close_on_exec_from(first: RawFd) -> nix::Result<()> {
    // SAFETY: no memory is passed; no descriptor is closed now.
    unsafe { check(libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)) }.map(drop)
}

/// Opens what is there by a path on which there is no symbolic link, as there is none on a path that the kernel has told. So nobody who
/// may write to a directory on the way can have something else opened.
///
/// # Errors
/// What `openat2(2)` says: `ELOOP` where there is a link.
pub fn open_without_links(path: &Path, flags: i32) -> io::Result<File> {
    // With others besides O_PATH it refuses.
    let others = if flags & libc::O_PATH == 0 { libc::O_CLOEXEC | libc::O_NOCTTY } else { libc::O_CLOEXEC };
    let how = OpenHow::new().flags(OFlag::from_bits_retain(flags | others)).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(AT_FDCWD, path, how)?.into())
}
