//! Kernel objects that tell of events and have no name: eventfd, timerfd, signalfd, epoll, inotify.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::check;

/// Takes over the descriptor that a call returned.
///
/// # Safety
/// `ret` must be the return value of a call that makes a descriptor, which nobody else closes.
unsafe fn own(ret: libc::c_int) -> nix::Result<OwnedFd> {
    let fd = check(ret.into())?;
    // SAFETY: the descriptor is new, says our caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `eventfd(2)`.
///
/// # Errors
/// `EINVAL` for unknown flags.
pub fn eventfd(count: u32, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe { own(libc::eventfd(count, flags)) }
}

/// `timerfd_create(2)`.
///
/// # Errors
/// `EPERM` for an alarm clock without `CAP_WAKE_ALARM`, `EINVAL` for an unknown clock.
pub fn timerfd(clock: i32, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe { own(libc::timerfd_create(clock, flags)) }
}

/// `timerfd_gettime(2)`, for its effect: the kernel counts the ticks of a periodic timer up to now. A `read` would do so too.
///
/// # Errors
/// `EINVAL` when it is not a timerfd.
pub fn count_ticks(timer: BorrowedFd<'_>) -> nix::Result<()> {
    let mut time = libc::itimerspec {
        it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: libc::timespec { tv_sec: 0, tv_nsec: 0 },
    };
    // SAFETY: the call writes one `itimerspec`.
    unsafe { check(libc::timerfd_gettime(timer.as_raw_fd(), &raw mut time).into()) }.map(drop)
}

/// `signalfd4(2)`, a new one.
///
/// # Errors
/// `EINVAL` for unknown flags.
pub fn signalfd(mask: u64, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the kernel reads eight bytes of mask; the descriptor returned is new and ours.
    unsafe {
        let ret = libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags);
        own(ret as libc::c_int)
    }
}

/// `epoll_create1(2)`.
///
/// # Errors
/// `EMFILE`.
pub fn epoll(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe { own(libc::epoll_create1(flags)) }
}

/// `struct epoll_params` of `linux/eventpoll.h` as one word: how an epoll set polls network devices. 0 where the kernel cannot
/// tell (before Linux 6.9, or built without), and so none was set.
pub fn busy_poll(set: BorrowedFd<'_>) -> u64 {
    const EPIOCGPARAMS: libc::Ioctl = 0x8008_8a02;
    let mut params = 0u64;
    // SAFETY: the call writes one structure of eight bytes.
    let ret = unsafe { libc::ioctl(set.as_raw_fd(), EPIOCGPARAMS, &raw mut params) };
    if ret == 0 { params } else { 0 }
}

/// Sets what [`busy_poll`] tells.
///
/// # Errors
/// `ENOTTY` where the kernel cannot, `EPERM` for a large budget without `CAP_NET_ADMIN`.
pub fn set_busy_poll(set: BorrowedFd<'_>, params: u64) -> nix::Result<()> {
    const EPIOCSPARAMS: libc::Ioctl = 0x4008_8a01;
    // SAFETY: the call reads one structure of eight bytes.
    unsafe { check(libc::ioctl(set.as_raw_fd(), EPIOCSPARAMS, &raw const params).into()) }.map(drop)
}

/// `inotify_init1(2)`.
///
/// # Errors
/// `EMFILE` when the user has too many.
pub fn inotify(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe { own(libc::inotify_init1(flags)) }
}

/// `inotify_add_watch(2)`: the number of the watch.
///
/// # Errors
/// `ENOENT` when there is nothing at that path, `ENOSPC` when the user has too many watches.
pub fn inotify_add(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> nix::Result<i32> {
    // SAFETY: the path is a zero-terminated string.
    unsafe { check(libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask).into()) }.map(|wd| wd as i32)
}

/// `inotify_rm_watch(2)`.
///
/// # Errors
/// `EINVAL` when there is no such watch.
pub fn inotify_remove(inotify: BorrowedFd<'_>, wd: i32) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::inotify_rm_watch(inotify.as_raw_fd(), wd).into()) }.map(drop)
}

/// Most bytes of a file handle (`MAX_HANDLE_SZ`).
const HANDLE: usize = 128;

/// `open_by_handle_at(2)` with `O_PATH`: the file with this handle on the file system that `mount` lies on.
///
/// # Errors
/// `ESTALE` when there is no such file (any more), `EPERM` without `CAP_DAC_READ_SEARCH`, `EINVAL` when it is no handle.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> nix::Result<OwnedFd> {
    #[repr(C)]
    struct FileHandle {
        bytes: u32,
        kind: i32,
        handle: [u8; HANDLE],
    }
    if handle.len() > HANDLE {
        return Err(nix::errno::Errno::EINVAL);
    }
    let mut whole = FileHandle { bytes: handle.len() as u32, kind, handle: [0; HANDLE] };
    whole.handle[..handle.len()].copy_from_slice(handle);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads the header and as many bytes as it says; the descriptor returned is new and ours.
    unsafe {
        let ret = libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const whole, flags);
        own(ret as libc::c_int)
    }
}
