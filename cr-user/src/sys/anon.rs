//! Making kernel objects that are descriptors and have no name.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::check;

fn own(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: every caller passes what a call answered that makes a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `eventfd2(2)`.
///
/// # Errors
/// `EINVAL` for unknown flags.
pub fn eventfd(count: u32, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::syscall(libc::SYS_eventfd2, count, flags) })
}

/// `timerfd_create(2)`.
///
/// # Errors
/// `EINVAL` for an unknown clock, `EPERM` for one that wakes the machine.
pub fn timerfd(clock: i32, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::syscall(libc::SYS_timerfd_create, clock, flags) })
}

/// `signalfd4(2)`: a new one for the signals of `mask`, bit `n - 1` for signal `n`.
///
/// # Errors
/// `EINVAL` for unknown flags.
pub fn signalfd(mask: u64, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the kernel reads the eight bytes of the mask.
    own(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags) })
}

/// `epoll_create1(2)`.
///
/// # Errors
/// `EINVAL` for unknown flags.
pub fn epoll(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::syscall(libc::SYS_epoll_create1, flags) })
}

/// `inotify_init1(2)`.
///
/// # Errors
/// `EINVAL` for unknown flags, `EMFILE` at the user's limit.
pub fn inotify(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::syscall(libc::SYS_inotify_init1, flags) })
}

/// `inotify_add_watch(2)`: the number of the watch.
///
/// # Errors
/// `ENOENT`, `EACCES`, `ENOSPC` at the user's limit.
pub fn inotify_add(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> nix::Result<i32> {
    // SAFETY: the kernel reads the path up to its zero byte.
    check(unsafe { libc::syscall(libc::SYS_inotify_add_watch, inotify.as_raw_fd(), path.as_ptr(), mask) })
        .map(|wd| wd as i32)
}

/// `inotify_rm_watch(2)`.
///
/// # Errors
/// `EINVAL` when there is no such watch.
pub fn inotify_remove(inotify: BorrowedFd<'_>, watch: i32) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_inotify_rm_watch, inotify.as_raw_fd(), watch) }).map(drop)
}

/// `open_by_handle_at(2)` with `O_PATH`: what a handle of `kind` with these bytes names on the file system of `mount`.
///
/// # Errors
/// `ESTALE` when it is gone, `EPERM` without `CAP_DAC_READ_SEARCH`.
pub fn open_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> nix::Result<OwnedFd> {
    // `struct file_handle`: two 32-bit words, then the bytes; at most MAX_HANDLE_SZ.
    let mut bytes = [0u32; 2 + 32];
    let len = handle.len().min(128);
    bytes[0] = len as u32;
    bytes[1] = kind as u32;
    for (word, part) in bytes[2..].iter_mut().zip(handle[..len].chunks(4)) {
        let mut four = [0; 4];
        four[..part.len()].copy_from_slice(part);
        *word = u32::from_ne_bytes(four);
    }
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads the header and as many bytes as it says, all inside `bytes`.
    own(unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), bytes.as_mut_ptr(), flags) })
}
