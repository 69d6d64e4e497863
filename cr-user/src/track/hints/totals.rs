//! What the programs counted, without taking anything out of their records.

use aya::maps::HashMap;
use cr_common::{Followed, Lost};

use super::error::{map_error, no_map};
use super::{Hints, HintsError};

/// Counts of all that is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Page faults by a write, in the address spaces that are followed now. It is less than before once one of them has ended.
    pub write_faults: u64,
    /// Faults and events that could not be recorded, tasks that could not be followed.
    pub lost: u64,
}

impl Hints {
    /// What was counted until now.
    pub fn totals(&self) -> Result<Totals, HintsError> {
        let lost = self.lost_pages()? + self.lost(Lost::Event)? + self.lost(Lost::Task)?;
        let map = self.loaded.ebpf.map("FOLLOWED").ok_or_else(|| no_map("FOLLOWED"))?;
        let followed: HashMap<_, u64, Followed> = HashMap::try_from(map).map_err(map_error("FOLLOWED"))?;
        // One that ends meanwhile is not counted.
        let write_faults = followed.iter().filter_map(Result::ok).map(|(_, space)| space.faults).sum();
        Ok(Totals { write_faults, lost })
    }
}
