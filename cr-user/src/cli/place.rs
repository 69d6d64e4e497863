//! Where a store is: in a directory, or in a bucket with a directory on this machine that belongs to it.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use cr::bucket::{self, Fetched, Location, Need, Upload};
use cr::object;
use cr::seal::Keys;
use cr::store::{self, MARKER, Store};

use super::output::bytes;

/// Where a store is.
pub(super) struct Place {
    /// The store on this machine: that of a bucket is its spool.
    pub(super) dir: PathBuf,
    /// The bucket.
    pub(super) bucket: Option<Location>,
    /// What opens it, if it is sealed.
    pub(super) keys: Keys,
}

impl Place {
    /// What `--store` and `--spool` name.
    pub(super) fn of(store: &Path, spool: Option<&Path>, keys: Keys) -> cr::Result<Self> {
        let Some(bucket) = Location::of(store)? else { return Ok(Self { dir: store.to_owned(), bucket: None, keys }) };
        let dir = spool.map_or_else(|| bucket::default_spool(&bucket), |spool| Ok(spool.to_owned()))?;
        Ok(Self { dir, bucket: Some(bucket), keys })
    }

    /// The same with other keys.
    pub(super) fn with(self, keys: Keys) -> Self {
        Self { keys, ..self }
    }

    /// Whether there is a store already. A bucket that cannot be reached is taken to hold none.
    pub(super) fn is_there(&self) -> bool {
        let in_bucket = || self.bucket.as_ref().is_some_and(|to| matches!(bucket::contact(to, None), Ok(Some(_))));
        self.dir.join(MARKER).exists() || in_bucket()
    }

    /// The store on this machine.
    pub(super) fn open(&self) -> store::Result<Store> {
        Store::open_existing_with(&self.dir, object::KINDS, &self.keys)
    }

    /// Where what is written goes besides.
    pub(super) fn upload(&self, bandwidth: Option<u64>) -> Option<Upload> {
        self.bucket.clone().map(|to| Upload { to, bandwidth })
    }

    /// Before checkpoints of a job that runs: the bucket must not be one that cannot be used. One that cannot be reached is no reason not to
    /// begin.
    pub(super) fn begin(&self) -> cr::Result<()> {
        let Some(to) = &self.bucket else { return Ok(()) };
        let spool = self.open().ok();
        let has_chain = spool.as_ref().is_some_and(|store| store.newest_id().is_ok_and(|newest| newest.is_some()));
        match bucket::contact(to, spool.as_ref()) {
            Ok(Some(ids)) if !ids.is_empty() && !has_chain => {
                Err(bucket::Error::HoldsChain { url: to.to_string(), spool: self.dir.clone() }.into())
            }
            // Somebody has begun there, and has not come far.
            Ok(Some(_)) if spool.is_none() => self.fetch(Need::Metadata).map(drop),
            Ok(_) => Ok(()),
            Err(error) if error.is_unreachable() => {
                log::warn!("{error}. Until then checkpoints are in {} alone", self.dir.display());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Before a restore: brings what it needs.
    pub(super) fn fetch(&self, need: Need) -> cr::Result<Fetched> {
        let Some(from) = &self.bucket else { return Ok(Fetched::default()) };
        let fetched = bucket::fetch(from, &self.dir, object::KINDS, need, &self.keys)
            .map_err(|error| self.with_way_out(error))?;
        if fetched.bytes > 0 && fetched.of > 0 {
            eprintln!("cr: fetched {} of the {} of the chain in {from}", bytes(fetched.bytes), bytes(fetched.of));
        }
        Ok(fetched)
    }

    /// The same before a job is restarted, or started if there is nothing to restart.
    pub(super) fn fetch_if_any(&self) -> cr::Result<()> {
        match self.fetch(Need::Checkpoint(None)) {
            Err(cr::Error::Bucket(bucket::Error::NoStore { .. })) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The same before a command that writes to the store, where no controller does.
    pub(super) fn refresh(&self, need: Need) -> cr::Result<()> {
        match self.fetch(need) {
            Err(cr::Error::Bucket(bucket::Error::Store(store::Error::Locked { .. }) | bucket::Error::Busy { .. })) => {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// After a command that wrote to the store: waits until the bucket has it.
    pub(super) fn settle(&self) -> cr::Result<()> {
        let Some(upload) = self.upload(None) else { return Ok(()) };
        bucket::settle(&self.open()?, &upload)?;
        Ok(())
    }

    /// What is in the spool can be restored without the bucket.
    fn with_way_out(&self, error: bucket::Error) -> cr::Error {
        let newest = || self.open().ok()?.newest_id().ok()?;
        match newest().filter(|_| error.is_unreachable()) {
            None => error.into(),
            Some(newest) => {
                let dir = self.dir.display();
                let message = format!(
                    "{error}\n{dir} holds checkpoints up to {newest}; without the bucket: cr restore --store {dir} (not if the job may have \
                     been restored elsewhere since)"
                );
                cr::Error::Controller { code: error.exit_code(), message }
            }
        }
    }
}

/// A store that is only looked at.
pub(super) struct Opened {
    store: Store,
    /// What was fetched of a bucket, as long as it is looked at.
    _view: Option<tempfile::TempDir>,
}

impl Opened {
    /// Opens the store that `--store` names; of one in a bucket, a copy with what is needed.
    pub(super) fn of(store: &Path, need: Need, keys: &Keys) -> cr::Result<Self> {
        let Some(from) = Location::of(store)? else {
            return Ok(Self { store: Store::open_existing_with(store, object::KINDS, keys)?, _view: None });
        };
        let view = tempfile::Builder::new().prefix("cr-bucket-").tempdir();
        let view = view.map_err(|e| cr::Error::system("making a directory for what is fetched", e))?;
        // It must be empty, and private.
        let dir = view.path().join("store");
        bucket::fetch(&from, &dir, object::KINDS, need, keys)?;
        Ok(Self { store: Store::open_existing_with(&dir, object::KINDS, keys)?, _view: Some(view) })
    }
}

impl Deref for Opened {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}
