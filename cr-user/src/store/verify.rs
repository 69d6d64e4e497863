//! Full validation of a store, and the search for its newest usable checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Chain, Error, Result, Store};
use crate::image::{self, Image, Parent};

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

/// What is to be said of a chain besides: whether the newest image's records, of which a store knows nothing, fit what the chain
/// holds. Called with chains that are whole; returns what is wrong with the newest image.
pub type Judge<'j> = &'j dyn Fn(&Chain) -> Option<image::Error>;

impl Store {
    /// Reads every byte of every checkpoint, with up to `threads` threads, and says which are not usable and why.
    ///
    /// An error is returned only if the directory cannot be listed; all else is in the report.
    pub fn verify(&self, threads: usize) -> Result<Report> {
        self.verify_with(threads, &|_| None)
    }

    /// The same, with a judge of each checkpoint that is whole.
    pub fn verify_with(&self, threads: usize, judge: Judge<'_>) -> Result<Report> {
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
        self.judge_all(&mut seen, &mut problems, judge);
        // All were pruned, before or after they were read, as there are newer ones.
        if seen.is_empty() && !listed.is_empty() {
            return self.verify_with(threads, judge);
        }
        let newest_intact = seen.iter().rev().find_map(|(id, outcome)| outcome.map(|_| *id));
        Ok(Report { checkpoints: seen.into_keys().collect(), problems, newest_intact })
    }

    /// Has those that are whole judged, each as the newest of its chain. Chains have images in common: each is opened once for all of
    /// those that it is the end of.
    fn judge_all(&self, seen: &mut BTreeMap<u64, Option<Parent>>, problems: &mut Vec<Problem>, judge: Judge<'_>) {
        let mut judged = BTreeSet::new();
        let whole: Vec<u64> = seen.iter().filter(|(_, found)| found.is_some()).map(|(id, _)| *id).collect();
        for id in whole.into_iter().rev() {
            if judged.contains(&id) {
                continue;
            }
            let mut next = match Chain::open(self, Some(id)) {
                Ok(chain) => Some(chain),
                Err(_) if self.has_lost(id) => {
                    seen.remove(&id);
                    continue;
                }
                Err(error) => {
                    seen.insert(id, None);
                    problems.push(Problem { id, error });
                    continue;
                }
            };
            while let Some(chain) = next.take_if(|chain| judged.insert(chain.newest().id())) {
                if let Some(error) = judge(&chain) {
                    let id = chain.newest().id();
                    seen.insert(id, None);
                    problems.push(Problem { id, error: error.into() });
                }
                next = chain.into_parent();
            }
        }
        problems.sort_by_key(|problem| problem.id);
    }

    /// The newest checkpoint that is whole down to its root, every byte of its chain read, and what is wrong with those
    /// that are newer. Older ones are not looked at, so this costs the reading of one chain where all is well.
    pub fn newest_intact(&self, threads: usize) -> Result<Report> {
        self.newest_intact_with(threads, &|_| None)
    }

    /// The same, with a judge of each checkpoint that is whole.
    pub fn newest_intact_with(&self, threads: usize, judge: Judge<'_>) -> Result<Report> {
        let listed = self.ids()?;
        let mut checkpoints = listed.clone();
        let mut problems = Vec::new();
        let mut newest_intact = None;
        // Pages of images that several chains share are read once.
        let mut intact_pages = BTreeSet::new();
        for &id in listed.iter().rev() {
            match self.verify_chain(id, &mut intact_pages, threads, judge) {
                Ok(()) => {
                    newest_intact = Some(id);
                    break;
                }
                Err(_) if self.has_lost(id) => checkpoints.retain(|other| *other != id),
                Err(error) => problems.push(Problem { id, error }),
            }
        }
        if checkpoints.is_empty() && !listed.is_empty() {
            return self.newest_intact_with(threads, judge);
        }
        problems.reverse();
        Ok(Report { checkpoints, problems, newest_intact })
    }

    fn verify_chain(&self, id: u64, intact_pages: &mut BTreeSet<u64>, threads: usize, judge: Judge<'_>) -> Result<()> {
        let chain = Chain::open(self, Some(id))?;
        for image in chain.images() {
            if !intact_pages.contains(&image.id()) {
                image.verify_pages(threads)?;
                intact_pages.insert(image.id());
            }
        }
        judge(&chain).map_or(Ok(()), |error| Err(error.into()))
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
