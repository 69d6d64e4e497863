//! What a spool knows of its bucket: a file that can be lost, since the bucket itself says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::upload::Under;
use super::{Error, Result};
use crate::disk::{Disk, DiskFile};

/// Name of the file in a spool.
pub const STATE: &str = "bucket.json";
/// Under this name it is written. (What ends in `.tmp` belongs to the writer of the store.)
const UNFINISHED: &str = "bucket.json.new";
/// Whoever has this file locked is the one who uploads.
const LOCK: &str = "bucket.lock";

/// What a spool knows of its bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The bucket.
    pub(super) url: String,
    /// Checkpoints that are in the spool and in the bucket, with their metadata hashes.
    #[serde(default)]
    pub(super) uploaded: BTreeMap<u64, String>,
    /// Those of them that came from the bucket, and of which the spool has not all pages.
    #[serde(default)]
    pub(super) partial: BTreeSet<u64>,
    /// The upload that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) under_way: Option<Under>,
    /// Why nothing can be uploaded at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Trouble>,
}

/// Why nothing can be uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub(super) code: u8,
    pub(super) message: String,
}

impl State {
    /// Reads that of a spool; an empty one if it has none.
    pub(super) fn read(spool: &Path, url: &str) -> Result<Self> {
        let url = url.trim_end_matches('/');
        match Self::read_any(spool)? {
            None => Ok(Self { url: url.to_owned(), ..Self::default() }),
            Some(state) if state.url == url => Ok(state),
            Some(state) => Err(Error::OtherBucket { spool: spool.to_owned(), found: state.url, url: url.to_owned() }),
        }
    }

    /// Reads that of a spool, whichever bucket's it is; none if it has none.
    pub(super) fn read_any(spool: &Path) -> Result<Option<Self>> {
        let path = spool.join(STATE);
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(state) => Ok(Some(state)),
                Err(why) => Err(Error::BadState { path, why: why.to_string() }),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io(&path, "read", source)),
        }
    }

    /// Writes it, so that after a crash it is this or the one before.
    pub(super) fn write(&self, disk: &Disk, spool: &Path) -> Result<()> {
        let (unfinished, path) = (spool.join(UNFINISHED), spool.join(STATE));
        let text = serde_json::to_vec(self).expect("plain structures");
        let write = || {
            let file = disk.create(&unfinished)?;
            file.set_len(0)?;
            file.write_all_at(&text, 0)?;
            file.sync_data()?;
            disk.rename(&unfinished, &path)?;
            disk.sync_dir(spool)
        };
        write().map_err(|source| Error::io(&path, "write", source))
    }
}

/// Of a spool: its bucket's URL, and the checkpoints that came from there, of which it may lack pages. None if the directory is no spool.
///
/// # Errors
/// When the spool cannot be read.
pub fn partial(spool: &Path) -> Result<Option<(String, BTreeSet<u64>)>> {
    Ok(State::read_any(spool)?.map(|state| (state.url, state.partial)))
}

/// The right to upload from a spool, as long as this lives.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "the lock goes with it")] DiskFile);

impl Turn {
    /// Takes it; none if another process has it.
    pub(super) fn try_take(disk: &Disk, spool: &Path) -> Result<Option<Self>> {
        let path = spool.join(LOCK);
        let failed = |source| Error::io(&path, "lock", source);
        let file = disk.create(&path).map_err(failed)?;
        match file.file().try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Takes it, and waits for whoever has it for so long.
    pub(super) fn take(disk: &Disk, spool: &Path, patience: Duration) -> Result<Self> {
        let until = Instant::now() + patience;
        loop {
            match Self::try_take(disk, spool)? {
                Some(turn) => return Ok(turn),
                None if Instant::now() > until => return Err(Error::Busy { spool: PathBuf::from(spool) }),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}
