//! POSIX message queues (`mq_overview(7)`).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::check;

/// What `mq_getattr(3)` says of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Messages that it can hold.
    pub max_messages: i64,
    /// Bytes of the longest.
    pub max_bytes: i64,
    /// Messages that it holds.
    pub messages: i64,
}

/// `mq_open(2)` of a queue by its name, which has no slash here. With `create`, one of that many messages of that many bytes.
///
/// # Errors
/// `ENOENT`, `EEXIST`, `EACCES`; `EINVAL` or `EMFILE` beyond the machine's limits.
pub fn open(name: &CStr, flags: i32, mode: u32, create: Option<(i64, i64)>) -> nix::Result<OwnedFd> {
    // `struct mq_attr`: flags, the two limits, messages, four that are reserved.
    let (messages, bytes) = create.unwrap_or_default();
    let attributes: [i64; 8] = [0, messages, bytes, 0, 0, 0, 0, 0];
    let given = if create.is_some() { attributes.as_ptr() } else { std::ptr::null() };
    // SAFETY: the kernel reads the name up to its zero byte, and the attributes unless they are null; the descriptor returned
    // is new and ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, mode, given))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// `mq_getattr(3)`.
///
/// # Errors
/// `EBADF` when it is no queue.
pub fn attributes(queue: BorrowedFd<'_>) -> nix::Result<Attributes> {
    let mut got = [0i64; 8];
    // SAFETY: the kernel writes one `struct mq_attr`, which is eight longs.
    unsafe {
        let none = std::ptr::null::<i64>();
        check(libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), none, got.as_mut_ptr()))?;
    }
    Ok(Attributes { max_messages: got[1], max_bytes: got[2], messages: got[3] })
}

/// `mq_unlink(2)`; the name has no slash here.
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn unlink(name: &CStr) -> nix::Result<()> {
    // SAFETY: the kernel reads the name up to its zero byte.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}
