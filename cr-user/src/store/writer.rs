//! Writing to a store: the lock, new images, publication.

use std::fs::TryLockError;
use std::io::{ErrorKind, Read};

use super::{Error, Result, Store, TEMPORARY_SUFFIX, image_name, parse_image_name};
use crate::disk::DiskFile;
use crate::image::{Compression, Finished, HeaderInfo, ImageWriter, Parent};

/// Name of the lock file.
pub const LOCK: &str = "lock";
/// Bytes that a pid and its line end can have.
const LONGEST_PID: u64 = 32;

/// A store that this process alone may write to, as long as this value (and every copy of its descriptor) lives.
///
/// The descriptor is closed on `exec`. A child that is made by `fork` or `clone` and does not execute anything must
/// close it, or it goes on holding the lock.
#[derive(Debug)]
pub struct StoreWriter {
    store: Store,
    lock: DiskFile,
}

impl StoreWriter {
    pub(super) fn lock(store: Store) -> Result<Self> {
        // Whoever made the store, or published in it, may have died or failed before the names were durable. The marker's must
        // not be lost while ours are kept: then this would be a directory of somebody else.
        store.sync_names()?;
        let path = store.dir.join(LOCK);
        let failed = |source| Error::io(&path, "lock", source);
        let lock = store.disk.create(&path).map_err(failed)?;
        match lock.file().try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The pid is a courtesy: without it, the error is the same.
                let _ = lock.file().take(LONGEST_PID).read_to_string(&mut text);
                return Err(Error::Locked { dir: store.dir, pid: parse_holder(&text) });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // On a full disk the pid cannot be written, and the lock holds all the same.
        let _ = lock.set_len(0);
        let _ = lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0);
        let writer = Self { store, lock };
        writer.store.remove_unfinished()?;
        Ok(writer)
    }

    /// The store, for reading.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Begins an image with the next free number. An unfinished image that could not be removed has its number still, and so
    /// has one that is being written.
    pub fn begin(&self) -> Result<ImageWriter> {
        self.begin_packed(Compression::None)
    }

    /// The same, with pages compressed.
    pub fn begin_packed(&self, compression: Compression) -> Result<ImageWriter> {
        let id = self.next_id()?;
        let path = self.store.dir.join(image_name(id) + TEMPORARY_SUFFIX);
        let info = HeaderInfo { id, job: self.store.job };
        Ok(ImageWriter::create_as_on(&self.store.disk, &path, info, &self.store.form(compression)?)?)
    }

    /// The next free number.
    pub(super) fn next_id(&self) -> Result<u64> {
        let names = self.store.names()?;
        let taken =
            names.iter().filter_map(|name| parse_image_name(name.strip_suffix(TEMPORARY_SUFFIX).unwrap_or(name)));
        Ok(taken.max().unwrap_or(0) + 1)
    }

    /// Makes a finished image part of the store, atomically and durably: rename, then `fsync` of the directory.
    ///
    /// If either fails, the image is not in the store. Returns what the next delta names as its parent.
    pub fn publish(&self, finished: Finished) -> Result<Parent> {
        let path = self.store.image_path(finished.id);
        // Nobody else publishes here while we hold the lock, so looking first is enough; and `RENAME_NOREPLACE` is
        // not to be had on network file systems.
        if path.try_exists().map_err(|source| Error::io(&path, "look at", source))? {
            return Err(Error::Exists { path });
        }
        self.store.disk.rename(finished.path(), &path).map_err(|source| Error::io(&path, "publish", source))?;
        let parent = finished.as_parent();
        finished.keep();
        if let Err(error) = self.store.sync_names() {
            // Whether the name would survive a crash is unknown, and the caller will take its pages to be not stored.
            if let Err(why) = self.store.disk.remove(&path) {
                log::warn!("cannot remove {}, which is not known to be durable: {why}", path.display());
            }
            return Err(error);
        }
        Ok(parent)
    }
}

impl Store {
    /// Removes what a writer that died left behind; with the lock held, nobody can be writing it.
    pub(crate) fn remove_unfinished(&self) -> Result<()> {
        for name in self.names()? {
            if name.ends_with(TEMPORARY_SUFFIX) {
                let path = self.dir.join(name);
                log::info!("removing {}, which was left unfinished", path.display());
                match self.disk.remove(&path) {
                    Err(source) if source.kind() != ErrorKind::NotFound => {
                        return Err(Error::io(&path, "remove", source));
                    }
                    _ => (),
                }
            }
        }
        Ok(())
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        // Nobody holds it now; closing the file unlocks it.
        let _ = self.lock.set_len(0);
    }
}

/// The pid in a lock file; none if its line is not whole.
fn parse_holder(text: &str) -> Option<u32> {
    text.strip_suffix('\n')?.parse().ok()
}
