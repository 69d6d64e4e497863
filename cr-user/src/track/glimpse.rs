//! A guess which memory is written all the time, without protecting any of it: a few words of each window, read twice.

use std::ops::Range;

use crate::procfs;
use crate::ranges::RangeSet;
use crate::sys::{PAGE, vm};
use crate::track::heat::WINDOW;

/// Words that are read of a window, each in a page of its own. That all of them change by chance, in a window of which little is
/// written, does not happen.
const WORDS: usize = 8;
const WORD: u64 = 8;
/// Windows that fit into one system call.
const AT_ONCE: usize = vm::MAX_PIECES / WORDS;

/// Words of a process's memory at some moment.
#[derive(Debug)]
pub struct Glimpse {
    pid: i32,
    windows: Vec<(u64, [u8; WORDS * WORD as usize])>,
}

impl Glimpse {
    /// Looks at those windows of 2 MiB of which every page is in `present`: of what is not there, a look would make pages.
    pub fn of(pid: i32, present: &RangeSet) -> Self {
        let whole = present.iter().flat_map(|r| r.start.div_ceil(WINDOW)..r.end / WINDOW);
        Self { pid, windows: read(pid, &whole.collect::<Vec<_>>()) }
    }

    /// How many windows were looked at.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Looks again: the numbers of those windows in which every word has changed.
    pub fn changed(&self) -> Vec<u64> {
        let numbers: Vec<u64> = self.windows.iter().map(|(n, _)| *n).collect();
        let now = read(self.pid, &numbers);
        let before = |n: u64| self.windows.binary_search_by_key(&n, |(n, _)| *n).ok().map(|at| &self.windows[at].1);
        let all_differ = |old: &[u8], new: &[u8]| {
            old.chunks_exact(WORD as usize).zip(new.chunks_exact(WORD as usize)).all(|(old, new)| old != new)
        };
        now.iter().filter(|(n, new)| before(*n).is_some_and(|old| all_differ(old, new))).map(|(n, _)| *n).collect()
    }
}

/// Where the words of a window lie: one in each eighth of it, at places that differ from window to window.
fn places(window: u64) -> impl Iterator<Item = vm::Range> {
    const STRETCH: u64 = WINDOW * PAGE / WORDS as u64;
    (0..WORDS as u64).map(move |n| {
        let spread = (window * WORDS as u64 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let start = window * WINDOW * PAGE + n * STRETCH + spread % (STRETCH / WORD) * WORD;
        vm::Range { start, len: WORD }
    })
}

/// Windows that cannot be read are missing.
fn read(pid: i32, windows: &[u64]) -> Vec<(u64, [u8; WORDS * WORD as usize])> {
    const BYTES: usize = WORDS * WORD as usize;
    let mut found = Vec::with_capacity(windows.len());
    let mut at = 0;
    while at < windows.len() {
        let some: Range<usize> = at..windows.len().min(at + AT_ONCE);
        let ranges: Vec<vm::Range> = windows[some.clone()].iter().flat_map(|n| places(*n)).collect();
        let mut buf = vec![0; some.len() * BYTES];
        let got = vm::read(procfs::voice(pid), &ranges, &mut buf).unwrap_or(0) / BYTES;
        let words = windows[some.clone()].iter().zip(buf.chunks_exact(BYTES)).take(got);
        found.extend(words.map(|(n, words)| (*n, words.try_into().expect("as many bytes"))));
        // Beyond the one that stopped it.
        at += if got == some.len() { got } else { got + 1 };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::MmapMut;

    #[test]
    fn what_is_written_all_over_is_found_and_what_is_not_is_not() {
        let pid = std::process::id() as i32;
        let bytes = (WINDOW * PAGE) as usize;
        let mut memory = MmapMut::map_anon(bytes * 5).unwrap();
        memory.fill(1);
        let first = memory.as_ptr().addr() as u64 / PAGE;
        let pages = RangeSet::from(first..first + 5 * WINDOW);
        let glimpse = Glimpse::of(pid, &pages);
        assert!(glimpse.windows() >= 4);
        let windows: Vec<u64> = glimpse.windows.iter().map(|(n, _)| *n).collect();
        assert!(glimpse.changed().is_empty());
        let start = |n: u64| (n * WINDOW - first) as usize * PAGE as usize;
        memory[start(windows[1])..start(windows[1]) + bytes].fill(2);
        // Half of another.
        memory[start(windows[3])..start(windows[3]) + bytes / 2].fill(2);
        assert_eq!(glimpse.changed(), [windows[1]]);
        let gone = Glimpse::of(pid, &RangeSet::from(0..4 * WINDOW));
        assert_eq!(gone.windows(), 0, "what is not mapped cannot be read");
    }
}
