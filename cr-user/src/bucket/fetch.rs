//! Brings checkpoints back: of each image what describes it, and of their pages those that are asked for. What is not fetched is a hole
//! in a file that is as long as the image; a page in one would not match its checksum.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use super::manifest::{Manifest, data_name};
use super::remote::Remote;
use super::state::{State, Turn};
use super::{Error, Location, Result, runtime};
use crate::disk::{Disk, DiskFile};
use crate::hex;
use crate::image::{HEADER_BYTES, RecordKind};
use crate::seal::Keys;
use crate::store::{self, Chain, MARKER, Store, StoreWriter};

/// Most bytes of a request.
const PIECE: u64 = 8 << 20;
/// Requests under way at the same time.
const AT_ONCE: usize = 8;
/// What lies between two ranges is fetched with them if it is no more than this: a request takes as long as so many bytes.
const GAP: u64 = 64 << 10;
/// Bytes of a footer, and where in it the records' offset is.
const FOOTER: u64 = 256;
const RECORDS_OFFSET: usize = 40;
/// How long nothing may come before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which pages are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// None.
    Metadata,
    /// Those of one checkpoint, or of the newest.
    Checkpoint(Option<u64>),
    /// All.
    Everything,
}

/// What was fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes that came.
    pub bytes: u64,
    /// Bytes of all images that they belong to.
    pub of: u64,
}

/// Makes the directory `dir` a store with all checkpoints of a bucket, with as much of them as is needed. It may be one already, of the
/// same job: then what it lacks is added. `keys` open it if it is sealed.
///
/// # Errors
/// When there is nothing, when it cannot be had, and when the directory holds another chain.
pub fn fetch(from: &Location, dir: &Path, known: &'static [RecordKind], need: Need, keys: &Keys) -> Result<Fetched> {
    fetch_from(&from.open()?, dir, known, need, keys)
}

pub(super) fn fetch_from(
    remote: &Remote,
    dir: &Path,
    known: &'static [RecordKind],
    need: Need,
    keys: &Keys,
) -> Result<Fetched> {
    let runtime = runtime()?;
    // No patience yet: where there is nothing, it is to be said at once.
    let (ids, marker) = runtime.block_on(async { Ok::<_, Error>((remote.ids().await?, remote.get(MARKER).await?)) })?;
    let marker = marker.ok_or_else(|| Error::NoStore { url: remote.url().to_owned() })?;
    let disk = Disk::default();
    adopt(&disk, remote, dir, &marker)?;
    let store = Store::open_existing_with(dir, known, keys)?;
    store.need_key()?;
    let _writer = lock(&store)?;
    let _turn = Turn::take(&disk, dir, Duration::from_secs(10))?;
    let state = State::read(dir, remote.url())?;
    let mut fetch = Fetch { remote, store, state, bytes: Cell::new(0), well: Cell::new(Instant::now()) };
    fetch.forget_pruned(&ids)?;
    runtime.block_on(fetch.metadata(&ids))?;
    let of = runtime.block_on(fetch.pages(need))?;
    Ok(Fetched { bytes: fetch.bytes.get(), of })
}

/// Makes a directory a store of the same job, or sees that it is one.
fn adopt(disk: &Disk, remote: &Remote, dir: &Path, marker: &[u8]) -> Result<()> {
    let path = dir.join(MARKER);
    match fs::read(&path) {
        Ok(ours) if ours == marker => return Ok(()),
        Ok(ours) => {
            let job = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).map(|v| v["job"].to_string());
            let (url, there) = (remote.url().to_owned(), job(marker).unwrap_or_default());
            return match job(&ours) {
                Ok(here) if here == there => Ok(()),
                _ => {
                    let here = Store::open_existing(dir, &[])?.job();
                    Err(Error::OtherJob { url, there, spool: dir.to_owned(), here })
                }
            };
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (),
        Err(source) => return Err(Error::io(&path, "read", source)),
    }
    make_private(disk, dir).map_err(|source| Error::io(dir, "create", source))?;
    if let Some(entry) = fs::read_dir(dir).map_err(|source| Error::io(dir, "list", source))?.next() {
        let found = entry.map_err(|source| Error::io(dir, "list", source))?.file_name();
        return Err(store::Error::Foreign { dir: dir.to_owned(), found: found.to_string_lossy().into_owned() }.into());
    }
    let unfinished = dir.join(format!("{MARKER}.tmp"));
    let write = || {
        let file = disk.create(&unfinished)?;
        file.set_len(0)?;
        file.write_all_at(marker, 0)?;
        file.sync_data()?;
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(dir)
    };
    write().map_err(|source| Error::io(&path, "write", source))
}

fn make_private(disk: &Disk, dir: &Path) -> std::io::Result<()> {
    let above = dir.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty() && !above.is_dir());
    for above in above.collect::<Vec<_>>().into_iter().rev() {
        disk.create_dir(above, 0o755)?;
    }
    match disk.create_dir(dir, 0o700) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => disk.set_mode(dir, 0o700),
        other => other,
    }
}

/// The writer's lock. A controller whose job has just ended still holds it for a moment.
fn lock(store: &Store) -> Result<StoreWriter> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match store.lock() {
            Err(store::Error::Locked { .. }) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return Ok(other?),
        }
    }
}

/// A checkpoint, and the file that was made for it if it was not here.
type Described = (Manifest, Option<DiskFile>);

struct Fetch<'r> {
    remote: &'r Remote,
    store: Store,
    state: State,
    bytes: Cell<u64>,
    /// When something came last.
    well: Cell<Instant>,
}

impl Fetch<'_> {
    fn save(&self) -> Result<()> {
        self.state.write(self.store.disk(), self.store.dir())
    }

    /// Checkpoints that are not in the bucket any more were pruned by somebody else: what we had of them from there goes, newest first.
    fn forget_pruned(&mut self, ids: &[u64]) -> Result<()> {
        let gone: Vec<u64> = self.state.uploaded.keys().rev().copied().filter(|id| !ids.contains(id)).collect();
        for id in &gone {
            self.state.uploaded.remove(id);
            if self.state.partial.remove(id) {
                let path = self.store.image_path(*id);
                match self.store.disk().remove(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&path, "remove", error)),
                    _ => self.store.sync_names()?,
                }
            }
        }
        if gone.is_empty() { Ok(()) } else { self.save() }
    }

    /// Fetches what describes those images that are not here, and sees that the others are the same.
    async fn metadata(&mut self, ids: &[u64]) -> Result<()> {
        let mut unknown = Vec::new();
        for &id in ids {
            if !(self.state.uploaded.contains_key(&id) && self.store.image_path(id).exists()) {
                unknown.push(id);
            }
        }
        let this = &*self;
        let one = |id: u64| async move {
            let manifest = this.patiently(async || this.remote.manifest(id).await).await?;
            // Pruned just now.
            let Some(manifest) = manifest else { return Ok(None) };
            match this.store.open_image(id) {
                Ok(image) if hex::encode(&image.as_parent().hash) == manifest.hash => Ok(Some((manifest, None))),
                Ok(_) => {
                    Err(Error::Conflict { url: this.remote.url().to_owned(), id, spool: this.store.dir().to_owned() })
                }
                Err(store::Error::NoCheckpoint { .. }) => {
                    let file = this.describe(&manifest).await?;
                    Ok(Some((manifest, Some(file))))
                }
                Err(error) => Err(error.into()),
            }
        };
        // In the order of their numbers, so that none is here without its parents.
        let found: Vec<Result<Option<Described>>> = stream::iter(unknown).map(one).buffered(AT_ONCE).collect().await;
        for found in found {
            let Some((Manifest { id, hash, .. }, file)) = found? else { continue };
            // Also one that is here, and of which nothing is known: it may have come from there.
            self.state.partial.insert(id);
            self.state.uploaded.insert(id, hash);
            self.save()?;
            if file.is_some() {
                let (path, unfinished) = (self.store.image_path(id), unfinished(&self.store, id));
                let renamed = self.store.disk().rename(&unfinished, &path);
                renamed.map_err(|source| Error::io(&path, "publish", source))?;
                self.store.sync_names()?;
            }
        }
        Ok(())
    }

    /// A file as long as the image, with all of it but pages.
    async fn describe(&self, manifest: &Manifest) -> Result<DiskFile> {
        let Manifest { id, bytes, object, .. } = manifest;
        let damaged = |what: String| Error::Damaged { url: self.remote.url_of(object), what };
        let Some(footer_at) = bytes.checked_sub(FOOTER).filter(|at| *at >= HEADER_BYTES) else {
            return Err(damaged(format!("it is said to have {bytes} bytes, and no image is so small")));
        };
        let footer = self.get(object, footer_at..*bytes).await?;
        let records = footer.as_ref()[RECORDS_OFFSET..RECORDS_OFFSET + 8].try_into().expect("8 bytes");
        let records = u64::from_le_bytes(records);
        if !(HEADER_BYTES..=footer_at).contains(&records) {
            return Err(damaged("there is no footer at its end, so it was cut short or overwritten".to_owned()));
        }
        let path = unfinished(&self.store, *id);
        let failed = |source| Error::io(&path, "write", source);
        let file = self.store.disk().create(&path).map_err(failed)?;
        file.set_len(0).and_then(|()| file.set_len(*bytes)).map_err(failed)?;
        self.fill(object, &file, &path, vec![0..HEADER_BYTES, records..*bytes]).await?;
        file.sync_data().map_err(failed)?;
        Ok(file)
    }

    /// Fetches pages; gives the size of the images that they belong to.
    async fn pages(&mut self, need: Need) -> Result<u64> {
        let mut wanted: BTreeMap<u64, Vec<Range<u64>>> = BTreeMap::new();
        let mut of = 0;
        match need {
            Need::Metadata => return Ok(0),
            Need::Everything => {
                for id in self.store.ids()? {
                    // One that cannot be read is for others to complain about.
                    let Ok(image) = self.store.open_image(id) else { continue };
                    of += image.summary().file_bytes;
                    wanted.insert(id, image.places(0, image.slots()));
                }
            }
            Need::Checkpoint(id) => {
                let chain = Chain::open(&self.store, id)?;
                of = chain.images().iter().map(|image| image.summary().file_bytes).sum();
                for (image, places) in chain.places() {
                    wanted.insert(chain.images()[image].id(), places);
                }
            }
        }
        for (id, places) in wanted {
            if !self.state.partial.contains(&id) {
                continue;
            }
            let path = self.store.image_path(id);
            let file = self.store.disk().open_existing(&path).map_err(|source| Error::io(&path, "write", source))?;
            let object = data_name(id, &self.state.uploaded[&id]);
            self.fill(&object, &file, &path, merged(places)).await?;
            file.sync_data().map_err(|source| Error::io(&path, "write", source))?;
            if need == Need::Everything {
                self.state.partial.remove(&id);
                self.save()?;
            }
        }
        Ok(of)
    }

    /// Copies ranges of an object to where they are in the file.
    async fn fill(&self, object: &str, file: &DiskFile, path: &Path, ranges: Vec<Range<u64>>) -> Result<()> {
        let copy = |range: Range<u64>| async move {
            let start = range.start;
            let bytes = self.get(object, range).await?;
            file.write_all_at(bytes.as_ref(), start).map_err(|source| Error::io(path, "write", source))
        };
        let mut copies = stream::iter(ranges.into_iter().flat_map(pieces)).map(copy).buffer_unordered(AT_ONCE);
        while let Some(copied) = copies.next().await {
            copied?;
        }
        Ok(())
    }

    async fn get(&self, object: &str, range: Range<u64>) -> Result<impl AsRef<[u8]> + use<>> {
        let bytes = self.patiently(async || self.remote.get_range(object, range.clone()).await).await?;
        self.bytes.set(self.bytes.get() + (range.end - range.start));
        Ok(bytes)
    }

    /// Asks again as long as the bucket cannot be reached and there is hope.
    async fn patiently<T>(&self, ask: impl AsyncFn() -> Result<T>) -> Result<T> {
        loop {
            match ask().await {
                Err(error) if error.is_unreachable() && self.well.get().elapsed() < PATIENCE => {
                    log::info!("{error}; asking again");
                    sleep(Duration::from_millis(500)).await;
                }
                Ok(answer) => {
                    self.well.set(Instant::now());
                    return Ok(answer);
                }
                error => return error,
            }
        }
    }
}

fn unfinished(store: &Store, id: u64) -> std::path::PathBuf {
    store.image_path(id).with_extension("cr.tmp")
}

/// The same ranges, sorted, and those joined that are near each other.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let joins = next.start <= last.end.saturating_add(GAP);
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    ranges
}

/// A range in pieces that are not too large.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(PIECE as usize).map(move |start| start..end.min(start + PIECE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_near_each_other_are_one_request() {
        let far = 10 * GAP;
        let ranges = vec![far..far + 5, 0..10, 5..20, 20 + GAP..30 + GAP];
        assert_eq!(merged(ranges), [0..30 + GAP, far..far + 5]);
        assert_eq!(pieces(3..3 + 2 * PIECE).collect::<Vec<_>>(), [3..3 + PIECE, 3 + PIECE..3 + 2 * PIECE]);
        assert_eq!(pieces(7..7).count(), 0);
    }
}
