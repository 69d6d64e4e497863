//! Full or delta, by the sizes that were measured.
//!
//! A delta is the right thing as long as it is small. A job that rewrites nearly all it has makes deltas about as large as a full
//! checkpoint, and a chain of them costs a restore (which validates every image of the chain) and the disk many times what one full
//! checkpoint would. So a full one is taken when both are true:
//!
//! 1. a delta is at least [`NEARLY`] of a full one, so that a full one costs hardly more than what is written anyway;
//! 2. the deltas since the last full one are together more than [`TOO_MUCH`] times a full one.
//!
//! With deltas of just ¾ and a limit of 2, three deltas follow each full one: 1 + 3 · ¾ written where 4 · ¾ would have been, which
//! is a twelfth more, and less the larger the deltas are. A restore reads at most full, 2 fulls of deltas, and the delta that went
//! over: four times a full one, instead of as much as the job has run long.

use std::collections::VecDeque;

/// How large a delta must be, as a share of a full checkpoint, to be as good as one.
const NEARLY: f64 = 0.75;
/// How many times a full checkpoint the deltas of a chain may take, if they are that large.
const TOO_MUCH: f64 = 2.0;
/// Over how many of the last deltas the size of the next one is estimated.
const DELTAS: usize = 3;
/// Bytes of memory in a page.
const PAGE: f64 = 4096.0;

/// The sizes of a chain, from its last full checkpoint on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sizes {
    /// Bytes of all deltas.
    deltas: u64,
    /// Bytes of the last ones.
    last: VecDeque<u64>,
    /// Bytes that a full checkpoint takes for each page with content: less than a page where many are zero, or the same.
    per_page: Option<f64>,
}

impl Sizes {
    /// The sizes of a chain that others have written: bytes of its deltas, the oldest first, and for how many of the pages that have
    /// content it stores something.
    pub fn of_chain(deltas: impl IntoIterator<Item = u64>, stored_pages: u64, content_pages: u64) -> Self {
        let per_page = (content_pages > 0).then(|| PAGE * stored_pages as f64 / content_pages as f64);
        let mut sizes = Self { per_page, ..Self::default() };
        deltas.into_iter().for_each(|bytes| sizes.took_delta(bytes));
        sizes
    }

    /// A full checkpoint was taken of a job with so many pages that have content.
    pub fn took_full(&mut self, bytes: u64, content_pages: u64) {
        let per_page = (content_pages > 0).then(|| bytes as f64 / content_pages as f64);
        *self = Self { per_page, ..Self::default() };
    }

    /// A delta was taken.
    pub fn took_delta(&mut self, bytes: u64) {
        self.deltas += bytes;
        if self.last.len() == DELTAS {
            self.last.pop_front();
        }
        self.last.push_back(bytes);
    }

    /// Why the next checkpoint is to be a full one; none: a delta will do. `content_pages`: what the job has now.
    pub fn full_because(&self, content_pages: u64) -> Option<String> {
        let full = self.per_page? * content_pages as f64;
        let delta = self.last.iter().sum::<u64>() as f64 / self.last.len().max(1) as f64;
        if full <= 0.0 || delta < NEARLY * full || self.deltas as f64 <= TOO_MUCH * full {
            return None;
        }
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        Some(format!(
            "the deltas since the last full checkpoint are {:.1} MiB, a full one is about {:.1} MiB, and a delta lately {:.1} MiB",
            mib(self.deltas as f64),
            mib(full),
            mib(delta)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 1000;
    const FULL: u64 = PAGES * 4096;

    /// What is taken, one letter each, when every delta is `share` of a full checkpoint.
    fn sequence(share: impl Fn(usize) -> f64, count: usize) -> String {
        let mut sizes = Sizes::default();
        sizes.took_full(FULL, PAGES);
        let mut taken = String::from("F");
        for n in 0..count {
            if sizes.full_because(PAGES).is_some() {
                sizes.took_full(FULL, PAGES);
                taken.push('F');
            } else {
                sizes.took_delta((FULL as f64 * share(n)) as u64);
                taken.push('d');
            }
        }
        taken
    }

    #[test]
    fn small_deltas_stay_deltas_for_ever() {
        assert_eq!(sequence(|_| 0.01, 1000), format!("F{}", "d".repeat(1000)));
        assert_eq!(sequence(|_| 0.7, 100), format!("F{}", "d".repeat(100)));
    }

    #[test]
    fn a_job_that_rewrites_everything_gets_a_full_one_now_and_then() {
        assert_eq!(sequence(|_| 1.0, 11), "FdddFdddFddd");
        assert_eq!(sequence(|_| 0.76, 11), "FdddFdddFddd");
    }

    #[test]
    fn what_is_written_besides_and_what_a_restore_reads_is_bounded() {
        for share in [0.75, 0.8, 0.9, 1.0, 1.1] {
            let taken = sequence(|_| share, 400);
            let written: f64 = taken.chars().map(|c| if c == 'F' { 1.0 } else { share }).sum();
            assert!(written / (taken.len() as f64 * share) < 1.0 + 1.0 / 11.0, "{share}: {written}");
            let longest = taken.split('F').map(|deltas| 1.0 + deltas.len() as f64 * share).fold(0.0, f64::max);
            assert!(longest <= 4.3, "{share}: a restore reads {longest} times a full one");
        }
    }

    /// One large delta among small ones, or a short burst of them, is no reason.
    #[test]
    fn a_burst_is_no_reason() {
        assert!(!sequence(|n| if n % 10 == 0 { 1.0 } else { 0.05 }, 300)[1..].contains('F'));
        assert!(!sequence(|n| if n < 2 { 1.0 } else { 0.05 }, 300)[1..].contains('F'));
    }

    /// A job that has grown since: what counts is what a full checkpoint would hold now.
    #[test]
    fn growth_is_seen() {
        let mut sizes = Sizes::default();
        sizes.took_full(FULL, PAGES);
        (0..5).for_each(|_| sizes.took_delta(FULL));
        assert!(sizes.full_because(PAGES).is_some());
        assert!(sizes.full_because(10 * PAGES).is_none());
        // Half of the pages hold zeroes: a full one is half as large.
        sizes.took_full(FULL / 2, PAGES);
        (0..3).for_each(|_| sizes.took_delta(FULL / 2));
        let why = sizes.full_because(PAGES).unwrap();
        assert!(why.contains("5.9 MiB") && why.contains("2.0 MiB"), "{why}");
    }

    #[test]
    fn a_chain_of_others_counts() {
        assert!(Sizes::of_chain([FULL, FULL, FULL], PAGES, PAGES).full_because(PAGES).is_some());
        assert!(Sizes::of_chain([FULL, FULL], PAGES, PAGES).full_because(PAGES).is_none());
        assert!(Sizes::of_chain([], PAGES, PAGES).full_because(PAGES).is_none());
        assert!(Sizes::default().full_because(PAGES).is_none(), "nothing is known");
    }
}
