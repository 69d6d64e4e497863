//! The figures, in groups that can be measured one by one.

mod calls;
mod chain;
mod delta;
mod footprint;
mod full;
mod idle;
mod packed;
mod precopy;
mod quiet;
mod resident;
mod restore;
mod size;
mod solver;
mod still;
mod store;
mod strangers;
mod tree;
mod upload;

use anyhow::Result;
use clap::ValueEnum;

use crate::Setting;
use crate::report::Row;

/// Figures that are measured together.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Group {
    /// The first checkpoint: whole time and frozen time.
    Full,
    /// A delta: stored bytes and frozen time.
    Delta,
    /// A restore.
    Restore,
    /// A restore of a chain that is kept short.
    Chain,
    /// What a job loses under `cr run`.
    Solver,
    /// The controller's resident memory.
    Resident,
    /// A tree of many processes.
    Tree,
    /// Descriptors and connections that nobody uses.
    Idle,
    /// Many descriptors and many mappings.
    Things,
    /// Frozen time by resident memory.
    Size,
    /// Frozen time where nothing was written.
    Still,
    /// Frozen time of a job that goes on writing.
    Precopy,
    /// System calls of a job that is tracked, or beside one.
    Calls,
    /// An idle job that is tracked.
    Quiet,
    /// Memory that tracking takes.
    Footprint,
    /// The store, without a job.
    Store,
    /// Deltas that are compressed or encrypted.
    Packed,
    /// A store in a bucket.
    Upload,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Full,
        Self::Delta,
        Self::Restore,
        Self::Store,
        Self::Chain,
        Self::Packed,
        Self::Upload,
        Self::Tree,
        Self::Idle,
        Self::Things,
        Self::Size,
        Self::Still,
        Self::Precopy,
        Self::Resident,
        Self::Footprint,
        Self::Calls,
        Self::Quiet,
        Self::Solver,
    ];

    /// For progress and errors.
    pub fn what(self) -> &'static str {
        match self {
            Self::Full => "first checkpoints",
            Self::Delta => "deltas",
            Self::Restore => "restores",
            Self::Chain => "restores of a chain",
            Self::Solver => "the solver with and without checkpoints",
            Self::Resident => "the controller's memory",
            Self::Tree => "a tree of processes",
            Self::Idle => "idle descriptors",
            Self::Things => "many descriptors and mappings",
            Self::Size => "deltas of large jobs",
            Self::Still => "deltas of a large job that writes nothing",
            Self::Precopy => "checkpoints of a large job that goes on writing",
            Self::Calls => "system calls of a tracked job and beside one",
            Self::Quiet => "an idle job, tracked",
            Self::Footprint => "memory that tracking takes",
            Self::Store => "the store without a job",
            Self::Packed => "deltas, compressed and encrypted",
            Self::Upload => "checkpoints during an upload",
        }
    }

    /// Measures them.
    pub fn measure(self, setting: &Setting) -> Result<Vec<Row>> {
        match self {
            Self::Full => full::measure(setting),
            Self::Delta => delta::measure(setting),
            Self::Restore => restore::measure(setting),
            Self::Packed => packed::measure(setting),
            Self::Upload => upload::measure(setting),
            Self::Chain => chain::measure(setting),
            Self::Solver => solver::measure(setting),
            Self::Resident => resident::measure(setting),
            Self::Tree => tree::measure(setting),
            Self::Idle => Ok(idle::measure(setting)?.into_iter().chain(strangers::measure(setting)?).collect()),
            Self::Things => idle::things(setting),
            Self::Size => size::measure(setting),
            Self::Still => still::measure(setting),
            Self::Precopy => precopy::measure(setting),
            Self::Calls => calls::measure(setting),
            Self::Quiet => quiet::measure(setting),
            Self::Footprint => footprint::measure(setting),
            Self::Store => store::measure(setting),
        }
    }
}
