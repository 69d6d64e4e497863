//! What was recorded of written pages, as ranges.

use std::{collections::BTreeMap, ops::Range};

use cr_common::{PAGE_SHIFT, REGION_SHIFT, RegionRecord, TouchedRange, touched};

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
