//! The eBPF programs at work for one job: what they noted, and what their iterators tell.

use crate::object::threads::RestartFunctions;
use crate::procfs::Vma;
use crate::ranges::RangeSet;
use crate::sys::PAGE;
use crate::track::Hints;
use crate::track::hints::{AddressSpaceId, HintsError};
use crate::track::iters::VmaRecord;

/// Programs that follow one job.
pub struct Watch {
    /// The programs.
    pub hints: Hints,
    /// The kernel's functions that resume interrupted waits.
    pub functions: RestartFunctions,
    /// What they follow; none when they only look.
    space: Option<AddressSpaceId>,
    /// Mappings with their flags in words, as they were when the iterator gave exactly these records.
    known: Option<(Vec<VmaRecord>, Vec<Vma>)>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("space", &self.space).finish_non_exhaustive()
    }
}

impl Watch {
    /// Loads the programs and lets them follow `pid`.
    ///
    /// # Errors
    /// Why they cannot be used here.
    pub fn begin(pid: i32) -> Result<Self, HintsError> {
        let mut hints = Hints::load()?;
        let space = hints.follow(pid)?;
        Ok(Self { hints, functions: RestartFunctions::read(), space: Some(space), known: None })
    }

    /// Loads only what looks, for a single checkpoint.
    ///
    /// # Errors
    /// Why they cannot be used here.
    pub fn look_only() -> Result<Self, HintsError> {
        Ok(Self { hints: Hints::iterators()?, functions: RestartFunctions::read(), space: None, known: None })
    }

    /// Follows the process in its new address space; none when that fails.
    pub fn follow_again(mut self, pid: i32) -> Option<Self> {
        self.known = None;
        if let Some(space) = self.space {
            // The address space is gone, and with it what was known of it.
            let _ = self.hints.unfollow(space);
            self.space = Some(self.hints.follow(pid).inspect_err(|e| log::info!("no eBPF programs: {e}")).ok()?);
        }
        Some(self)
    }

    /// Pages that a program saw being written since this was last asked; none when the record is not complete, which says
    /// nothing about what was not written.
    pub fn written(&mut self) -> RangeSet {
        match self.space.map(|space| self.hints.drain_written(space)) {
            Some(Ok(record)) => record.pages.iter().map(|r| r.start / PAGE..r.end / PAGE).collect(),
            None | Some(Err(_)) => RangeSet::new(),
        }
    }

    /// Remembers mappings that were read in words just now, if nothing changed meanwhile.
    pub fn learn(&mut self, pid: i32, read: impl FnOnce() -> std::io::Result<Vec<Vma>>) -> std::io::Result<Vec<Vma>> {
        let before = self.hints.vmas(pid).ok();
        let vmas = read()?;
        let after = self.hints.vmas(pid).ok();
        self.known =
            before.filter(|b| after.as_ref().is_some_and(|a| same(a, b))).map(|records| (records, vmas.clone()));
        Ok(vmas)
    }

    /// The mappings in words, if they are exactly those that are remembered.
    pub fn recall(&self, pid: i32) -> Option<Vec<Vma>> {
        let (records, vmas) = self.known.as_ref()?;
        same(&self.hints.vmas(pid).ok()?, records).then(|| vmas.clone())
    }
}

fn same(a: &[VmaRecord], b: &[VmaRecord]) -> bool {
    let key = |v: &VmaRecord| (v.start, v.end, v.flags, v.pgoff, v.inode, v.dev, v.has_file, v.anon_name);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| key(a) == key(b))
}
