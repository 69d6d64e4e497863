//! `PAGEMAP_SCAN` on `/proc/PID/pagemap`: which pages have which property.
//!
//! Numbers and layouts are those of `include/uapi/linux/fs.h` (`struct pm_scan_arg`, `struct page_region`).

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys::check;

/// The page's mapping is tracked (registered for asynchronous write-protection).
pub const IS_WPALLOWED: u64 = 1 << 0;
/// The page was written since it was last protected.
pub const IS_WRITTEN: u64 = 1 << 1;
/// The page belongs to a file or to shared memory.
pub const IS_FILE: u64 = 1 << 2;
/// The page is in memory.
pub const IS_PRESENT: u64 = 1 << 3;
/// The page table holds a swap entry or a marker.
pub const IS_SWAPPED: u64 = 1 << 4;
/// The page is the shared page of zeroes.
pub const IS_PFNZERO: u64 = 1 << 5;
/// The page is a part of a huge page.
pub const IS_HUGE: u64 = 1 << 6;
/// The page is a guard page (`MADV_GUARD_INSTALL`).
pub const IS_GUARD: u64 = 1 << 8;

const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A run of pages of the same categories.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Past the last byte.
    pub end: u64,
    /// The categories asked for that all its pages have.
    pub categories: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 96 && size_of::<Region>() == 24);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = (3 << 30) | ((size_of::<ScanArg>() as u64) << 16) | ((b'f' as u64) << 8) | 16;
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610);

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Every one of these must be set (after inversion).
    pub all: u64,
    /// At least one of these must be set (after inversion), if any is given.
    pub any: u64,
    /// Categories whose meaning is inverted.
    pub inverted: u64,
    /// Categories reported in [`Region::categories`]; runs are split where these differ.
    pub report: u64,
    /// Protect what was found again, atomically with finding it.
    pub protect: bool,
    /// Fail with `EPERM` on mappings that are not tracked, instead of skipping them.
    pub tracked_only: bool,
}

/// Scans `[start, end)` into `out` until one of both is full. Returns the filled part's length and where the walk ended.
///
/// # Errors
/// `EPERM` for an untracked mapping with `tracked_only`; `EINVAL` for categories that this kernel does not know.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    out: &mut [Region],
) -> nix::Result<(usize, u64)> {
    let mut flags = 0;
    if query.protect {
        flags |= WP_MATCHING;
    }
    if query.tracked_only {
        flags |= CHECK_WPASYNC;
    }
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        flags,
        start,
        end,
        walk_end: 0,
        vec: out.as_mut_ptr() as u64,
        vec_len: out.len() as u64,
        max_pages: 0,
        category_inverted: query.inverted,
        category_mask: query.all,
        category_anyof_mask: query.any,
        return_mask: query.report,
    };
    // SAFETY: PAGEMAP_SCAN reads and writes one `struct pm_scan_arg`, which `ScanArg` mirrors, and at most `vec_len`
    // regions at `vec`, which is `out`.
    let n = unsafe { check(libc::c_long::from(libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg)))? };
    Ok((n as usize, arg.walk_end))
}
