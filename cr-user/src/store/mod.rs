//! The chain of images of one job, in one directory.
//!
//! | name | what |
//! |---|---|
//! | `cr-store.json` | marks the directory as a store: `{"format":1,"job":"<32 hex digits>"}`; of a [sealed](crate::seal) one it holds the key, wrapped |
//! | `00000001.cr`, … | one published checkpoint each, named by its number |
//! | `compacted.tmp` | a full image that is being made [of a chain](compact); it gets its number when it is published |
//! | `*.tmp` | not published; what a dead writer left is removed by the next one |
//! | `lock` | locked (`flock`) by the writer, whose pid it holds |
//!
//! Readers ([`Store`], [`Chain`]) take no lock: a published image never changes, and [goes](prune) after all that builds on it. Writers hold the lock
//! ([`StoreWriter`]). Other names belong to other parts of `cr` and are left alone.

mod chain;
pub mod compact;
mod error;
mod finder;
mod marker;
mod pages;
pub mod prune;
mod resolve;
mod verify;
mod writer;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marker::Marked;

pub use chain::Chain;
pub use error::{Error, Result};
pub use finder::Finder;
pub use marker::MARKER;
pub use pages::PageReader;
pub use resolve::{Resolve, Resolved, Source};
pub use verify::{Judge, Problem, Report};
pub use writer::{LOCK, StoreWriter};

use crate::disk::Disk;
use crate::image::{self, Compression, Form, Image, JobId, RecordKind};
use crate::seal::{self, Keys, Signer, StoreKey, Trust, Wrapped};

/// What names of published images end in.
const IMAGE_SUFFIX: &str = ".cr";
/// What names of unpublished files end in.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// A store, for reading. [`lock`](Self::lock) makes it one for writing.
#[derive(Debug, Clone)]
pub struct Store {
    disk: Disk,
    dir: PathBuf,
    job: JobId,
    known: &'static [RecordKind],
    seal: Option<Wrapped>,
    /// The key of a sealed store, if it was given.
    key: Option<Arc<StoreKey>>,
    signer: Option<Arc<Signer>>,
    trust: Trust,
}

impl Store {
    /// Opens the store in `dir`, or makes one there (mode 0700) if the directory is missing or empty.
    ///
    /// A directory that holds other things and no store is refused. `known` is passed to [`Image::open`].
    pub fn create_or_open(dir: &Path, known: &'static [RecordKind]) -> Result<Self> {
        Self::create_or_open_with(&Disk::default(), dir, known, &Keys::default())
    }

    /// As [`create_or_open`](Self::create_or_open), on a disk that may have a witness.
    pub fn create_or_open_on(disk: &Disk, dir: &Path, known: &'static [RecordKind]) -> Result<Self> {
        Self::create_or_open_with(disk, dir, known, &Keys::default())
    }

    /// As [`create_or_open_on`](Self::create_or_open_on): a new store is sealed if there is a secret among the keys. One that is there must be
    /// sealed with that secret; or not be sealed, if there is none.
    pub fn create_or_open_with(disk: &Disk, dir: &Path, known: &'static [RecordKind], keys: &Keys) -> Result<Self> {
        let marked = marker::create_or_read(disk, dir, keys.secret.as_deref())?;
        let store = Self::unlock(disk.clone(), dir, known, marked, keys)?;
        store.need_key()?;
        Ok(store)
    }

    /// Opens the store in `dir`, which must be one. Of a sealed one no checkpoint can be opened.
    pub fn open_existing(dir: &Path, known: &'static [RecordKind]) -> Result<Self> {
        Self::open_existing_with(dir, known, &Keys::default())
    }

    /// The same, with keys. That there is none for a sealed store is an error only once it is [needed](Self::need_key).
    pub fn open_existing_with(dir: &Path, known: &'static [RecordKind], keys: &Keys) -> Result<Self> {
        let marked = marker::read(dir)?.ok_or_else(|| Error::NoStore { dir: dir.to_owned() })?;
        Self::unlock(Disk::default(), dir, known, marked, keys)
    }

    fn unlock(disk: Disk, dir: &Path, known: &'static [RecordKind], marked: Marked, keys: &Keys) -> Result<Self> {
        let (dir, Marked { job, seal }) = (dir.to_owned(), marked);
        let key = match (&seal, &keys.secret) {
            (Some(wrapped), Some(secret)) => {
                let path = dir.join(MARKER);
                let key = wrapped.unwrap(&job.0, secret).map_err(|what| Error::BadMarker { path, what })?;
                let wrong =
                    || seal::Error::Wrong { dir: dir.clone(), from: secret.to_string(), with: wrapped.with(secret) };
                Some(Arc::new(key.ok_or_else(wrong)?))
            }
            (None, Some(secret)) => return Err(seal::Error::Unneeded { dir, from: secret.to_string() }.into()),
            (_, None) => None,
        };
        Ok(Self { disk, dir, job, known, seal, key, signer: keys.signer.clone(), trust: keys.trust.clone() })
    }

    /// Whether checkpoints can be opened and written: that a sealed store has its key.
    ///
    /// # Errors
    /// When it has not.
    pub fn need_key(&self) -> Result<()> {
        match &self.seal {
            Some(wrapped) if self.key.is_none() => {
                Err(seal::Error::Missing { dir: self.dir.clone(), how: wrapped.how() }.into())
            }
            _ => Ok(()),
        }
    }

    /// Whether its checkpoints are encrypted.
    pub fn is_sealed(&self) -> bool {
        self.seal.is_some()
    }

    /// Checks that those who may have signed the images of a chain have signed each of them.
    ///
    /// # Errors
    /// When one is not signed, or by somebody else: all such are named.
    pub fn check_trust(&self, chain: &Chain) -> Result<()> {
        let strangers = chain.images().iter().rev().filter(|image| !self.trust.includes(image.signer()));
        let which = strangers.map(|image| match image.signer() {
            None => format!("checkpoint {} is not signed", image.id()),
            Some(key) => format!("checkpoint {} is signed by {key}, who is not trusted", image.id()),
        });
        let which = which.collect::<Vec<_>>().join(", ");
        if which.is_empty() { Ok(()) } else { Err(seal::Error::Untrusted { dir: self.dir.clone(), which }.into()) }
    }

    /// How its images are stored, with pages compressed so.
    fn form(&self, compression: Compression) -> Result<Form> {
        self.need_key()?;
        Ok(Form { compression, key: self.key.clone(), signer: self.signer.clone() })
    }

    /// Takes the writer's lock and removes what an earlier writer left unpublished.
    ///
    /// Does not wait: if somebody holds the lock, the error names its pid.
    pub fn lock(&self) -> Result<StoreWriter> {
        StoreWriter::lock(self.clone())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The job whose checkpoints these are.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Numbers of the published checkpoints, ascending.
    pub fn ids(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        for name in self.names()? {
            ids.extend(parse_image_name(&name));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Number of the newest checkpoint.
    pub fn newest_id(&self) -> Result<Option<u64>> {
        Ok(self.ids()?.last().copied())
    }

    /// Opens and validates one checkpoint: that it is whole (but for its pages), and that it belongs here.
    pub fn open_image(&self, id: u64) -> Result<Image> {
        self.need_key()?;
        let path = self.image_path(id);
        let image = match Image::open_sealed(&path, self.known, self.key.as_deref()) {
            Err(image::Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(Error::NoCheckpoint { dir: self.dir.clone(), id });
            }
            other => other?,
        };
        if image.id() != id {
            return Err(Error::Misnamed { path, id: image.id() });
        }
        if image.job() != self.job {
            return Err(Error::OtherJob { path, found: image.job(), job: self.job });
        }
        Ok(image)
    }

    /// Where the checkpoint of that number is or would be.
    pub fn image_path(&self, id: u64) -> PathBuf {
        self.dir.join(image_name(id))
    }

    /// The way to change the directory.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Makes the names in the directory durable.
    pub(crate) fn sync_names(&self) -> Result<()> {
        sync_dir(&self.disk, &self.dir)
    }

    /// Names in the directory; such that are no UTF-8 are not ours.
    fn names(&self) -> Result<Vec<String>> {
        let failed = |source| Error::io(&self.dir, "list", source);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }
}

fn sync_dir(disk: &Disk, dir: &Path) -> Result<()> {
    disk.sync_dir(dir).map_err(|source| Error::io(dir, "make durable the names in", source))
}

fn image_name(id: u64) -> String {
    format!("{id:08}{IMAGE_SUFFIX}")
}

/// The inverse of [`image_name`]; other spellings of a number are no image names, so that no id has two files.
fn parse_image_name(name: &str) -> Option<u64> {
    let id = name.strip_suffix(IMAGE_SUFFIX)?.parse().ok()?;
    (image_name(id) == name).then_some(id)
}
