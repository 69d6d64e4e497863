//! The record of written pages: taken out of the kernel, and handed out as ranges.

use std::{collections::BTreeMap, ops::Range, os::fd::AsFd as _};

use aya::maps::{HashMap, Map};
use cr_common::{
    Followed, Lost, PAGE_SHIFT, REGION_SHIFT, RegionRecord, TouchedRange, WrittenKey, WrittenRegion, touched,
};

use super::error::{map_error, no_map};
use super::load::{ITER_AT_REST, ITER_WRITTEN};
use super::{AddressSpaceId, Hints, HintsError, remove};
use crate::sys::bpf::IterTarget;
use crate::track::iters;

/// What became of the pages of an address space since the last time this was asked. Addresses in bytes, in whole pages, ascending,
/// neither touching nor overlapping where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrittenRecord {
    /// Pages that had a write fault.
    pub pages: Vec<Range<u64>>,
    /// Where a system call may have written, or may have changed which pages there are, without a fault: whole regions of
    /// 2 MiB and long ranges, in any order.
    pub touched: Vec<Range<u64>>,
    /// Where pages were given up that the kernel may take at any time from now on, in the same form.
    pub volatile: Vec<Range<u64>>,
    /// How many faults could not be recorded. Not 0: the record is not complete, and the page tables must be asked about
    /// everything.
    pub lost: u64,
}

impl Hints {
    /// Takes the record of an address space: the pages that had a write fault since the last call.
    ///
    /// Each page is handed out once; a fault while this runs is either in this answer or in the next one. Never among its pages,
    /// because no fault in this address space says so: writes by `process_vm_writev`, ptrace or `/proc/PID/mem`, `O_DIRECT` and
    /// `io_uring` transfers into pinned pages (of all these [`Followed`] tells, or [`WrittenRecord::touched`]), stores through
    /// another mapping of a shared page, and stores to pages that are writable already.
    pub fn drain_written(&mut self, space: AddressSpaceId) -> Result<WrittenRecord, HintsError> {
        self.gather_written()?;
        self.gathered(space)
    }

    /// Takes what was recorded of all address spaces out of the kernel, for [`gathered`](Self::gathered).
    pub fn gather_written(&mut self) -> Result<(), HintsError> {
        self.gather(ITER_WRITTEN.0)
    }

    /// The same while every followed process stands still: entries of regions that were not written lately are removed.
    pub fn gather_written_at_rest(&mut self) -> Result<(), HintsError> {
        self.gather(ITER_AT_REST.0)?;
        // Of children that came and went in between, nobody asks.
        let told = &self.told;
        self.pending.retain(|space, _| told.contains_key(space));
        Ok(())
    }

    /// What was taken out of the record and did not come here is lost: then the next record of each address space says so.
    fn gather(&mut self, iter: &'static str) -> Result<(), HintsError> {
        let gathered = self.try_gather(iter);
        self.removals += u64::from(gathered.is_err());
        gathered
    }

    fn try_gather(&mut self, iter: &'static str) -> Result<(), HintsError> {
        for WrittenRegion { key, record } in self.take_regions(iter)? {
            self.pending.entry(AddressSpaceId(key.mm)).or_default().add(key.region, &record);
        }
        while let Some(item) = self.touched.next() {
            let range = bytemuck::try_pod_read_unaligned::<TouchedRange>(&item)
                .map_err(|error| HintsError::Map { map: "TOUCHED", why: error.to_string() })?;
            let space = AddressSpaceId(range.mm);
            // Of others, that are followed no more, there may be some left.
            if self.told.contains_key(&space) {
                self.pending.entry(space).or_default().ranges.push(range);
            }
        }
        Ok(())
    }

    /// What was gathered of one address space, as [`drain_written`](Self::drain_written) answers.
    pub fn gathered(&mut self, space: AddressSpaceId) -> Result<WrittenRecord, HintsError> {
        let recorded = self.pending.remove(&space).unwrap_or_default();
        let total = self.lost_pages()?;
        let told = self.told.insert(space, total).unwrap_or(0);
        self.empty_if_full()?;
        self.flush_logs();
        Ok(recorded.told(total - told))
    }

    /// The same, which stays to be asked for again.
    pub fn noted(&self, space: AddressSpaceId) -> Result<WrittenRecord, HintsError> {
        let lost = self.lost_pages()? - self.told.get(&space).copied().unwrap_or(0);
        Ok(self.pending.get(&space).unwrap_or(&Recorded::default()).told(lost))
    }

    /// What is kept of a followed address space; none if it is not followed, or this kernel does not show who takes its lock.
    pub fn followed(&self, space: AddressSpaceId) -> Result<Option<Followed>, HintsError> {
        if !self.loaded.locks {
            return Ok(None);
        }
        let map = self.loaded.ebpf.map("FOLLOWED").ok_or_else(|| no_map("FOLLOWED"))?;
        let followed: HashMap<_, u64, Followed> = HashMap::try_from(map).map_err(map_error("FOLLOWED"))?;
        Ok(followed.get(&space.0, 0).ok())
    }

    fn take_regions(&self, iter: &'static str) -> Result<Vec<WrittenRegion>, HintsError> {
        let map = match self.loaded.ebpf.map("WRITTEN") {
            Some(Map::HashMap(map)) => map.fd().as_fd(),
            _ => return Err(no_map("WRITTEN")),
        };
        let bytes = self.read_iter(iter, IterTarget::Map(map), || "the record of written pages".into())?;
        iters::records(&bytes).ok_or_else(|| HintsError::Map { map: "WRITTEN", why: "half a record was read".into() })
    }

    pub(super) fn remove_written(&mut self, which: impl Fn(&WrittenKey) -> bool) -> Result<(), HintsError> {
        let mut written: HashMap<_, WrittenKey, RegionRecord> = self.map_mut("WRITTEN")?;
        for key in written.keys().filter_map(Result::ok).filter(which).collect::<Vec<_>>() {
            remove(&mut written, &key, "WRITTEN")?;
        }
        Ok(())
    }

    /// Entries of regions that are not written any more fill the record up. Removing them may take a bit with them that was
    /// set since the record was taken; the next record of each address space owns up to that.
    fn empty_if_full(&mut self) -> Result<(), HintsError> {
        let lost = self.lost(Lost::Page)?;
        if lost > self.full_at {
            // Before it is done: also what fails halfway is owned up to.
            self.removals += 1;
            self.remove_written(|_| true)?;
            self.full_at = lost;
        }
        Ok(())
    }

    pub(super) fn lost_pages(&self) -> Result<u64, HintsError> {
        Ok(self.lost(Lost::Page)? + self.removals)
    }
}

/// What was taken out of the kernel's record of one address space.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    regions: BTreeMap<u64, RegionRecord>,
    /// Long ranges of which something became without a fault.
    pub(super) ranges: Vec<TouchedRange>,
}

impl Recorded {
    /// Adds what was recorded of a region.
    pub(super) fn add(&mut self, region: u64, record: &RegionRecord) {
        let known = self.regions.entry(region).or_default();
        known.written.iter_mut().zip(record.written).for_each(|(known, new)| *known |= new);
        known.touched |= record.touched;
    }

    /// All that was recorded.
    pub(super) fn told(&self, lost: u64) -> WrittenRecord {
        let with = |bit: u64| {
            let mut ranges = Vec::new();
            let having = self.regions.iter().filter(|(_, record)| record.touched & bit != 0);
            having.for_each(|(region, _)| add(&mut ranges, region << REGION_SHIFT, 1 << REGION_SHIFT));
            let long = self.ranges.iter().filter(|range| range.what & bit != 0);
            ranges.extend(long.map(|range| range.start..range.start.saturating_add(range.len)));
            ranges
        };
        let (touched, volatile) = (with(touched::ASK), with(touched::VOLATILE));
        WrittenRecord { pages: page_ranges(&self.regions), touched, volatile, lost }
    }
}

/// Joins the bits of regions to ranges of addresses.
fn page_ranges(regions: &BTreeMap<u64, RegionRecord>) -> Vec<Range<u64>> {
    const PAGE: u64 = 1 << PAGE_SHIFT;
    let mut ranges = Vec::new();
    for (region, record) in regions {
        for (index, word) in record.written.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                let page = index as u64 * 64 + u64::from(word.trailing_zeros());
                word &= word - 1;
                add(&mut ranges, (region << REGION_SHIFT) + page * PAGE, PAGE);
            }
        }
    }
    ranges
}

fn add(ranges: &mut Vec<Range<u64>>, start: u64, len: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == start => last.end = start + len,
        _ => ranges.push(start..start + len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_ranges_that_join_across_words_and_regions() {
        let mut first = RegionRecord::default();
        (first.written[0], first.written[1], first.written[7]) = (0b110 | 1 << 63, 1, 1 << 63);
        let second = RegionRecord { written: [1, 0, 0, 0, 0, 0, 0, 0], touched: touched::ASK };
        let third = RegionRecord { written: [0; 8], touched: touched::ASK | touched::VOLATILE };
        let mut recorded = Recorded::default();
        for (region, record) in [(1, first), (2, second), (3, third)] {
            recorded.add(region, &record);
        }
        let record = recorded.told(0);
        let page = |page: u64| (1 << 21) + page * 4096;
        assert_eq!(record.pages, [page(1)..page(3), page(63)..page(65), page(511)..page(513)]);
        assert_eq!(record.touched, vec![page(512)..page(3 * 512)]);
        assert_eq!(record.volatile, vec![page(2 * 512)..page(3 * 512)]);
    }
}
