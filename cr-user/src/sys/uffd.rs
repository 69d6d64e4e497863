//! `userfaultfd` driven from outside: the ioctls that arm asynchronous write-protection.
//!
//! Numbers and layouts are those of `include/uapi/linux/userfaultfd.h`.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys::check;

/// Feature: protect pages that are not there yet, of anonymous memory too.
pub const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// Feature: protect shared memory and huge pages of hugetlbfs.
pub const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Feature: the kernel resolves write-protection faults by itself and only the written-bit remains.
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// `userfaultfd(2)` flag: faults from the kernel need not be handled, so no privilege is asked for.
pub const USER_MODE_ONLY: u64 = 1;

#[repr(C)]
struct Api {
    version: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

const _: () = assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32 && size_of::<Range>() == 16);

/// `_IOWR(0xAA, nr, size)`.
const fn iowr(nr: u64, size: usize) -> u64 {
    (3 << 30) | ((size as u64) << 16) | (0xAA << 8) | nr
}

const UFFDIO_API: u64 = iowr(0x3F, size_of::<Api>());
const UFFDIO_REGISTER: u64 = iowr(0x00, size_of::<Register>());
/// `_IOR(0xAA, 1, struct uffdio_range)`.
const UFFDIO_UNREGISTER: u64 = (2 << 30) | ((size_of::<Range>() as u64) << 16) | (0xAA << 8) | 0x01;

const _: () = assert!(UFFDIO_API == 0xc018_aa3f && UFFDIO_REGISTER == 0xc020_aa00 && UFFDIO_UNREGISTER == 0x8010_aa01);

const API: u64 = 0xAA;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// The handshake: turns `features` on.
///
/// # Errors
/// `EINVAL` when the kernel lacks one of them.
pub fn api(uffd: BorrowedFd<'_>, features: u64) -> nix::Result<()> {
    let mut arg = Api { version: API, features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one `struct uffdio_api`, which `Api` mirrors.
    unsafe { check(libc::c_long::from(libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut arg)))? };
    Ok(())
}

/// Registers `[start, start + len)` for write-protection.
///
/// # Errors
/// `EINVAL` for a range without mappings or of a kind that cannot be tracked, `EBUSY` when another userfaultfd has it.
pub fn register_wp(uffd: BorrowedFd<'_>, start: u64, len: u64) -> nix::Result<()> {
    let mut arg = Register { start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: UFFDIO_REGISTER reads and writes one `struct uffdio_register`, which `Register` mirrors.
    unsafe { check(libc::c_long::from(libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut arg)))? };
    Ok(())
}

/// Takes `[start, start + len)` out of tracking.
///
/// # Errors
/// `EINVAL` for a range without mappings.
pub fn unregister(uffd: BorrowedFd<'_>, start: u64, len: u64) -> nix::Result<()> {
    let mut arg = Range { start, len };
    // SAFETY: UFFDIO_UNREGISTER reads one `struct uffdio_range`, which `Range` mirrors.
    unsafe { check(libc::c_long::from(libc::ioctl(uffd.as_raw_fd(), UFFDIO_UNREGISTER, &raw mut arg)))? };
    Ok(())
}

/// A userfaultfd of the calling process, for probing.
///
/// # Errors
/// `ENOSYS` or `EPERM`.
pub fn create() -> nix::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let flags = libc::c_long::from(libc::O_CLOEXEC) | USER_MODE_ONLY as libc::c_long;
        let fd = check(libc::syscall(libc::SYS_userfaultfd, flags))?;
        Ok(std::os::fd::OwnedFd::from_raw_fd(fd as i32))
    }
}
