//! What the job is doing, as far as that is known without looking at it: counters, and what the last checkpoint learned.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Job;
use crate::checkpoint::narrow::Why;
use crate::object::spaces::Spaces;

/// What a job is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Page faults by a write since the job has been followed, in the address spaces that it has now; none where no programs follow
    /// it.
    pub write_faults: Option<u64>,
    /// Pages that are written so often that they are left unprotected.
    pub hot_pages: u64,
    /// Pages that have content, according to the last checkpoint.
    pub content_pages: u64,
    /// What the programs that follow the job could not record, and written pages that they did not notice.
    pub lost: u64,
    /// How much of the page tables was asked for what was written, the last time, and why so.
    pub scans: String,
}

impl Job {
    /// What the job is doing. Nothing of it is stopped, no page table is looked at, and nothing is taken out of any record.
    pub fn activity(&self) -> Activity {
        let totals = self.watch.as_ref().and_then(|watch| watch.hints.totals().ok());
        // Those of processes that have ended are kept as long as the chain may go on with their pids.
        let exists = |space: u64| Spaces::is_object(space) || self.members.iter().any(|m| m.space() == space);
        let content = self.content.iter().filter(|(space, _)| exists(**space));
        Activity {
            write_faults: totals.map(|totals| totals.write_faults),
            hot_pages: self.members.iter().map(|m| m.heat.hot().count()).sum(),
            content_pages: content.map(|(_, pages)| pages.count()).sum(),
            lost: totals.map_or(0, |totals| totals.lost) + self.missed_notes,
            scans: self.scans(),
        }
    }

    fn scans(&self) -> String {
        let members = || self.members.iter().filter(|m| m.has_own_memory());
        let wide = || members().filter_map(|m| m.wide);
        match (wide().next(), wide().count(), members().count()) {
            _ if self.watch.is_none() => format!("full: {}", Why::Alone),
            (None, ..) => "narrow".to_owned(),
            (Some(why), wide, all) if wide == all => format!("full: {why}"),
            (Some(why), wide, all) => format!("narrow, but full for {wide} of {all} processes: {why}"),
        }
    }
}
