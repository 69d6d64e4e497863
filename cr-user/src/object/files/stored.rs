//! Open files as an image holds them: descriptions that are as they were in its parent are not stored again.

use std::collections::{HashMap, HashSet};

use rkyv::rancor;
use xxhash_rust::xxh3::xxh3_128;

use super::{Description, Files, KIND};
use crate::error::{Error, Result};
use crate::image::{self, Image};
use crate::object::records::{Sound, get};

/// So many bytes of descriptions may be there more often than they are stored.
const MOST_REPEATED: usize = 64 << 20;

/// The record in an image.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Everything but the descriptions that the parent has.
    pub files: Files,
    /// Where those belong, ascending.
    pub inherited: Vec<Inherited>,
}

/// A description that is as it was.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited {
    /// Its index among all.
    pub at: u32,
    /// Its index among all of the parent.
    pub from: u32,
}

/// What tells descriptions apart: hashes of 128 bits, with the index of each.
#[derive(Debug, Default)]
pub struct Digests(HashMap<u128, u32>);

impl Digests {
    /// Of all descriptions.
    ///
    /// # Errors
    /// When one cannot be archived.
    pub fn of(files: &Files) -> Result<Self> {
        let digests = files.descriptions.iter().enumerate().map(|(at, d)| Ok((digest(d)?, at as u32)));
        digests.collect::<Result<_>>().map(Self)
    }
}

fn digest(description: &Description) -> Result<u128> {
    let failed = |e: rancor::Error| {
        let why = std::io::Error::other(e.to_string());
        Error::system(format!("archiving the record of a {}", description.kind()), why)
    };
    rkyv::to_bytes::<rancor::Error>(description).map(|bytes| xxh3_128(&bytes)).map_err(failed)
}

impl Stored {
    /// What an image must hold on whose parent `parent` tells, and what tells of this one.
    ///
    /// # Errors
    /// When a description cannot be archived.
    pub fn new(mut files: Files, parent: &Digests) -> Result<(Self, Digests)> {
        let mut inherited = Vec::new();
        let mut own = Vec::new();
        let mut all = HashMap::new();
        for (at, description) in std::mem::take(&mut files.descriptions).into_iter().enumerate() {
            let digest = digest(&description)?;
            all.insert(digest, at as u32);
            match parent.0.get(&digest) {
                Some(from) => inherited.push(Inherited { at: at as u32, from: *from }),
                None => own.push(description),
            }
        }
        files.descriptions = own;
        Ok((Self { files, inherited }, Digests(all)))
    }

    /// The whole, with those of its parent; none if it refers to what the parent does not have, or to the same so often that it
    /// cannot be meant.
    fn join(self, parent: &Files) -> Option<Files> {
        let Self { mut files, inherited } = self;
        if repeated_bytes(&inherited, parent)? > MOST_REPEATED {
            return None;
        }
        let count = files.descriptions.len() + inherited.len();
        let mut own = std::mem::take(&mut files.descriptions).into_iter();
        let mut inherited = inherited.into_iter().peekable();
        for at in 0..count as u32 {
            let next = match inherited.next_if(|i| i.at == at) {
                Some(i) => parent.descriptions.get(i.from as usize)?.clone(),
                None => own.next()?,
            };
            files.descriptions.push(next);
        }
        inherited.peek().is_none().then_some(files)
    }
}

/// Bytes of the records of descriptions that are inherited more than once, each time but the first: those need not be in any file.
fn repeated_bytes(inherited: &[Inherited], parent: &Files) -> Option<usize> {
    let (mut seen, mut sizes) = (HashSet::new(), HashMap::new());
    let mut bytes = 0_usize;
    for Inherited { from, .. } in inherited.iter().filter(|inherited| !seen.insert(inherited.from)) {
        if !sizes.contains_key(from) {
            let archive = rkyv::to_bytes::<rancor::Error>(parent.descriptions.get(*from as usize)?).ok()?;
            sizes.insert(from, archive.len());
        }
        bytes = bytes.saturating_add(sizes[from]);
    }
    Some(bytes)
}

/// Reads the open files of the newest of these images, of which each is the parent of the one before it.
///
/// # Errors
/// When a record is not valid, or refers to what the parent does not have.
pub fn read(images: &[Image]) -> Result<Files> {
    let mut records = Vec::new();
    for image in images {
        let record: Stored = get(image, KIND)?;
        let is_whole = record.inherited.is_empty();
        records.push(record);
        if is_whole {
            break;
        }
    }
    let whole = records.into_iter().rev().try_fold(Files::default(), |parent, record| record.join(&parent));
    whole.ok_or_else(|| {
        let what = "its record `files` refers to descriptions that the checkpoints before it do not have";
        image::Error::damaged(images[0].path(), what).into()
    })
}

/// That its parts lead somewhere can only be seen of the whole.
impl Sound for Stored {}

#[cfg(test)]
mod tests {
    use super::super::FilePath;
    use super::super::eventfd::Eventfd;
    use super::super::opath::PathOnly;
    use super::*;

    fn files(counts: &[u64]) -> Files {
        let one = |count: &u64| Description::Eventfd(Eventfd { count: *count, semaphore: false, flags: 0 });
        Files { descriptions: counts.iter().map(one).collect(), ..Files::default() }
    }

    fn stored(all: &[u64], parent: &[u64]) -> Stored {
        Stored::new(files(all), &Digests::of(&files(parent)).unwrap()).unwrap().0
    }

    #[test]
    fn what_is_as_it_was_is_stored_once() {
        let (before, now) = ([1, 2, 3, 4], [9, 4, 2, 8, 1]);
        let delta = stored(&now, &before);
        assert_eq!(delta.files, files(&[9, 8]));
        assert_eq!(delta.join(&files(&before)), Some(files(&now)));
        let same = stored(&before, &before);
        assert_eq!(same.files.descriptions, []);
        assert_eq!(same.join(&files(&before)), Some(files(&before)));
        assert_eq!(stored(&now, &[]).inherited, [], "without a parent there is nothing to inherit");
    }

    #[test]
    fn alike_descriptions_stay_several() {
        let delta = stored(&[5, 5, 5], &[5]);
        assert_eq!(delta.join(&files(&[5])), Some(files(&[5, 5, 5])));
    }

    /// A few bytes of a delta could stand for more than there is memory.
    #[test]
    fn what_is_inherited_too_often_is_no_record() {
        let large = PathOnly { path: FilePath(vec![b'a'; 1 << 20]), flags: 0, kind: 0, rdev: 0 };
        let large = Description::PathOnly(large);
        let parent = Files { descriptions: vec![large], ..Files::default() };
        let delta = |count| Stored {
            files: Files::default(),
            inherited: (0..count).map(|at| Inherited { at, from: 0 }).collect(),
        };
        assert_eq!(delta(10).join(&parent).unwrap().descriptions.len(), 10);
        assert_eq!(delta(100).join(&parent), None);
    }

    #[test]
    fn what_leads_nowhere_is_found() {
        let delta = stored(&[1, 2], &[1, 2]);
        assert_eq!(delta.clone().join(&files(&[1])), None, "the parent has fewer");
        let mut beyond = delta;
        beyond.inherited[1].at = 7;
        assert_eq!(beyond.join(&files(&[1, 2])), None, "there is no such place");
    }
}
