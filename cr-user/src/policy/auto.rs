//! The interval from what checkpoints cost: measured, smoothed, by [Daly's formula](super::optimum), within limits.
//!
//! The cost that the formula asks for is the time that the job loses by a checkpoint. Ours are written while the job runs on, so
//! the time until one is durable is no part of it: it delays from when on a checkpoint is of use, by the same time for any
//! interval, and so does not move the optimum (N. H. Vaidya, "Impact of checkpoint latency on overhead ratio of a checkpointing
//! scheme", IEEE Transactions on Computers 46 (1997): the optimum depends on the overhead and not on the latency). What it does is
//! to limit how soon the next one can follow.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{optimum, waste};

/// Never more often, whatever the numbers say.
pub const LOWEST: Duration = Duration::from_secs(1);

/// Never less often, whatever the numbers say: a measurement that went wrong shall not leave a job without checkpoints.
pub const HIGHEST: Duration = Duration::from_secs(6 * 60 * 60);

/// Over how many checkpoints the costs are averaged.
pub const SAMPLES: usize = 8;

/// A checkpoint is followed by at least as long a time in which none is written: writing takes processors and bandwidth, which
/// nothing here measures.
const REST: u32 = 2;

/// The first checkpoint comes after this share of the mean time between failures,
const FIRST_SHARE: u32 = 100;
/// and not later than this: from then on there are measurements.
const FIRST_LATEST: Duration = Duration::from_secs(30);

/// What one checkpoint cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// How long the job stood still.
    pub frozen: Duration,
    /// How long it took over first writes to pages that the checkpoint before had protected.
    pub faults: Duration,
    /// From its start until it was durable.
    pub durable: Duration,
}

/// Which limit an interval is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// None: it is what the formula gives.
    Formula,
    /// Nothing was measured yet.
    First,
    /// The formula gives less than a second.
    Lowest,
    /// The formula gives less than twice the time until a checkpoint is durable.
    Durable,
    /// The formula gives more than the highest interval, or the mean time between failures.
    Highest,
}

/// An interval, and the numbers behind it. The names are those of the documented JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reasons {
    /// The interval in milliseconds.
    pub interval_ms: u64,
    /// The limit that it is at.
    pub bound: Bound,
    /// What the formula gives, in milliseconds; none before anything was measured.
    pub formula_ms: Option<u64>,
    /// Mean time between failures, in milliseconds.
    pub mtbf_ms: u64,
    /// How many checkpoints the following are means of.
    pub samples: usize,
    /// What a checkpoint costs the job, in milliseconds: the next two together.
    pub cost_ms: f64,
    /// How long it stands still.
    pub frozen_ms: f64,
    /// How long it takes over faults on protected pages: an estimate.
    pub faults_ms: f64,
    /// How long it takes until a checkpoint is durable, in milliseconds.
    pub durable_ms: f64,
    /// The share of the time, in percent, that is lost to checkpoints and failures with this interval.
    pub lost_percent: Option<f64>,
}

/// Finds the interval, anew after each checkpoint.
#[derive(Clone, Debug)]
pub struct Auto {
    mtbf: Duration,
    samples: VecDeque<Sample>,
    /// The oldest sample is of the first checkpoint of all, which has costs that do not come back.
    holds_first: bool,
}

impl Auto {
    /// Nothing is measured yet.
    pub fn new(mtbf: Duration) -> Self {
        Self { mtbf, samples: VecDeque::new(), holds_first: true }
    }

    /// A checkpoint is durable, and that is what it cost. The first one tracks the job's memory from scratch, and no page was
    /// protected before it: it counts only until there is another.
    pub fn learn(&mut self, sample: Sample) {
        if self.samples.len() == 1 && self.holds_first {
            self.samples.clear();
            self.holds_first = false;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The time from the start of one checkpoint to the start of the next.
    pub fn interval(&self) -> Duration {
        self.decide().0
    }

    /// The interval, and why it is that.
    pub fn reasons(&self) -> Reasons {
        let (interval, bound, formula) = self.decide();
        let mean = self.mean();
        let cost = mean.frozen + mean.faults;
        Reasons {
            interval_ms: interval.as_millis() as u64,
            bound,
            formula_ms: formula.map(|formula| formula.as_millis() as u64),
            mtbf_ms: self.mtbf.as_millis() as u64,
            samples: self.samples.len(),
            cost_ms: milliseconds(cost),
            frozen_ms: milliseconds(mean.frozen),
            faults_ms: milliseconds(mean.faults),
            durable_ms: milliseconds(mean.durable),
            lost_percent: formula.map(|_| (waste(interval, cost, self.mtbf) * 1e5).round() / 1e3),
        }
    }

    fn decide(&self) -> (Duration, Bound, Option<Duration>) {
        if self.samples.is_empty() {
            let first = (self.mtbf / FIRST_SHARE).clamp(LOWEST, FIRST_LATEST);
            return (first, Bound::First, None);
        }
        let mean = self.mean();
        let formula = optimum(mean.frozen + mean.faults, self.mtbf);
        let (mut interval, mut bound) = (formula, Bound::Formula);
        let highest = HIGHEST.min(self.mtbf);
        if interval > highest {
            (interval, bound) = (highest, Bound::Highest);
        }
        // Above all others: the next one cannot begin before this one has ended.
        for (limit, name) in [(LOWEST, Bound::Lowest), (mean.durable * REST, Bound::Durable)] {
            if interval < limit {
                (interval, bound) = (limit, name);
            }
        }
        (interval, bound, Some(formula))
    }

    fn mean(&self) -> Sample {
        let count = self.samples.len().max(1) as u32;
        let mean = |of: fn(&Sample) -> Duration| self.samples.iter().map(of).sum::<Duration>() / count;
        Sample { frozen: mean(|s| s.frozen), faults: mean(|s| s.faults), durable: mean(|s| s.durable) }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn sample(frozen: u64, faults: u64, durable: u64) -> Sample {
        Sample { frozen: ms(frozen), faults: ms(faults), durable: ms(durable) }
    }

    fn after(mtbf: Duration, samples: &[Sample]) -> Auto {
        let mut auto = Auto::new(mtbf);
        for sample in samples {
            auto.learn(*sample);
        }
        auto
    }

    #[test]
    fn the_first_one_comes_early() {
        for (mtbf, first) in [(DAY, 30), (Duration::from_secs(1200), 12), (Duration::from_secs(60), 1)] {
            let auto = Auto::new(mtbf);
            assert_eq!(auto.interval(), Duration::from_secs(first), "{mtbf:?}");
            let reasons = auto.reasons();
            assert_eq!((reasons.bound, reasons.samples, reasons.formula_ms), (Bound::First, 0, None));
        }
    }

    #[test]
    fn frozen_time_and_faults_are_the_cost_and_writing_is_not() {
        let auto = after(DAY, &[sample(30, 20, 900)]);
        assert_eq!(auto.interval(), optimum(ms(50), DAY));
        assert_eq!(after(DAY, &[sample(30, 20, 5)]).interval(), auto.interval());
        let reasons = auto.reasons();
        assert_eq!((reasons.bound, reasons.cost_ms, reasons.durable_ms), (Bound::Formula, 50.0, 900.0));
        // √(2 · 0.05 s · 1 day) is 93 s; so long an interval loses a thousandth.
        assert!((reasons.interval_ms as f64 - 93_000.0).abs() < 1000.0, "{reasons:?}");
        assert!((reasons.lost_percent.unwrap() - 0.108).abs() < 0.01, "{reasons:?}");
    }

    #[test]
    fn the_first_sample_counts_only_until_there_is_another() {
        let mut auto = after(DAY, &[sample(1000, 0, 10)]);
        assert_eq!(auto.interval(), optimum(ms(1000), DAY));
        auto.learn(sample(10, 0, 10));
        assert_eq!(auto.interval(), optimum(ms(10), DAY));
        auto.learn(sample(20, 0, 10));
        assert_eq!(auto.interval(), optimum(ms(15), DAY));
    }

    #[test]
    fn costs_are_smoothed_and_old_ones_forgotten() {
        let mut auto = after(DAY, &[sample(10, 0, 1); SAMPLES + 1]);
        let calm = auto.interval();
        auto.learn(sample(90, 0, 1));
        assert_eq!(auto.interval(), optimum(ms(20), DAY), "one in eight that costs nine times as much");
        for _ in 0..SAMPLES {
            assert_ne!(auto.interval(), calm);
            auto.learn(sample(10, 0, 1));
        }
        assert_eq!(auto.interval(), calm);
    }

    #[test]
    fn intervals_have_limits() {
        let bound = |mtbf, s| {
            let auto = after(mtbf, &[s]);
            (auto.interval(), auto.reasons().bound)
        };
        assert_eq!(bound(Duration::from_secs(60), sample(1, 0, 1)), (LOWEST, Bound::Lowest));
        assert_eq!(bound(DAY, sample(1, 0, 60_000)), (Duration::from_secs(120), Bound::Durable));
        assert_eq!(bound(DAY, sample(10_000_000, 0, 1)), (HIGHEST, Bound::Highest));
        // Not longer than the mean time between failures, as long as a checkpoint can be had within that at all.
        let minute = Duration::from_secs(60);
        assert_eq!(bound(minute, sample(500_000, 0, 1)), (minute, Bound::Formula));
        assert_eq!(bound(minute, sample(500_000, 0, 400_000)), (Duration::from_secs(800), Bound::Durable));
        assert_eq!(bound(DAY, Sample::default()), (LOWEST, Bound::Lowest), "nothing costs nothing");
    }
}
