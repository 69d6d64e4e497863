//! Sets of page numbers as sorted, disjoint, non-adjacent ranges.

use std::ops::Range;

/// A set of numbers, cheap where they come in runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a range. Cheap at the end; use [`RangeSet::from_unsorted`] for many in any order.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end < range.start);
        let to = self.0.partition_point(|r| r.start <= range.end);
        if from == to {
            self.0.insert(from, range);
        } else {
            let merged = self.0[from].start.min(range.start)..self.0[to - 1].end.max(range.end);
            self.0[from] = merged;
            self.0.drain(from + 1..to);
        }
    }

    /// The set of all numbers in `ranges`, which may overlap and be in any order.
    pub fn from_unsorted(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|r| !r.is_empty());
        ranges.sort_unstable_by_key(|r| r.start);
        let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for r in ranges {
            match out.last_mut() {
                Some(last) if last.end >= r.start => last.end = last.end.max(r.end),
                _ => out.push(r),
            }
        }
        Self(out)
    }

    /// Its ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// How many ranges it is made of.
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    /// How many numbers it holds.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it holds `n`.
    pub fn contains(&self, n: u64) -> bool {
        let at = self.0.partition_point(|r| r.end <= n);
        self.0.get(at).is_some_and(|r| r.start <= n)
    }

    /// Whether it holds every number of `range`.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let at = self.0.partition_point(|r| r.end <= range.start);
        range.is_empty() || self.0.get(at).is_some_and(|r| r.start <= range.start && range.end <= r.end)
    }

    /// Its parts within `range`, ascending.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let at = self.0.partition_point(|r| r.end <= range.start);
        let inside = self.0[at..].iter().take_while(move |r| r.start < range.end);
        inside.map(move |r| r.start.max(range.start)..r.end.min(range.end)).filter(|r| !r.is_empty())
    }

    /// The parts of `range` that it does not hold, ascending.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut gaps, mut at) = (Vec::new(), range.start);
        for held in self.within(range.clone()) {
            gaps.push(at..held.start);
            at = held.end;
        }
        gaps.push(at..range.end);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }

    /// Numbers in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_unsorted(self.0.iter().chain(&other.0).cloned().collect())
    }

    /// Numbers in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut out, mut i, mut j) = (Vec::new(), 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            let common = a.start.max(b.start)..a.end.min(b.end);
            if !common.is_empty() {
                out.push(common);
            }
            if a.end < b.end { i += 1 } else { j += 1 }
        }
        Self(out)
    }

    /// Numbers in this set and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let (mut out, mut j) = (Vec::new(), 0);
        for a in &self.0 {
            let mut start = a.start;
            while other.0.get(j).is_some_and(|b| b.end <= start) {
                j += 1;
            }
            let mut k = j;
            while let Some(b) = other.0.get(k).filter(|b| b.start < a.end) {
                if b.start > start {
                    out.push(start..b.start);
                }
                start = start.max(b.end);
                k += 1;
            }
            if start < a.end {
                out.push(start..a.end);
            }
        }
        Self(out)
    }
}

impl From<Range<u64>> for RangeSet {
    fn from(range: Range<u64>) -> Self {
        Self::from_unsorted(vec![range])
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(iter: T) -> Self {
        Self::from_unsorted(iter.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn numbers(set: &RangeSet) -> BTreeSet<u64> {
        set.iter().flatten().collect()
    }

    #[test]
    fn set_operations_agree_with_sets_of_single_numbers() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..2000 {
            let mut sets = Vec::new();
            for _ in 0..2 {
                let (mut a, mut b, mut raw) = (RangeSet::new(), BTreeSet::new(), Vec::new());
                for _ in 0..random(8) {
                    let start = random(60);
                    let range = start..start + random(9);
                    raw.push(range.clone());
                    a.insert(range.clone());
                    b.extend(range);
                }
                assert_eq!(a, RangeSet::from_unsorted(raw));
                assert_eq!((numbers(&a), a.count()), (b.clone(), b.len() as u64));
                sets.push((a, b));
            }
            let ((a, sa), (b, sb)) = (&sets[0], &sets[1]);
            assert_eq!(numbers(&a.union(b)), sa | sb);
            assert_eq!(numbers(&a.intersection(b)), sa & sb);
            assert_eq!(numbers(&a.difference(b)), sa - sb);
            assert!((0..70).all(|n| a.contains(n) == sa.contains(&n)));
            let range = random(40)..random(70);
            let span = RangeSet::from(range.clone());
            assert_eq!(a.within(range.clone()).collect::<RangeSet>(), a.intersection(&span));
            assert_eq!(a.gaps(range.clone()).into_iter().collect::<RangeSet>(), span.difference(a));
            assert_eq!(a.covers(&range), span.difference(a).is_empty());
        }
    }
}
