//! What is remembered of the job from one checkpoint to the next, as far as its System V objects go.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Captured, Ipc, Kind, Object};
use crate::procfs;

/// Times in seconds are cut off.
const CUT_OFF: i64 = 1;

/// Objects and processes that the job has had.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Objects that were its own, or probably so, at the last checkpoint.
    objects: BTreeMap<(Kind, i32), Object>,
    /// Their ids were valid at another boot, or in another namespace. What had to be made again has them here.
    elsewhere: bool,
    /// Processes, each with the last time at which it was known to live, in seconds since 1970.
    lived: BTreeMap<i32, i64>,
}

impl Past {
    /// What a checkpoint of the job says.
    pub fn of_chain(ipc: &Ipc) -> Self {
        Self { objects: ipc.objects(), elsewhere: ipc.place != super::place(), lived: BTreeMap::new() }
    }

    /// Notes that a process of the job lived at that time. Only then: its number may be another's soon after.
    pub fn saw(&mut self, pid: i32, at: i64) {
        let last = self.lived.entry(pid).or_insert(at);
        *last = at.max(*last);
    }

    /// Notes what a checkpoint has found. Of processes, those are forgotten that have ended, and that no object names: they will
    /// not be asked about.
    pub fn learn(&mut self, captured: &Captured) {
        let Captured { ipc, named, .. } = captured;
        self.objects = ipc.objects();
        self.elsewhere = false;
        self.lived.retain(|pid, _| named.contains(pid) || ipc.pids.contains(pid));
    }

    pub(super) fn object(&self, of: (Kind, i32)) -> Option<&Object> {
        self.objects.get(&of)
    }

    pub(super) fn is_of_here(&self) -> bool {
        !self.elsewhere
    }

    /// Whether a process of the job had that number at that time, as far as is known.
    pub(super) fn had(&self, pid: i32, at: i64) -> bool {
        self.lived.get(&pid).is_some_and(|last| at <= last + CUT_OFF)
    }
}

/// Now, in seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// When a process began, in seconds since 1970; rather a little too early.
pub(super) fn beginning_of(pid: i32) -> i64 {
    const TICKS: f64 = 100.0;
    let uptime = procfs::text("/proc/uptime").unwrap_or_default();
    let uptime: f64 = uptime.split_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or(0.0);
    let age = procfs::start_time(pid).map_or(0.0, |start| uptime - start as f64 / TICKS);
    (now() - age).floor() as i64 - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_remembered_while_an_object_names_it() {
        let mut past = Past::default();
        for pid in [7, 8, 9] {
            past.saw(pid, 100);
        }
        let ipc = Ipc { pids: vec![9], ..Ipc::default() };
        past.learn(&Captured { ipc, named: [7].into(), ..Captured::default() });
        assert!(past.had(7, 100) && !past.had(8, 100) && past.had(9, 100));
        // It was not seen to live later.
        assert!(past.had(7, 101) && !past.had(7, 103));
    }
}
