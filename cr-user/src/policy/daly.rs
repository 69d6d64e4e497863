//! The interval that loses the least time to checkpoints and to what is lost in failures.
//!
//! J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer
//! Systems 22 (2006), 303–312. Failures come as a Poisson process with a mean time between them of M; a checkpoint costs the
//! job δ; τ is the time in which it computes between two of them.

use std::time::Duration;

/// The interval τ for a checkpoint that costs δ, `cost`, and a mean time between failures M, `mtbf`.
///
/// Daly's higher-order estimate: √(2δM) · (1 + ⅓ √(δ/2M) + ⅑ · δ/2M) − δ, which is good for δ < 2M; M beyond that.
pub fn optimum(cost: Duration, mtbf: Duration) -> Duration {
    let (delta, mean) = (cost.as_secs_f64(), mtbf.as_secs_f64());
    if delta >= 2.0 * mean {
        return mtbf;
    }
    let ratio = delta / (2.0 * mean);
    let seconds = (2.0 * delta * mean).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - delta;
    Duration::from_secs_f64(seconds.max(0.0))
}

/// The share of the time that is lost with an interval: to checkpoints, and to work that is done again after failures. What a
/// restart itself takes is not in it. By Daly's complete cost function, M (e^((τ+δ)/M) − 1) / τ − 1.
pub fn waste(interval: Duration, cost: Duration, mtbf: Duration) -> f64 {
    let (tau, delta, mean) = (interval.as_secs_f64(), cost.as_secs_f64(), mtbf.as_secs_f64());
    if tau <= 0.0 || mean <= 0.0 {
        return f64::INFINITY;
    }
    mean * ((tau + delta) / mean).exp_m1() / tau - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: f64 = 60.0;

    fn optimum_s(cost: f64, mtbf: f64) -> f64 {
        optimum(Duration::from_secs_f64(cost), Duration::from_secs_f64(mtbf)).as_secs_f64()
    }

    /// The interval that loses the least, found by trying: golden-section search in the cost function itself.
    fn tried_out(cost: f64, mtbf: f64) -> f64 {
        let lost = |tau: f64| {
            let of = Duration::from_secs_f64;
            waste(of(tau), of(cost), of(mtbf))
        };
        let golden = (5f64.sqrt() - 1.0) / 2.0;
        let (mut low, mut high) = (mtbf * 1e-7, mtbf);
        while high - low > mtbf * 1e-9 {
            let (left, right) = (high - golden * (high - low), low + golden * (high - low));
            if lost(left) < lost(right) {
                high = right;
            } else {
                low = left;
            }
        }
        f64::midpoint(low, high)
    }

    /// Figures 3 to 5 of the paper: δ = 5 min, and what its model predicts for three machines.
    #[test]
    fn is_what_the_paper_predicts() {
        for (mtbf_minutes, predicted_minutes, digits) in
            [(24.0 * 60.0, 117.0, 0.5), (6.0 * 60.0, 57.0, 0.5), (15.0, 9.1, 0.05)]
        {
            let got = optimum_s(5.0 * MINUTE, mtbf_minutes * MINUTE) / MINUTE;
            assert!((got - predicted_minutes).abs() <= digits, "{mtbf_minutes}: {got} and not {predicted_minutes}");
        }
    }

    #[test]
    fn is_near_the_minimum_of_the_cost_function() {
        for mtbf in [60.0, 3600.0, 86_400.0, 30.0 * 86_400.0] {
            for ratio in [1e-7, 1e-5, 1e-3, 0.01, 0.1, 0.5] {
                let (got, best) = (optimum_s(ratio * mtbf, mtbf), tried_out(ratio * mtbf, mtbf));
                // Durations are whole nanoseconds, and the search is done in floating point.
                assert!(
                    (got - best).abs() <= 0.03 * best,
                    "{mtbf} s, δ/M {ratio}: {got} s, the minimum is at {best} s"
                );
            }
        }
    }

    #[test]
    fn has_its_limits() {
        let hour = Duration::from_secs(3600);
        assert_eq!(optimum(Duration::ZERO, hour), Duration::ZERO, "checkpoints that cost nothing");
        assert_eq!(optimum(2 * hour, hour), hour, "δ = 2M");
        assert_eq!(optimum(1000 * hour, hour), hour, "δ > 2M");
        // Just below the limit of validity the estimate meets the fallback.
        assert!((optimum_s(7199.0, 3600.0) - 3600.0).abs() < 0.15 * 3600.0, "{}", optimum_s(7199.0, 3600.0));
    }

    #[test]
    fn loses_less_than_other_intervals_do() {
        let (cost, mtbf) = (Duration::from_secs(30), Duration::from_secs(86_400));
        let best = waste(optimum(cost, mtbf), cost, mtbf);
        for factor in [0.25, 0.5, 2.0, 4.0] {
            assert!(waste(optimum(cost, mtbf).mul_f64(factor), cost, mtbf) > best, "{factor}");
        }
        // To first order, as much is lost to checkpoints as to failures: together √(2δ/M).
        assert!((best - (2.0 * 30.0 / 86_400f64).sqrt()).abs() < 1e-3, "{best}");
        assert!(waste(Duration::ZERO, cost, mtbf).is_infinite());
    }
}
