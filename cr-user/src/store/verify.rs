//! Full validation of a store, and the search for its newest usable checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Chain, Error, Result, Store};
use crate::image::{Image, Parent};

/// What validation found.
#[derive(Debug)]
pub struct Report {
    /// Numbers of all checkpoints, ascending.
    pub checkpoints: Vec<u64>,
    /// What is wrong, by checkpoint, ascending.
    pub problems: Vec<Problem>,
    /// The newest checkpoint that is whole down to its root.
    pub newest_intact: Option<u64>,
}

/// Why one checkpoint cannot be restored.
#[derive(Debug)]
pub struct Problem {
    /// Its number.
    pub id: u64,
    /// What is wrong with it.
    pub error: Error,
}

impl Report {
    /// Whether every checkpoint can be restored.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {}: {}", self.id, self.error)
    }
}

impl Store {
    /// Reads every byte of every checkpoint, with up to `threads` threads, and says which are not usable and why.
    ///
    /// An error is returned only if the directory cannot be listed; all else is in the report.
    pub fn verify(&self, threads: usize) -> Result<Report> {
        let mut seen = BTreeMap::new();
        let mut problems = Vec::new();
        let listed = self.ids()?;
        for &id in &listed {
            let outcome = self.verify_one(id, &seen, threads);
            // Pruned meanwhile, and before it all that builds on it.
            if outcome.is_err() && self.has_lost(id) {
                continue;
            }
            seen.insert(id, outcome.as_ref().ok().copied());
            if let Err(error) = outcome {
                problems.push(Problem { id, error });
            }
        }
        // All were pruned, as there are newer ones.
        if seen.is_empty() && !listed.is_empty() {
            return self.verify(threads);
        }
        let newest_intact = seen.iter().rev().find_map(|(id, outcome)| outcome.map(|_| *id));
        Ok(Report { checkpoints: seen.into_keys().collect(), problems, newest_intact })
    }

    /// The newest checkpoint that is whole down to its root, every byte of its chain read, and what is wrong with those
    /// that are newer. Older ones are not looked at, so this costs the reading of one chain where all is well.
    pub fn newest_intact(&self, threads: usize) -> Result<Report> {
        let listed = self.ids()?;
        let mut checkpoints = listed.clone();
        let mut problems = Vec::new();
        let mut newest_intact = None;
        // Pages of images that several chains share are read once.
        let mut intact_pages = BTreeSet::new();
        for &id in listed.iter().rev() {
            match self.verify_chain(id, &mut intact_pages, threads) {
                Ok(()) => {
                    newest_intact = Some(id);
                    break;
                }
                Err(_) if self.has_lost(id) => checkpoints.retain(|other| *other != id),
                Err(error) => problems.push(Problem { id, error }),
            }
        }
        if checkpoints.is_empty() && !listed.is_empty() {
            return self.newest_intact(threads);
        }
        problems.reverse();
        Ok(Report { checkpoints, problems, newest_intact })
    }

    fn verify_chain(&self, id: u64, intact_pages: &mut BTreeSet<u64>, threads: usize) -> Result<()> {
        for image in Chain::open(self, Some(id))?.images() {
            if !intact_pages.contains(&image.id()) {
                image.verify_pages(threads)?;
                intact_pages.insert(image.id());
            }
        }
        Ok(())
    }

    /// Checks one checkpoint, given what was found of all older ones: their identity, or none if not usable.
    fn verify_one(&self, id: u64, older: &BTreeMap<u64, Option<Parent>>, threads: usize) -> Result<Parent> {
        let image = self.open_image(id)?;
        image.verify_pages(threads)?;
        self.check_parent(&image, older)?;
        Ok(image.as_parent())
    }

    /// Checks that an image builds on what it was made on, given what was found of all older ones.
    pub(super) fn check_parent(&self, image: &Image, older: &BTreeMap<u64, Option<Parent>>) -> Result<()> {
        if let Some(parent) = image.parent() {
            let (dir, child) = (self.dir().to_owned(), image.id());
            match older.get(&parent.id) {
                None => return Err(Error::MissingParent { dir, child, parent: parent.id }),
                Some(None) => return Err(Error::BrokenParent { dir, child, parent: parent.id }),
                Some(Some(found)) if *found != parent => {
                    return Err(Error::OtherParent { dir, child, parent: parent.id });
                }
                Some(Some(_)) => (),
            }
        }
        Ok(())
    }

    /// Whether a checkpoint that was there is there no more.
    pub(super) fn has_lost(&self, id: u64) -> bool {
        matches!(self.image_path(id).try_exists(), Ok(false))
    }
}
