//! How often checkpoints are taken without being asked for.

use std::time::Duration;

/// The mean time between failures where nobody says another: one failure a day, of the machine, the network or the time limit of
/// a batch system together.
pub const DEFAULT_MTBF: Duration = Duration::from_secs(24 * 60 * 60);

/// A machine that fails more often than this gets nothing done.
pub const LEAST_MTBF: Duration = Duration::from_secs(10);

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cadence {
    /// Always after the same time.
    Every(Duration),
    /// As often as what was measured makes best.
    Auto {
        /// Mean time between failures.
        mtbf: Duration,
    },
}
