//! Reading the memory of a job, whatever the protection of its mappings.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::procfs;
use crate::ranges::RangeSet;
use crate::sys::{PAGE, vm};

/// Memory of one process. A clone reads the same.
#[derive(Clone, Debug)]
pub struct Memory {
    pid: i32,
    /// `/proc/PID/mem`: slower, but it ignores protection.
    mem: Arc<File>,
}

impl Memory {
    /// Opens the memory of `pid`.
    ///
    /// # Errors
    /// When it may not be read, or the process is gone.
    pub fn open(pid: i32) -> Result<Self> {
        let path = procfs::path(pid, "mem");
        let mem = File::open(&path).map_err(|e| Error::system(format!("opening {path}"), e))?;
        Ok(Self { pid, mem: Arc::new(mem) })
    }

    /// Reads the pages (numbers) of `ranges` one after the other into `buf`, and returns those that could not be read;
    /// their bytes in `buf` mean nothing.
    pub fn read(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> RangeSet {
        let mut unread = Vec::new();
        let mut queue: Vec<vm::Range> =
            ranges.iter().map(|r| vm::Range { start: r.start * PAGE, len: (r.end - r.start) * PAGE }).collect();
        let (mut first, mut at) = (0, 0);
        while first < queue.len() {
            let count = (queue.len() - first).min(vm::MAX_PIECES);
            let wanted: u64 = queue[first..first + count].iter().map(|r| r.len).sum();
            let piece = &mut buf[at..at + wanted as usize];
            let got = vm::read(procfs::voice(self.pid), &queue[first..first + count], piece).unwrap_or(0) as u64 / PAGE
                * PAGE;
            at += got as usize;
            let mut left = got;
            while first < queue.len() && left >= queue[first].len {
                left -= queue[first].len;
                first += 1;
            }
            if got == wanted {
                continue;
            }
            // The page that stopped it: by way of /proc/PID/mem, which reads protected pages too.
            let stuck = &mut queue[first];
            stuck.start += left;
            stuck.len -= left;
            let page = &mut buf[at..at + PAGE as usize];
            if self.mem.read_exact_at(page, stuck.start).is_err() {
                unread.push(stuck.start / PAGE..stuck.start / PAGE + 1);
            }
            at += PAGE as usize;
            stuck.start += PAGE;
            stuck.len -= PAGE;
            if stuck.len == 0 {
                first += 1;
            }
        }
        RangeSet::from_unsorted(unread)
    }

    /// Reads bytes at an address.
    ///
    /// # Errors
    /// When they are not mapped.
    pub fn read_at(&self, address: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.mem.read_exact_at(buf, address)
    }
}
