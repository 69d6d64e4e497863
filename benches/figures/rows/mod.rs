//! The figures, in groups that can be measured one by one.

mod delta;
mod full;
mod idle;
mod resident;
mod restore;
mod solver;
mod strangers;
mod tree;

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
    /// What a job loses under `cr run`.
    Solver,
    /// The controller's resident memory.
    Resident,
    /// A tree of many processes.
    Tree,
    /// Descriptors and connections that nobody uses.
    Idle,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Full, Self::Delta, Self::Restore, Self::Tree, Self::Idle, Self::Resident, Self::Solver];

    /// For progress and errors.
    pub fn what(self) -> &'static str {
        match self {
            Self::Full => "first checkpoints",
            Self::Delta => "deltas",
            Self::Restore => "restores",
            Self::Solver => "the solver with and without checkpoints",
            Self::Resident => "the controller's memory",
            Self::Tree => "a tree of processes",
            Self::Idle => "idle descriptors",
        }
    }

    /// Measures them.
    pub fn measure(self, setting: &Setting) -> Result<Vec<Row>> {
        match self {
            Self::Full => full::measure(setting),
            Self::Delta => delta::measure(setting),
            Self::Restore => restore::measure(setting),
            Self::Solver => solver::measure(setting),
            Self::Resident => resident::measure(setting),
            Self::Tree => tree::measure(setting),
            Self::Idle => Ok(idle::measure(setting)?.into_iter().chain(strangers::measure(setting)?).collect()),
        }
    }
}

/// Arguments from anything that can be printed.
fn strings(args: &[&dyn std::fmt::Display]) -> Vec<String> {
    args.iter().map(ToString::to_string).collect()
}
