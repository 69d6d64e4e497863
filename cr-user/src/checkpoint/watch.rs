//! The eBPF programs at work for one job: what they noted, and what their iterators tell.

use std::collections::HashMap;

use crate::object::threads::RestartFunctions;
use crate::procfs::Vma;
use crate::ranges::RangeSet;
use crate::sys::PAGE;
use crate::track::Hints;
use crate::track::hints::{AddressSpaceId, HintsError};
use crate::track::iters::VmaRecord;

/// Programs that follow a job.
pub struct Watch {
    /// The programs.
    pub hints: Hints,
    /// The kernel's functions that resume interrupted waits.
    pub functions: RestartFunctions,
    /// What they follow, by pid; none when they only look.
    spaces: Option<HashMap<i32, AddressSpaceId>>,
    /// By pid, mappings with their flags in words, as they were when the iterator gave exactly these records.
    known: HashMap<i32, (Vec<VmaRecord>, Vec<Vma>)>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("spaces", &self.spaces).finish_non_exhaustive()
    }
}

impl Watch {
    /// Loads the programs and lets them follow processes.
    ///
    /// # Errors
    /// Why they cannot be used here.
    pub fn begin(pids: impl Iterator<Item = i32>) -> Result<Self, HintsError> {
        let hints = Hints::load()?;
        let mut watch =
            Self { hints, functions: RestartFunctions::read(), spaces: Some(HashMap::new()), known: HashMap::new() };
        pids.for_each(|pid| watch.follow(pid));
        Ok(watch)
    }

    /// Loads only what looks, for a single checkpoint.
    ///
    /// # Errors
    /// Why they cannot be used here.
    pub fn look_only() -> Result<Self, HintsError> {
        let hints = Hints::iterators()?;
        Ok(Self { hints, functions: RestartFunctions::read(), spaces: None, known: HashMap::new() })
    }

    /// Follows a process from now on, if it is not followed yet. Not to follow it loses nothing but a cross-check.
    pub fn follow(&mut self, pid: i32) {
        let Some(spaces) = self.spaces.as_mut().filter(|s| !s.contains_key(&pid)) else { return };
        match self.hints.follow(pid) {
            Ok(space) => drop(spaces.insert(pid, space)),
            Err(e) => log::info!("the eBPF programs do not follow pid {pid}: {e}"),
        }
    }

    /// Follows the process in its new address space.
    pub fn follow_again(&mut self, pid: i32) {
        self.forget(pid);
        self.follow(pid);
    }

    /// Forgets a process whose address space is gone, and with it what was known of it.
    pub fn forget(&mut self, pid: i32) {
        self.known.remove(&pid);
        if let Some(space) = self.spaces.as_mut().and_then(|s| s.remove(&pid)) {
            let _ = self.hints.unfollow(space);
        }
    }

    /// Pages that a program saw being written since this was last asked; none when the record is not complete, which says
    /// nothing about what was not written.
    pub fn written(&mut self, pid: i32) -> RangeSet {
        let space = self.spaces.as_ref().and_then(|s| s.get(&pid)).copied();
        match space.map(|space| self.hints.drain_written(space)) {
            Some(Ok(record)) => record.pages.iter().map(|r| r.start / PAGE..r.end / PAGE).collect(),
            None | Some(Err(_)) => RangeSet::new(),
        }
    }

    /// Remembers mappings that were read in words just now, if nothing changed meanwhile.
    pub fn learn(&mut self, pid: i32, read: impl FnOnce() -> std::io::Result<Vec<Vma>>) -> std::io::Result<Vec<Vma>> {
        let before = self.hints.vmas(pid).ok();
        let vmas = read()?;
        let after = self.hints.vmas(pid).ok();
        match before.filter(|b| after.as_ref().is_some_and(|a| same(a, b))) {
            Some(records) => drop(self.known.insert(pid, (records, vmas.clone()))),
            None => drop(self.known.remove(&pid)),
        }
        Ok(vmas)
    }

    /// The mappings in words, if they are exactly those that are remembered.
    pub fn recall(&self, pid: i32) -> Option<Vec<Vma>> {
        let (records, vmas) = self.known.get(&pid)?;
        same(&self.hints.vmas(pid).ok()?, records).then(|| vmas.clone())
    }
}

fn same(a: &[VmaRecord], b: &[VmaRecord]) -> bool {
    let key = |v: &VmaRecord| (v.start, v.end, v.flags, v.pgoff, v.inode, v.dev, v.has_file, v.anon_name);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| key(a) == key(b))
}
