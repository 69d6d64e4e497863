//! Removing checkpoints that are not wanted any more, without ever leaving one that stays without what it builds on.
//!
//! A writer does it, so nobody publishes meanwhile. The newest go first, and the directory is synced after each: whatever builds on
//! a checkpoint is newer than it, so wherever this is cut short, nothing is there whose parents are gone.
//!
//! Readers hold no lock. Those that have an image mapped keep it, whatever becomes of its name; those that come to a name that is
//! gone find that the checkpoint is not in the store any more ([`Error::NoCheckpoint`]), and a look at all of them
//! ([`Store::verify`]) passes it over.
//!
//! Only checkpoints are removed: not the tails of files that a restore to one of them cut off, nor the journal.

mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

pub use rules::{Candidate, Reason, Rules, Staying, decide};

use super::{Chain, Error, Result, Store, StoreWriter};
use crate::fault;
use crate::image::{self, Parent};

/// What was, or would be, removed and kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Nothing was changed.
    pub dry_run: bool,
    /// What stays, ascending.
    pub kept: Vec<Fate>,
    /// What goes, ascending.
    pub removed: Vec<Fate>,
}

/// What becomes of a checkpoint, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// Its number.
    pub id: u64,
    /// What it is a delta on; none for a full one, and where it cannot be read.
    pub parent: Option<u64>,
    /// When the job was frozen for it, or where that cannot be read, when the file was written: nanoseconds since 1970 (UTC).
    pub taken_at: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// Why it stays for its own sake.
    pub reasons: Vec<Reason>,
    /// Which ones that stay build on it.
    pub needed_by: Vec<u64>,
    /// Why it cannot be restored. Pages are not looked at: that is what `cr verify` does.
    pub problem: Option<String>,
}

/// A checkpoint in the store.
struct Found {
    candidate: Candidate,
    problem: Option<Error>,
}

impl Store {
    /// What [`StoreWriter::prune`] would do. `in_use` is what a running job's next delta builds on.
    ///
    /// # Errors
    /// When no rule was given, or something in the store cannot be judged: it cannot be read, is of a newer format, or does not
    /// belong here. Damage is no error.
    pub fn plan_pruning(&self, rules: &Rules, in_use: Option<u64>) -> Result<Pruned> {
        if rules.is_empty() {
            return Err(Error::NoRules);
        }
        let found = self.find_candidates()?;
        let candidates: Vec<Candidate> = found.values().map(|found| found.candidate).collect();
        let staying = decide(&candidates, rules, in_use);
        let mut plan = Pruned { dry_run: true, ..Pruned::default() };
        for Found { candidate: Candidate { id, parent, taken_at, bytes, .. }, problem } in found.into_values() {
            let children = candidates.iter().filter(|c| c.parent == Some(id) && staying.contains_key(&c.id));
            let (reasons, needed_by) = (staying.get(&id), children.map(|c| c.id).collect());
            let problem = problem.map(|problem| problem.to_string());
            let list = if reasons.is_some() { &mut plan.kept } else { &mut plan.removed };
            let reasons = reasons.into_iter().flatten().copied().collect();
            list.push(Fate { id, parent, taken_at, bytes, reasons, needed_by, problem });
        }
        Ok(plan)
    }

    /// All checkpoints, with what can be told of them without reading their pages.
    fn find_candidates(&self) -> Result<BTreeMap<u64, Found>> {
        let (mut all, mut seen) = (BTreeMap::new(), BTreeMap::new());
        for id in self.ids()? {
            match self.find_candidate(id, &mut seen) {
                Ok(found) => drop(all.insert(id, found)),
                // Without the lock, somebody else may be pruning.
                Err(Error::NoCheckpoint { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // The one that everything hangs on is looked at more closely: with all that it builds on, at once.
        for (id, found) in all.iter_mut().rev().filter(|(_, found)| found.candidate.usable) {
            match Chain::open(self, Some(*id)) {
                Ok(_) => break,
                Err(error) if is_damage(&error) => (found.candidate.usable, found.problem) = (false, Some(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// One checkpoint, given the identities of all older ones: none of those that are not usable. Adds its own.
    fn find_candidate(&self, id: u64, seen: &mut BTreeMap<u64, Option<Parent>>) -> Result<Found> {
        let image = match self.open_image(id) {
            Ok(image) => image,
            Err(error) if is_damage(&error) => {
                let path = self.image_path(id);
                let file = fs::metadata(&path).map_err(|source| Error::io(&path, "look at", source))?;
                let written = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                let taken_at = written.map_or(0, |time| time.as_nanos() as u64);
                let candidate = Candidate { id, parent: None, taken_at, bytes: file.len(), usable: false };
                seen.insert(id, None);
                return Ok(Found { candidate, problem: Some(error) });
            }
            Err(error) => return Err(error),
        };
        let summary = image.summary();
        let problem = self.check_parent(&image, seen).err();
        let (parent, usable) = (summary.parent.map(|parent| parent.id), problem.is_none());
        seen.insert(id, usable.then(|| image.as_parent()));
        let candidate = Candidate { id, parent, taken_at: summary.taken_at, bytes: summary.file_bytes, usable };
        Ok(Found { candidate, problem })
    }
}

impl StoreWriter {
    /// Removes the checkpoints that the rules do not keep. `in_use` is what a running job's next delta builds on.
    ///
    /// # Errors
    /// As those of [`Store::plan_pruning`], and nothing is removed then; or when a file cannot be removed, or that not be made
    /// durable: what was removed until then is gone, and what is left is whole.
    pub fn prune(&self, rules: &Rules, in_use: Option<u64>) -> Result<Pruned> {
        let plan = self.store().plan_pruning(rules, in_use)?;
        if !plan.removed.is_empty() {
            // An earlier pruning may have failed between a removal and its becoming durable. What is gone since must not come back
            // without that on which it builds.
            self.store().sync_names()?;
        }
        for Fate { id, .. } in plan.removed.iter().rev() {
            fault::point("prune.remove")?;
            let path = self.store().image_path(*id);
            match self.store().disk().remove(&path) {
                Err(source) if source.kind() != ErrorKind::NotFound => return Err(Error::io(&path, "remove", source)),
                _ => log::info!("removed {}", path.display()),
            }
            fault::point("prune.removed")?;
            // Each by itself: of several names that go, a file system may forget any after a loss of power.
            self.store().sync_names()?;
        }
        Ok(Pruned { dry_run: false, ..plan })
    }
}

/// Whether a checkpoint cannot be restored, for ever. Where a read fails, or another `cr` can read it, or it has another's name, that
/// is not so: it is no reason to take it for worthless.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::MissingParent { .. } | Error::OtherParent { .. } | Error::BrokenParent { .. } => true,
        Error::Image(error) => {
            matches!(error, image::Error::NotAnImage { .. } | image::Error::Damaged { .. })
        }
        _ => false,
    }
}
