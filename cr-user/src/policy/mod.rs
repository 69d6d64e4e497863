//! When the next checkpoint is due, and whether it is a full one. Nothing here looks at a clock, a file or a process: numbers
//! that were measured go in, decisions and their reasons come out. `docs/policy.md` tells it to operators.

mod auto;
mod cadence;
mod compact;
mod daly;
mod kind;

pub use auto::{Auto, Bound, HIGHEST, LOWEST, Reasons, SAMPLES, Sample};
pub use cadence::{Cadence, DEFAULT_MTBF, LEAST_MTBF};
pub use compact::{Because, Length};
pub use daly::{optimum, waste};
pub use kind::Sizes;
