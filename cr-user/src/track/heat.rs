//! Which pages are written so often that protecting them costs more than copying them.

use std::ops::Range;

use crate::ranges::RangeSet;

/// Checkpoints in a row in which a page must have been dirty to be hot.
const STREAK: usize = 3;
/// Shorter runs of hot pages are not worth a scan of their own.
const MIN_RUN: u64 = 512;
/// After this many checkpoints hot pages are protected again, to see whether they still are.
const TRIAL: u32 = 16;
/// Checkpoints without pre-copy after one in which most of the copied pages had to be copied again.
const PRECOPY_REST: u32 = 8;

/// What was learned of how the job writes.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    hot: RangeSet,
    /// Pages that were dirty in each of the last checkpoints.
    steady: RangeSet,
    streak: usize,
    age: u32,
    precopy_rest: u32,
}

impl Heat {
    /// Pages that are left unprotected.
    pub fn hot(&self) -> &RangeSet {
        &self.hot
    }

    /// Cuts a range where pages turn hot or cold: parts in order, with whether they are hot.
    pub fn split(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let whole = RangeSet::from(range);
        let cold = whole.difference(&self.hot);
        let hot = whole.intersection(&self.hot);
        let mut parts: Vec<_> = cold.iter().map(|r| (r, false)).chain(hot.iter().map(|r| (r, true))).collect();
        parts.sort_unstable_by_key(|(r, _)| r.start);
        parts
    }

    /// Learns from a checkpoint which pages were dirty.
    pub fn learn(&mut self, dirty: &RangeSet) {
        self.age += 1;
        if self.age >= TRIAL {
            *self = Self { precopy_rest: self.precopy_rest, ..Self::default() };
        }
        self.steady = if self.streak == 0 { dirty.clone() } else { self.steady.intersection(dirty) };
        self.streak += 1;
        if self.streak >= STREAK {
            self.hot = self.steady.iter().filter(|r| r.end - r.start >= MIN_RUN).collect();
        }
    }

    /// Whether copying while the job runs has paid lately.
    pub fn precopy_pays(&mut self) -> bool {
        self.precopy_rest = self.precopy_rest.saturating_sub(1);
        self.precopy_rest == 0
    }

    /// Learns how many of the pages copied while the job ran had to be copied again.
    pub fn judge_precopy(&mut self, again: u64, copied: u64) {
        if copied > 0 && again * 2 > copied {
            self.precopy_rest = PRECOPY_REST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_turn_hot_after_a_streak_and_cold_again_for_a_trial() {
        let mut heat = Heat::default();
        let always = RangeSet::from(1000..2000);
        for n in 0..STREAK {
            assert!(heat.hot().is_empty(), "hot after {n}");
            heat.learn(&always.union(&RangeSet::from(n as u64..n as u64 + 1)));
        }
        assert_eq!(heat.hot(), &always);
        assert_eq!(heat.split(900..1500), vec![(900..1000, false), (1000..1500, true)]);
        for _ in 0..TRIAL {
            heat.learn(&always);
        }
        assert!(heat.hot().is_empty() || heat.age < TRIAL);
    }
}
