//! When a chain is to be made one image.
//!
//! A restore opens and validates every image of a chain, and reads pages from wherever the newest image that names them has them. So a
//! chain is compacted when either is true:
//!
//! 1. it has as many images as it may have;
//! 2. the deltas together store more than [`SHARE`] of the pages that one full image would, and more than [`LEAST`]: a restore then
//!    reads from all over them, for a time that is noticed. Unless the last delta alone is [`NEARLY`] a full one: for a job that rewrites all it has, each compaction would be out of date at
//!    once, and [`Sizes`](super::Sizes) has a full checkpoint taken now and then.

use std::fmt;

/// Which share of a full image's pages the deltas of a chain may store.
const SHARE: f64 = 0.25;
/// How many pages they must store to be worth it: 64 MiB.
const LEAST: u64 = 16_384;
/// How large a delta must be, as a share of a full image, to be as good as one.
const NEARLY: f64 = 0.75;

/// What a chain consists of, from its full image on. Pages are those stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    images: u32,
    full: u64,
    deltas: u64,
    last: u64,
}

/// Why a chain is to be compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It has so many images.
    Images(u32),
    /// Its deltas store so many pages, and a full image would store so many.
    Pages {
        /// Of all deltas.
        deltas: u64,
        /// Of a full image.
        full: u64,
    },
}

impl Length {
    /// A full image of so many pages, with nothing that builds on it.
    pub fn full(pages: u64) -> Self {
        Self { images: 1, full: pages, deltas: 0, last: 0 }
    }

    /// A delta of so many pages was added.
    pub fn add(&mut self, pages: u64) {
        self.images += 1;
        self.deltas += pages;
        self.last = pages;
    }

    /// How many images there are.
    pub fn images(&self) -> u32 {
        self.images
    }

    /// It was found out that a full image would store so many pages now.
    pub fn learn_full(&mut self, pages: u64) {
        self.full = pages;
    }

    /// Why it is to be compacted, if a chain may have fewer than `after` images (0: as many as it likes, of any size).
    pub fn compact_because(&self, after: u32) -> Option<Because> {
        let Self { images, full, deltas, last } = *self;
        let share = |pages: u64, share: f64| pages as f64 > share * full as f64;
        if after == 0 || images < 2 {
            None
        } else if images >= after {
            Some(Because::Images(images))
        } else if deltas > LEAST && share(deltas, SHARE) && !share(last, NEARLY) {
            Some(Because::Pages { deltas, full })
        } else {
            None
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Images(images) => write!(f, "the chain has {images} images"),
            Self::Pages { deltas, full } => {
                write!(f, "the deltas hold {deltas} pages, and a full image would hold {full}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: u64 = 1_000_000;

    /// After how many deltas of so many pages on a full image there is a reason, and which.
    fn after(deltas: impl Fn(u64) -> u64, most: u32) -> Option<(u64, Because)> {
        let mut length = Length::full(FULL);
        (1..200).find_map(|n| {
            length.add(deltas(n));
            Some((n, length.compact_because(most)?))
        })
    }

    #[test]
    fn a_chain_has_a_bounded_length() {
        assert_eq!(after(|_| 1, 16), Some((15, Because::Images(16))));
        assert_eq!(after(|_| 0, 2), Some((1, Because::Images(2))));
        assert_eq!(after(|_| FULL / 2, 0), None, "never");
        assert_eq!(Length::full(0).compact_because(1), None, "one image is no chain");
    }

    #[test]
    fn and_a_bounded_weight() {
        assert_eq!(after(|_| FULL / 50, 16), Some((13, Because::Pages { deltas: FULL * 13 / 50, full: FULL })));
        assert_eq!(after(|_| FULL / 3, 16), Some((1, Because::Pages { deltas: FULL / 3, full: FULL })));
        // The job has grown since: what counts is what a full image would hold now.
        let mut length = Length::full(10);
        length.add(FULL / 5);
        length.learn_full(FULL);
        assert_eq!(length.compact_because(16), None);
        // A small job restores in no time whatever its chain.
        let mut small = Length::full(1000);
        small.add(700);
        assert_eq!(small.compact_because(16), None);
    }

    #[test]
    fn a_job_that_rewrites_everything_is_left_to_full_checkpoints() {
        assert_eq!(after(|_| FULL / 10 * 9, 16), Some((15, Because::Images(16))));
        // Once it does so no more, its chain is compacted.
        let last = after(|n| if n < 4 { FULL / 10 * 9 } else { 10 }, 16);
        assert_eq!(last, Some((4, Because::Pages { deltas: FULL / 10 * 27 + 10, full: FULL })));
    }
}
