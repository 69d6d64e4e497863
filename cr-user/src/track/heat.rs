//! Which pages are written so often that protecting them costs more than copying them.
//!
//! Memory is judged in windows of 2 MiB, whole huge pages: one that is hot is never protected, and so never split by a write. The
//! written-bit says nothing of a hot window any more; its content does. It is copied and compared each time, and what changed was
//! written. So a window that is no longer written turns cold by itself, without a trial that would make all hot pages fault again.

use std::collections::BTreeMap;

use crate::ranges::RangeSet;

/// Pages of a window.
pub const WINDOW: u64 = 512;
/// So many pages of a window must be dirty for it to count as busy: a fault costs about as much as copying and comparing two pages.
const BUSY: u64 = WINDOW / 4 * 3;
/// So many pages of a hot window must have changed for it to count as busy still.
const STILL_BUSY: u64 = WINDOW / 2;
/// A window turns hot when it was busy in the last two checkpoints, and stays so as long as it was in three of the last four.
const TURNS_HOT: u8 = 0b11;
const REMEMBERED: u8 = 0b1111;
const STAYS_HOT: u32 = 3;
/// Checkpoints without pre-copy after one in which most of the copied pages had to be copied again.
const PRECOPY_REST: u32 = 8;

/// What was learned of how the job writes.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    hot: RangeSet,
    /// By number of the window, those that were busy lately.
    windows: BTreeMap<u64, Window>,
    /// Something was learned.
    informed: bool,
    precopy_rest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    /// In which of the last checkpoints it was busy, the newest in the lowest bit.
    history: u8,
    hot: bool,
}

impl Heat {
    /// Pages that are left unprotected, and of which nobody knows whether they were written: exactly those, whole windows.
    pub fn hot(&self) -> &RangeSet {
        &self.hot
    }

    /// Whether anything was learned yet.
    pub fn is_informed(&self) -> bool {
        self.informed
    }

    /// Takes it that these windows (numbers) are written all the time, until it is known better.
    pub fn suspect(&mut self, windows: impl IntoIterator<Item = u64>) {
        self.windows.extend(windows.into_iter().map(|n| (n, Window { history: REMEMBERED, hot: true })));
        self.find_hot();
    }

    /// Learns from a checkpoint which pages were, or may have been, written, and which of these were compared and had not changed.
    pub fn learn(&mut self, dirty: &RangeSet, unchanged: &RangeSet) {
        self.informed = true;
        let mut counts = BTreeMap::new();
        for range in dirty.difference(unchanged).iter() {
            for window in range.start / WINDOW..range.end.div_ceil(WINDOW) {
                let inside = range.start.max(window * WINDOW)..range.end.min((window + 1) * WINDOW);
                *counts.entry(window).or_insert(0) += inside.end - inside.start;
            }
        }
        for (number, window) in &mut self.windows {
            let count = counts.remove(number).unwrap_or(0);
            let busy = count >= if window.hot { STILL_BUSY } else { BUSY };
            window.history = (window.history << 1 | u8::from(busy)) & REMEMBERED;
            if window.hot {
                window.hot = window.history.count_ones() >= STAYS_HOT;
            } else if window.history & TURNS_HOT == TURNS_HOT {
                // Of the time before nothing is held against it.
                *window = Window { history: REMEMBERED, hot: true };
            }
        }
        self.windows.retain(|_, window| window.history != 0);
        let new = counts.into_iter().filter(|(_, count)| *count >= BUSY);
        self.windows.extend(new.map(|(number, _)| (number, Window { history: 1, hot: false })));
        self.find_hot();
    }

    fn find_hot(&mut self) {
        let hot = self.windows.iter().filter(|(_, window)| window.hot);
        self.hot = hot.map(|(n, _)| n * WINDOW..(n + 1) * WINDOW).collect();
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
    use std::ops::Range;

    use super::*;

    const NONE: RangeSet = RangeSet::new();

    fn windows(range: Range<u64>) -> RangeSet {
        RangeSet::from(range.start * WINDOW..range.end * WINDOW)
    }

    fn heated(pages: &RangeSet) -> Heat {
        let mut heat = Heat::default();
        heat.learn(pages, &NONE);
        assert!(heat.hot().is_empty() && heat.is_informed());
        heat.learn(pages, &NONE);
        heat
    }

    #[test]
    fn only_whole_windows_turn_hot_and_those_that_are_nearly_all_written() {
        // The first window is half written, the third to a little more than three quarters.
        let pages = RangeSet::from_unsorted(vec![256..1024, 1024..1024 + BUSY + 1, 5000..5001]);
        let heat = heated(&pages);
        assert_eq!(heat.hot(), &windows(1..3));
    }

    #[test]
    fn one_miss_is_forgiven_and_two_are_not() {
        let pages = windows(0..4);
        let mut heat = heated(&pages);
        for _ in 0..10 {
            heat.learn(&pages, &pages);
            assert_eq!(heat.hot(), &pages, "one miss");
            for _ in 0..3 {
                heat.learn(&pages, &NONE);
            }
        }
        heat.learn(&pages, &pages);
        heat.learn(&pages, &pages);
        assert!(heat.hot().is_empty());
    }

    #[test]
    fn what_changes_each_time_never_faults_again() {
        let pages = windows(7..300);
        let mut heat = heated(&pages);
        for _ in 0..100 {
            heat.learn(&pages, &RangeSet::from(7 * WINDOW..7 * WINDOW + WINDOW / 2));
            assert_eq!(heat.hot(), &pages);
        }
    }

    #[test]
    fn what_is_unmapped_or_not_written_is_forgotten() {
        let (all, rest) = (windows(0..10), windows(0..3));
        let mut heat = heated(&all);
        for _ in 0..4 {
            heat.learn(&rest, &NONE);
        }
        assert_eq!(heat.hot(), &rest);
        assert_eq!(heat.windows.len(), 3);
        for _ in 0..8 {
            heat.learn(&NONE, &NONE);
        }
        assert!(heat.hot().is_empty() && heat.windows.is_empty());
    }

    #[test]
    fn written_once_in_a_while_stays_cold() {
        let pages = windows(0..2);
        let mut heat = Heat::default();
        for turn in 0..20 {
            let dirty = if turn % 2 == 0 { pages.clone() } else { NONE };
            heat.learn(&dirty, &NONE);
            assert!(heat.hot().is_empty());
        }
    }

    #[test]
    fn a_wrong_suspicion_is_dropped() {
        let mut heat = Heat::default();
        heat.suspect(3..5);
        assert_eq!(heat.hot(), &windows(3..5));
        assert!(!heat.is_informed());
        // The first checkpoint stores everything: it says nothing yet.
        heat.learn(&windows(0..5), &NONE);
        assert_eq!(heat.hot(), &windows(3..5));
        for _ in 0..2 {
            heat.learn(&windows(3..5), &windows(3..5));
        }
        assert!(heat.hot().is_empty());
    }
}
