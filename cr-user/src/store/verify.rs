//! Full validation of a store, and the search for its newest usable checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use super::{Chain, Error, Result, Store};
use crate::image::{self, Image, Parent};

/// What validation found.
#[derive(Debug)]
pub struct Report {
    /// Numbers of all checkpoints, ascending.
    pub checkpoints: Vec<u64>,
    /// What is wrong, by checkpoint, ascending.
    pub problems: Vec<Problem>,
    /// Checkpoints of which pages are not here, ascending. What is here of them is intact.
    pub incomplete: Vec<u64>,
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
        self.problems.is_empty() && self.incomplete.is_empty()
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
        self.verify_partial(threads, judge, &BTreeSet::new())
    }

    /// The same of a store that may lack pages of the images `partial`, as the spool of a bucket does: a page there that is all zeroes, and
    /// should not be, is not here; one that is anything else is damaged.
    pub fn verify_partial(&self, threads: usize, judge: Judge<'_>, partial: &BTreeSet<u64>) -> Result<Report> {
        let mut seen = BTreeMap::new();
        let mut problems = Vec::new();
        let mut absent = BTreeMap::new();
        let listed = self.ids()?;
        for &id in &listed {
            let outcome = if partial.contains(&id) {
                self.verify_one(id, &seen, |image| {
                    let slots = image.verify_pages_there(threads)?;
                    absent.extend((!slots.is_empty()).then_some((id, slots)));
                    Ok(())
                })
            } else {
                self.verify_one(id, &seen, |image| image.verify_pages(threads))
            };
            // Pruned meanwhile, and before it all that builds on it.
            if outcome.is_err() && self.has_lost(id) {
                continue;
            }
            seen.insert(id, outcome.as_ref().ok().copied());
            if let Err(error) = outcome {
                problems.push(Problem { id, error });
            }
        }
        let incomplete = self.judge_all(&mut seen, &mut problems, &absent, judge);
        // All were pruned, before or after they were read, as there are newer ones.
        if seen.is_empty() && !listed.is_empty() {
            return self.verify_partial(threads, judge, partial);
        }
        let is_intact =
            |(id, found): (&u64, &Option<Parent>)| (found.is_some() && !incomplete.contains(id)).then_some(*id);
        let newest_intact = seen.iter().rev().find_map(is_intact);
        let incomplete = incomplete.into_iter().collect();
        Ok(Report { checkpoints: seen.into_keys().collect(), problems, incomplete, newest_intact })
    }

    /// Has those that are whole judged, each as the newest of its chain. Chains have images in common: each is opened once for all of
    /// those that it is the end of. Gives those that need pages of the slots that are `absent`, by image.
    fn judge_all(
        &self,
        seen: &mut BTreeMap<u64, Option<Parent>>,
        problems: &mut Vec<Problem>,
        absent: &BTreeMap<u64, Vec<Range<u64>>>,
        judge: Judge<'_>,
    ) -> BTreeSet<u64> {
        let mut judged = BTreeSet::new();
        let mut incomplete = BTreeSet::new();
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
                let id = chain.newest().id();
                if let Some(error) = judge(&chain) {
                    seen.insert(id, None);
                    problems.push(Problem { id, error: error.into() });
                } else if chain.needs(absent) {
                    incomplete.insert(id);
                }
                next = chain.into_parent();
            }
        }
        problems.sort_by_key(|problem| problem.id);
        incomplete
    }

    /// The newest checkpoint that is whole down to its root, every byte of its chain read, and what is wrong with those
    /// that are newer. Older ones are not looked at, so this costs the reading of one chain where all is well.
    pub fn newest_intact(&self, threads: usize) -> Result<Report> {
        self.newest_intact_with(threads, &|_| None, &BTreeSet::new())
    }

    /// The same, with a judge of each checkpoint that is whole, of a store that may lack pages of the images `partial`: of a chain with
    /// one of those only the pages are read that the checkpoint needs.
    pub fn newest_intact_with(&self, threads: usize, judge: Judge<'_>, partial: &BTreeSet<u64>) -> Result<Report> {
        let listed = self.ids()?;
        let mut checkpoints = listed.clone();
        let mut problems = Vec::new();
        let mut newest_intact = None;
        // Pages of images that several chains share are read once.
        let mut intact_pages = BTreeSet::new();
        for &id in listed.iter().rev() {
            match self.verify_chain(id, &mut intact_pages, threads, judge, partial) {
                Ok(()) => {
                    newest_intact = Some(id);
                    break;
                }
                Err(_) if self.has_lost(id) => checkpoints.retain(|other| *other != id),
                Err(error) => problems.push(Problem { id, error }),
            }
        }
        if checkpoints.is_empty() && !listed.is_empty() {
            return self.newest_intact_with(threads, judge, partial);
        }
        problems.reverse();
        Ok(Report { checkpoints, problems, incomplete: Vec::new(), newest_intact })
    }

    fn verify_chain(
        &self,
        id: u64,
        intact_pages: &mut BTreeSet<u64>,
        threads: usize,
        judge: Judge<'_>,
        partial: &BTreeSet<u64>,
    ) -> Result<()> {
        let chain = Chain::open(self, Some(id))?;
        let is_partial = chain.images().iter().any(|image| partial.contains(&image.id()));
        if is_partial {
            chain.verify_pages(threads)?;
        }
        for image in chain.images() {
            if !is_partial && !intact_pages.contains(&image.id()) {
                image.verify_pages(threads)?;
                intact_pages.insert(image.id());
            }
        }
        judge(&chain).map_or(Ok(()), |error| Err(error.into()))
    }

    /// Checks one checkpoint, given what was found of all older ones: their identity, or none if not usable.
    fn verify_one(
        &self,
        id: u64,
        older: &BTreeMap<u64, Option<Parent>>,
        verify_pages: impl FnOnce(&Image) -> image::Result<()>,
    ) -> Result<Parent> {
        let image = self.open_image(id)?;
        verify_pages(&image)?;
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
