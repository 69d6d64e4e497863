//! A mapping, as far as its page tables go, and how it is put under tracking.
//!
//! That happens while the process runs, and a mapping that is tracked in part is two to the kernel: `mremap` refuses to move both at once.
//! By the time one is put under tracking, the process may have extended it, or have put a larger one in its place. So what is put under
//! tracking is more than the mapping, and afterwards we look whether a mapping was cut.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::object::memory::mapping::Mapping;
use crate::procfs::Vma;
use crate::sys::{PAGE, procmap};
use crate::track::oracle::Oracle;

/// What the kernel calls anonymous mappings of huge pages.
const HUGE: &str = "/anon_hugepage";

/// A mapping, as far as its page tables go.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    start: u64,
    end: u64,
    /// In a process that runs: it, and the holes around it.
    reach: Option<(u64, u64)>,
    /// Untouched pages of it read as zero.
    pub anonymous: bool,
    /// Its pages can be written.
    pub writable: bool,
}

impl Place {
    /// Of a mapping that is described, of a process that stands still.
    pub fn of(mapping: &Mapping) -> Self {
        let writable = mapping.prot & libc::PROT_WRITE != 0;
        Self { start: mapping.start, end: mapping.end, reach: None, anonymous: mapping.is_anonymous(), writable }
    }

    /// Of a mapping in which a process has content of its own; none for others.
    pub fn of_vma(vma: &Vma) -> Option<Self> {
        let anonymous = vma.inode == 0 || vma.name.starts_with(HUGE);
        let writable = vma.prot & libc::PROT_WRITE != 0;
        let is_private = !vma.shared && !vma.name.starts_with("[v");
        is_private.then_some(Self { start: vma.start, end: vma.end, reach: None, anonymous, writable })
    }

    /// The same of one in a list of all mappings of a process that runs.
    pub fn in_motion(vmas: &[Vma], index: usize) -> Option<Self> {
        /// Where the kernel's own addresses begin, [vsyscall] among them.
        const TASK_SIZE: u64 = (1 << 47) - PAGE;
        let vma = &vmas[index];
        let place = Self::of_vma(vma)?;
        if vma.name.starts_with(HUGE) {
            // Only whole huge pages can be tracked, and such a mapping does not grow.
            return Some(place);
        }
        // A mapping that was replaced while the list was made can be in it twice, as it was and as it is.
        let before = vmas[..index].iter().map(|before| before.end).rfind(|end| *end <= place.start);
        let after = vmas[index + 1..].iter().map(|after| after.start.min(TASK_SIZE)).find(|start| *start >= place.end);
        Some(Self { reach: Some((before.unwrap_or(place.start), after.unwrap_or(place.end))), ..place })
    }

    /// Its pages.
    pub fn pages(&self) -> Range<u64> {
        self.start / PAGE..self.end / PAGE
    }

    /// Puts it under tracking, and gives all pages that may have been with it; none if the kernel refuses, as where it is gone, or another
    /// kind of mapping has come into a hole. The frozen window will see what there is then.
    pub fn track(&self, oracle: &Oracle) -> Option<Range<u64>> {
        let Some((mut start, mut end)) = self.reach else {
            return oracle.register(self.start, self.end).ok().map(|()| self.pages());
        };
        oracle.register(start, end).ok()?;
        if let Some((from, to)) = make_whole(oracle, self.start) {
            (start, end) = (start.min(from), end.max(to));
        }
        Some(start / PAGE..end / PAGE)
    }
}

/// Puts under tracking what a mapping that was cut goes on in, on either side: the kernel makes one of it again. Gives all that was.
fn make_whole(oracle: &Oracle, address: u64) -> Option<(u64, u64)> {
    /// What stays two is two.
    const TRIES: usize = 3;
    let maps = File::open(format!("/proc/{}/maps", oracle.pid())).ok()?;
    // Before Linux 6.11 nobody can be asked: what is cut stays so until it is looked at the next time.
    let at = |address: u64| procmap::at(maps.as_fd(), address).ok().flatten();
    let mut all: Option<(u64, u64)> = None;
    for _ in 0..TRIES {
        let Some(it) = at(address) else { break };
        let before = it.start.checked_sub(1).and_then(at).filter(|before| before.goes_on_in(&it));
        let after = at(it.end).filter(|after| it.goes_on_in(after));
        if before.is_none() && after.is_none() {
            break;
        }
        let (from, to) = (before.unwrap_or(it).start, after.unwrap_or(it).end);
        if oracle.register(from, to).is_err() {
            break;
        }
        all = Some(all.map_or((from, to), |(start, end)| (start.min(from), end.max(to))));
    }
    all
}
