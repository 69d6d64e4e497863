//! What the programs counted, without taking anything out of their records.

use aya::maps::PerCpuArray;
use cr_common::Lost;

use super::error::{map_error, no_map};
use super::{Hints, HintsError};

/// Counts since the programs were loaded, of all that they follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Page faults by a write.
    pub write_faults: u64,
    /// Faults and events that could not be recorded, tasks that could not be followed.
    pub lost: u64,
}

impl Hints {
    /// What was counted until now.
    pub fn totals(&self) -> Result<Totals, HintsError> {
        let lost = self.lost_pages()? + self.lost(Lost::Event)? + self.lost(Lost::Task)?;
        let map = self.ebpf.map("WRITE_FAULTS").ok_or_else(|| no_map("WRITE_FAULTS"))?;
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(map_error("WRITE_FAULTS"))?;
        let write_faults = counts.get(&0, 0).map_err(map_error("WRITE_FAULTS"))?.iter().sum();
        Ok(Totals { write_faults, lost })
    }
}
