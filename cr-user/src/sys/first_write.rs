//! What the first write to a protected page costs, tried out on memory of our own.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::sys::{PAGE, check, pagemap, uffd};

/// Pages that are written in a round.
const PAGES: usize = 256;
/// Rounds: the middle one counts.
const ROUNDS: usize = 5;

/// Anonymous memory of our own, unmapped when dropped.
struct Memory(*mut u8);

impl Memory {
    const LEN: usize = PAGES * PAGE as usize;

    fn map() -> nix::Result<Self> {
        // SAFETY: a fresh private anonymous mapping, at an address that the kernel chooses; advice about it changes no contents.
        unsafe {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let at = libc::mmap(null_mut(), Self::LEN, prot, flags, -1, 0);
            if at == libc::MAP_FAILED {
                return Err(Errno::last());
            }
            let memory = Self(at.cast());
            // The kernel may have been built without huge pages.
            let _ = check(libc::c_long::from(libc::madvise(at, Self::LEN, libc::MADV_NOHUGEPAGE)));
            Ok(memory)
        }
    }

    /// Writes to each page, and says how long that took.
    fn write(&self) -> Duration {
        let started = Instant::now();
        for page in 0..PAGES {
            // SAFETY: the page lies within the mapping, which is ours and writable, and nobody has a reference into it.
            unsafe { self.0.add(page * PAGE as usize).write_volatile(1) };
        }
        started.elapsed()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this, and no reference into it was given out.
        unsafe { libc::munmap(self.0.cast(), Self::LEN) };
    }
}

/// How much longer the first write to a page takes that was protected as those of a job are, than another write: mostly the page
/// fault. Takes a few milliseconds.
///
/// # Errors
/// When this kernel tracks no pages, or not for us.
pub fn cost() -> nix::Result<Duration> {
    let memory = Memory::map()?;
    memory.write();
    let (start, end) = (memory.0 as u64, memory.0 as u64 + Memory::LEN as u64);
    let tracker = uffd::create()?;
    uffd::api(tracker.as_fd(), uffd::FEATURE_WP_ASYNC | uffd::FEATURE_WP_UNPOPULATED)?;
    uffd::register_wp(tracker.as_fd(), start, end - start)?;
    let open = File::open("/proc/self/pagemap").map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)));
    let pagemap: OwnedFd = open?.into();
    let protect = pagemap::Query {
        all: pagemap::IS_WRITTEN,
        any: 0,
        inverted: 0,
        report: pagemap::IS_WRITTEN,
        protect: true,
        tracked_only: true,
    };
    let mut costs = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let mut found = [pagemap::Region::default(); 2];
        pagemap::scan(pagemap.as_fd(), start, end, protect, &mut found)?;
        let (first, second) = (memory.write(), memory.write());
        costs.push(first.saturating_sub(second) / PAGES as u32);
    }
    costs.sort_unstable();
    Ok(costs[ROUNDS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_takes_about_a_microsecond() {
        match cost() {
            // From a fast machine of its own to a slow and shared one.
            Ok(cost) => assert!((50..500_000).contains(&cost.as_nanos()), "{cost:?}"),
            Err(e) => println!("skipped: pages cannot be tracked here ({e})"),
        }
    }
}
