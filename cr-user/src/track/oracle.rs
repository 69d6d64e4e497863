//! The oracle: the written-bit of the job's page tables.
//!
//! A userfaultfd with asynchronous write-protection is made inside the job and driven from outside; `PAGEMAP_SCAN` reads
//! which pages were written, and protects them again in the same step. When the last copy of the descriptor is closed (we
//! die, say) tracking ends and every page reads as written: it fails safe.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fault;
use crate::procfs;
use crate::ranges::RangeSet;
use crate::remote::{Call, Puppet};
use crate::sys::pagemap::{self, Query, Region};
use crate::sys::{PAGE, fd, uffd};

/// Features without which the oracle cannot answer.
pub const FEATURES: u64 = uffd::FEATURE_WP_ASYNC | uffd::FEATURE_WP_UNPOPULATED | uffd::FEATURE_WP_HUGETLBFS_SHMEM;

/// Regions fetched by one scan.
const REGIONS: usize = 4096;
/// Bytes that one scan covers at most: for as long as it takes, the job can map and unmap nothing.
const SLICE: u64 = 32 << 20;

/// Tracking of one address space.
#[derive(Debug)]
pub struct Oracle {
    pid: i32,
    uffd: OwnedFd,
    pagemap: File,
}

/// What the oracle says of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// These pages (by number) were written, or may have been.
    Pages(Vec<Range<u64>>),
    /// The range is not tracked: anything in it may have been written.
    Untracked,
}

impl Oracle {
    /// Makes the userfaultfd in the job and takes it over; the job keeps no copy.
    ///
    /// # Errors
    /// When the kernel refuses, or the job dies.
    pub fn open(puppet: &mut Puppet, pid: i32, pidfd: BorrowedFd<'_>) -> Result<Self> {
        let flags = u64::from(libc::O_CLOEXEC as u32) | uffd::USER_MODE_ONLY;
        let mut open = [Call::new(libc::SYS_userfaultfd, &[flags])];
        // Should we die while the job has the descriptor, it closes it by itself.
        let close = Call::new(libc::SYS_close, &[0]);
        let ran = puppet.batch(&mut open, &[close.clone().first_from(0)]);
        let point = fault::point("remote.uffd-open");
        let remote = open[0].outcome();
        let ours = remote.map(|number| fd::pidfd_getfd(pidfd, number as i32));
        if let Ok(number) = remote {
            // Whatever failed, the job must not be left with a descriptor that it did not open.
            puppet.batch(&mut [Call { args: [number, 0, 0, 0, 0, 0], ..close }], &[])?;
        }
        ran?;
        point?;
        let ours = ours.map_err(|e| Error::system(format!("userfaultfd on behalf of pid {pid}"), e))?;
        let ours = ours.map_err(|e| Error::system(format!("fetching the userfaultfd of pid {pid}"), e))?;
        Self::adopt(pid, ours)
    }

    /// Takes over a fresh userfaultfd that was made in the address space of `pid`.
    ///
    /// # Errors
    /// When the kernel lacks a feature.
    pub fn adopt(pid: i32, uffd: OwnedFd) -> Result<Self> {
        uffd::api(uffd.as_fd(), FEATURES)
            .map_err(|e| Error::system("turning on asynchronous write-protection (Linux 6.7 and later)", e))?;
        Ok(Self { pid, uffd, pagemap: pagemap_of(pid)? })
    }

    /// Whose address space it watches.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Puts all mappings in a range under tracking.
    ///
    /// # Errors
    /// `EBUSY` when the job tracks it by a userfaultfd of its own, `EINVAL` for what cannot be tracked, `ESRCH` when the
    /// address space is gone (the job has called `execve`).
    pub fn register(&self, start: u64, end: u64) -> nix::Result<()> {
        uffd::register_wp(self.uffd.as_fd(), start, end - start)
    }

    /// Whether the address space that it watches is still there.
    pub fn is_alive(&self) -> bool {
        let query =
            Query { all: 0, any: pagemap::IS_PRESENT, inverted: 0, report: 0, protect: false, tracked_only: false };
        !matches!(pagemap::scan(self.pagemap.as_fd(), 0, PAGE, query, &mut []), Err(Errno::ESRCH))
    }

    /// Pages of `[start, end)` that were written since they were last protected; with `protect` they are protected again
    /// in the same step, and **the caller owes them to the next checkpoint**.
    ///
    /// The question is asked in exactly this form (written, and only that) because only then do pages that were dropped
    /// and came back read as written on every kernel.
    ///
    /// # Errors
    /// When the scan fails, or the process is gone.
    pub fn written(&self, start: u64, end: u64, protect: bool) -> Result<Written> {
        let query = Query {
            all: pagemap::IS_WRITTEN,
            any: 0,
            inverted: 0,
            report: pagemap::IS_WRITTEN,
            protect,
            tracked_only: true,
        };
        let mut pages = Vec::new();
        match each_region(&self.pagemap, start, end, query, |r| pages.push(r.start / PAGE..r.end / PAGE)) {
            Ok(()) => Ok(Written::Pages(pages)),
            Err(Errno::EPERM) => Ok(Written::Untracked),
            Err(e) => Err(Error::system(format!("PAGEMAP_SCAN of pid {}", self.pid), e)),
        }
    }
}

/// Whether somebody else tracks memory of a process that has no oracle of ours: the controller of another store, say. What its page
/// tables say was written is then what was written since that one asked last, and to ask would take the answer away from it.
pub fn is_anothers(pid: i32) -> bool {
    let (Ok(pagemap), Ok(vmas)) = (pagemap_of(pid), procfs::maps(pid)) else { return false };
    // Asked of a mapping that is not tracked, the kernel refuses.
    let query = Query {
        all: pagemap::IS_WRITTEN,
        any: 0,
        inverted: 0,
        report: pagemap::IS_WRITTEN,
        protect: false,
        tracked_only: true,
    };
    vmas.iter()
        .filter(|vma| !vma.shared)
        .any(|vma| pagemap::scan(pagemap.as_fd(), vma.start, vma.start + PAGE, query, &mut [Region::default()]).is_ok())
}

/// `/proc/PID/pagemap`, for scans.
///
/// # Errors
/// When it cannot be opened.
pub fn pagemap_of(pid: i32) -> Result<File> {
    let path = procfs::path(pid, "pagemap");
    File::open(&path).map_err(|e| Error::system(format!("opening {path}"), e))
}

/// Pages of a range by what backs them.
#[derive(Clone, Debug, Default)]
pub struct Backing {
    /// Pages of the process's own: anonymous, or private copies of file pages.
    pub own: RangeSet,
    /// Guard pages.
    pub guards: RangeSet,
}

/// Finds the pages of `[start, end)` that have content of their own.
///
/// With `anonymous`, pages of zeroes that were only read do not count; of file mappings, only private copies do.
///
/// # Errors
/// When the scan fails.
pub fn backing(pagemap: &File, start: u64, end: u64, anonymous: bool) -> nix::Result<Backing> {
    let any = pagemap::IS_PRESENT | pagemap::IS_SWAPPED;
    // Whether a page is a file's takes a look at each page, and is asked only where it can be.
    let report = any | pagemap::IS_PFNZERO | if anonymous { 0 } else { pagemap::IS_FILE };
    let query = Query { all: 0, any, inverted: 0, report, protect: false, tracked_only: false };
    let (mut own, mut guards, mut swapped) = (Vec::new(), Vec::new(), Vec::new());
    let scanned = each_region(pagemap, start, end, query, |r| {
        let pages = r.start / PAGE..r.end / PAGE;
        let has = |c: u64| r.categories & c != 0;
        if has(pagemap::IS_PRESENT) {
            if !(has(pagemap::IS_PFNZERO) || !anonymous && has(pagemap::IS_FILE)) {
                own.push(pages);
            }
        } else {
            swapped.push(pages);
        }
    });
    match scanned {
        Err(Errno::ENOTTY) => return backing_by_entries(pagemap, start / PAGE..end / PAGE, anonymous),
        other => other?,
    }
    for pages in swapped {
        classify_swapped(pagemap, pages, &mut own, &mut guards)?;
    }
    Ok(Backing { own: RangeSet::from_unsorted(own), guards: RangeSet::from_unsorted(guards) })
}

/// As [`backing`], entry by entry: for kernels without `PAGEMAP_SCAN`. Pages of zeroes that were only read count as content.
fn backing_by_entries(pagemap: &File, pages: Range<u64>, anonymous: bool) -> nix::Result<Backing> {
    let (mut own, mut guards) = (Vec::new(), Vec::new());
    each_entry(pagemap, pages, |page, entry| match entry.kind() {
        EntryKind::Page if anonymous || !entry.is_file() => extend(&mut own, page),
        EntryKind::Swap => extend(&mut own, page),
        EntryKind::Guard => extend(&mut guards, page),
        EntryKind::Page | EntryKind::Nothing => {}
    })?;
    Ok(Backing { own: RangeSet::from_unsorted(own), guards: RangeSet::from_unsorted(guards) })
}

/// Page-table entries that are neither a page nor empty: real swap, or one of the kernel's markers (a protected page that
/// is not there yet, a guard page). Only `/proc/PID/pagemap` tells them apart.
fn classify_swapped(
    pagemap: &File,
    pages: Range<u64>,
    own: &mut Vec<Range<u64>>,
    guards: &mut Vec<Range<u64>>,
) -> nix::Result<()> {
    each_entry(pagemap, pages, |page, entry| match entry.kind() {
        EntryKind::Guard => extend(guards, page),
        EntryKind::Swap | EntryKind::Page => extend(own, page),
        EntryKind::Nothing => {}
    })
}

/// An entry of `/proc/PID/pagemap`; see `Documentation/admin-guide/mm/pagemap.rst`.
#[derive(Clone, Copy)]
struct Entry(u64);

enum EntryKind {
    Page,
    Swap,
    Guard,
    Nothing,
}

impl Entry {
    fn is_file(self) -> bool {
        self.0 >> 61 & 1 == 1
    }

    fn kind(self) -> EntryKind {
        /// Swap type of markers: the last one of five bits.
        const MARKER: u64 = 31;
        let bit = |n: u32| self.0 >> n & 1 == 1;
        match (bit(58), bit(63), bit(62)) {
            (true, ..) => EntryKind::Guard,
            (_, true, _) => EntryKind::Page,
            (.., true) if self.0 & 0x1f != MARKER => EntryKind::Swap,
            _ => EntryKind::Nothing,
        }
    }
}

fn each_entry(pagemap: &File, pages: Range<u64>, mut take: impl FnMut(u64, Entry)) -> nix::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buf = vec![0u8; 8 * (pages.end - pages.start).min(64 << 10) as usize];
    let mut at = pages.start;
    while at < pages.end {
        let n = ((pages.end - at) as usize * 8).min(buf.len());
        pagemap
            .read_exact_at(&mut buf[..n], at * 8)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        for entry in buf[..n].chunks_exact(8) {
            take(at, Entry(u64::from_le_bytes(entry.try_into().expect("eight bytes"))));
            at += 1;
        }
    }
    Ok(())
}

fn extend(list: &mut Vec<Range<u64>>, page: u64) {
    match list.last_mut() {
        Some(last) if last.end == page => last.end += 1,
        _ => list.push(page..page + 1),
    }
}

fn each_region(pagemap: &File, start: u64, end: u64, query: Query, mut take: impl FnMut(&Region)) -> nix::Result<()> {
    thread_local! {
        /// Kept, because clearing it would take longer than most questions.
        static ANSWERS: RefCell<Vec<Region>> = RefCell::new(vec![Region::default(); REGIONS]);
    }
    ANSWERS.with_borrow_mut(|regions| {
        let mut at = start;
        while at < end {
            let (n, walked) = pagemap::scan(pagemap.as_fd(), at, end.min((at / SLICE + 1) * SLICE), query, regions)?;
            regions[..n].iter().for_each(&mut take);
            // A walk that got nowhere would never end.
            if walked <= at {
                return Err(Errno::EIO);
            }
            at = walked;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_scan_agree_on_what_is_there() {
        let mut memory = memmap2::MmapMut::map_anon(64 * PAGE as usize).unwrap();
        for page in [0, 1, 2, 7, 30, 31, 63] {
            memory[page * PAGE as usize] = 1;
        }
        let start = memory.as_ptr() as u64;
        let pagemap = pagemap_of(std::process::id() as i32).unwrap();
        let scanned = backing(&pagemap, start, start + 64 * PAGE, true).unwrap();
        let read = backing_by_entries(&pagemap, start / PAGE..start / PAGE + 64, true).unwrap();
        assert_eq!(scanned.own, read.own);
        assert_eq!(scanned.own.count(), 7);
        assert!(scanned.guards.is_empty() && read.guards.is_empty());
    }
}
