//! Makes a bucket hold what its spool holds: uploads what was published there, oldest first, and removes what was pruned, newest first.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::manifest::{Manifest, data_name, manifest_name};
use super::remote::Remote;
use super::state::{State, Trouble, Turn};
use super::upload::{Source, upload};
use super::{Error, Gate, Location, Result, Upload, runtime, runtime_behind};
use crate::compact::Pace;
use crate::image::Image;
use crate::store::{self, MARKER, Store};

/// The one who uploads from a spool.
#[derive(Debug)]
pub struct Mirror {
    store: Store,
    remote: Remote,
    state: State,
    pace: Pace,
    /// The marker is known to be there.
    marked: bool,
    _turn: Turn,
    // Last: what uses it goes first.
    runtime: Runtime,
}

/// What was done in one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Checkpoints that are in the bucket now: number, bytes and how long it took.
    pub uploaded: Vec<(u64, u64, Duration)>,
    /// Checkpoints that are not any more.
    pub removed: Vec<u64>,
}

impl Mirror {
    /// Takes the right to upload from a spool; none if another process has it. Nothing is done while the gate is shut.
    ///
    /// # Errors
    /// When the URL is wrong, or the spool is another bucket's.
    pub fn open(store: &Store, upload: &Upload, gate: &Gate) -> Result<Option<Self>> {
        let Some(turn) = Turn::try_take(store.disk(), store.dir())? else { return Ok(None) };
        let remote = upload.to.open()?;
        Self::with(store, remote, upload.bandwidth, turn, gate).map(Some)
    }

    pub(super) fn with(store: &Store, remote: Remote, bandwidth: Option<u64>, turn: Turn, gate: &Gate) -> Result<Self> {
        let state = State::read(store.dir(), remote.url())?;
        let (pace, runtime) = (Pace::new(bandwidth), runtime_behind(gate)?);
        Ok(Self { store: store.clone(), remote, state, pace, marked: false, _turn: turn, runtime })
    }

    /// Does all that is to be done.
    ///
    /// # Errors
    /// At the first thing that cannot be done; [`Error::passes`] tells whether to try again.
    pub fn pass(&mut self) -> Result<Passed> {
        let mut passed = Passed::default();
        let ids = self.store.ids()?;
        let gone: Vec<u64> = self.state.uploaded.keys().rev().copied().filter(|id| !ids.contains(id)).collect();
        let new: Vec<u64> = ids.into_iter().filter(|id| !self.state.uploaded.contains_key(id)).collect();
        let outcome = self.work(&gone, &new, &mut passed);
        let trouble =
            outcome.as_ref().err().map(|error| Trouble { code: error.exit_code(), message: error.to_string() });
        if self.state.error != trouble {
            self.state.error = trouble;
            self.save()?;
        }
        outcome.map(|()| passed)
    }

    fn work(&mut self, gone: &[u64], new: &[u64], passed: &mut Passed) -> Result<()> {
        if !gone.is_empty() || !new.is_empty() {
            self.mark()?;
        }
        for &id in gone {
            self.remove(id)?;
            passed.removed.push(id);
        }
        for &id in new {
            let began = Instant::now();
            match self.store.open_image(id) {
                Ok(image) => {
                    let bytes = self.publish(&image)?;
                    passed.uploaded.extend(bytes.map(|bytes| (id, bytes, began.elapsed())));
                }
                // Pruned meanwhile.
                Err(store::Error::NoCheckpoint { .. }) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The first one makes the prefix a store; everybody else must be of the same job.
    fn mark(&mut self) -> Result<()> {
        if self.marked {
            return Ok(());
        }
        let path = self.store.dir().join(MARKER);
        let ours = std::fs::read(&path).map_err(|source| Error::io(&path, "read", source))?;
        self.runtime.block_on(async {
            if !self.remote.put_new(MARKER, ours).await? {
                check_job(&self.remote, &self.store).await?;
            }
            Ok::<_, Error>(())
        })?;
        self.marked = true;
        Ok(())
    }

    /// Uploads an image, and then its manifest, by which it is there; gives its size. None if what it builds on is not there.
    fn publish(&mut self, image: &Image) -> Result<Option<u64>> {
        let manifest = Manifest::of(image);
        if let Some(parent) = &manifest.parent
            && self.state.uploaded.get(&parent.id) != Some(&parent.hash)
        {
            // It cannot be restored from there, and cannot be here either.
            log::info!("checkpoint {} is not uploaded: what it builds on is not there", manifest.id);
            return Ok(None);
        }
        let file = image.open_file().map_err(store::Error::from)?;
        let (disk, dir) = (self.store.disk().clone(), self.store.dir().to_owned());
        let source = Source { file: &file, path: image.path(), bytes: manifest.bytes, object: &manifest.object };
        let mut under_way = self.state.under_way.take();
        let state = &mut self.state;
        let mut save = |under_way: Option<&_>| {
            state.under_way = under_way.cloned();
            state.error = None;
            state.write(&disk, &dir)
        };
        let sent = self.runtime.block_on(upload(&self.remote, &source, &mut under_way, &mut self.pace, &mut save));
        self.state.under_way = under_way;
        sent?;
        self.runtime.block_on(announce(&self.remote, &manifest, self.store.dir()))?;
        self.state.uploaded.insert(manifest.id, manifest.hash.clone());
        self.state.under_way = None;
        self.save()?;
        Ok(Some(manifest.bytes))
    }

    /// First the manifest: without it the checkpoint is not there.
    fn remove(&mut self, id: u64) -> Result<()> {
        let hash = self.state.uploaded[&id].clone();
        self.runtime.block_on(async {
            self.remote.remove(&manifest_name(id)).await?;
            self.remote.remove(&data_name(id, &hash)).await
        })?;
        self.state.uploaded.remove(&id);
        self.state.partial.remove(&id);
        self.save()
    }

    fn save(&self) -> Result<()> {
        self.state.write(self.store.disk(), self.store.dir())
    }
}

/// Publishes a checkpoint whose image is there. Of two that have the same number, only one can be.
async fn announce(remote: &Remote, manifest: &Manifest, spool: &Path) -> Result<()> {
    let name = manifest_name(manifest.id);
    if remote.put_new(&name, manifest.to_json()).await? {
        return Ok(());
    }
    match remote.manifest(manifest.id).await? {
        // By us, and we did not live to hear of it.
        Some(there) if there.hash == manifest.hash => Ok(()),
        Some(_) => {
            remote.remove(&manifest.object).await?;
            Err(Error::Conflict { url: remote.url().to_owned(), id: manifest.id, spool: spool.to_owned() })
        }
        None => {
            let (url, why) = (remote.url_of(&name), "somebody else was writing it at the same time".to_owned());
            Err(Error::Failed { url, doing: "write", why, answered: false })
        }
    }
}

/// The bucket's job must be the spool's.
async fn check_job(remote: &Remote, store: &Store) -> Result<()> {
    match job_of(remote).await? {
        Some(there) if there != store.job().to_string() => {
            let (url, spool) = (remote.url().to_owned(), store.dir().to_owned());
            Err(Error::OtherJob { url, there, spool, here: store.job() })
        }
        _ => Ok(()),
    }
}

/// The job whose checkpoints a prefix holds; none if it holds no store.
async fn job_of(remote: &Remote) -> Result<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Marker {
        job: String,
    }
    let Some(text) = remote.get(MARKER).await? else { return Ok(None) };
    let damaged = |why: serde_json::Error| Error::Damaged { url: remote.url_of(MARKER), what: why.to_string() };
    Ok(Some(serde_json::from_slice::<Marker>(&text).map_err(damaged)?.job))
}

/// Looks whether a bucket can be used, and gives the numbers of the checkpoints that it holds; none if it holds no store.
///
/// # Errors
/// When it cannot be reached, or is another job's than the store `spool`, if there is that.
pub fn contact(to: &Location, spool: Option<&Store>) -> Result<Option<Vec<u64>>> {
    let remote = to.open()?;
    runtime()?.block_on(async {
        // A bucket that is not there tells so only when it is listed.
        let ids = remote.ids().await?;
        if let Some(store) = spool {
            check_job(&remote, store).await?;
        }
        Ok(job_of(&remote).await?.map(|_| ids))
    })
}

/// What is in the bucket after a command that wrote to the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// All of it: uploaded by us.
    Here,
    /// All of it: uploaded by the controller.
    Elsewhere,
}

/// Waits until all that is in the spool is in the bucket: uploads it, or waits for the one who does.
///
/// # Errors
/// [`Error::OnlyLocal`] when that does not succeed, with why.
pub fn settle(store: &Store, upload: &Upload) -> Result<Settled> {
    /// How long something may go wrong.
    const PATIENCE: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(200);
    let url = upload.to.to_string();
    let only_local = |why: &str, code: u8| {
        let (id, spool, url) = (store.newest_id()?.unwrap_or(0), store.dir().to_owned(), url.clone());
        Err(Error::OnlyLocal { id, spool, url, why: why.to_owned(), code })
    };
    let mut well = Instant::now();
    let mut ours = None;
    loop {
        if ours.is_none() {
            ours = Mirror::open(store, upload, &Gate::default())?;
        }
        let trouble = if let Some(mirror) = &mut ours {
            let before = mirror.state.clone();
            match mirror.pass() {
                Ok(_) => return Ok(Settled::Here),
                Err(error) if !error.passes() => return only_local(&error.to_string(), error.exit_code()),
                Err(error) => {
                    if (&before.uploaded, &before.under_way) != (&mirror.state.uploaded, &mirror.state.under_way) {
                        well = Instant::now();
                    }
                    Some(Trouble { code: error.exit_code(), message: error.to_string() })
                }
            }
        } else {
            let state = State::read(store.dir(), &url)?;
            let ids = store.ids()?;
            let newest_is_there = ids.last().is_none_or(|newest| state.uploaded.contains_key(newest));
            if newest_is_there && state.uploaded.keys().all(|id| ids.contains(id)) {
                return Ok(Settled::Elsewhere);
            }
            state.error
        };
        match trouble {
            Some(Trouble { code, message }) if well.elapsed() > PATIENCE => return only_local(&message, code),
            Some(_) => (),
            None => well = Instant::now(),
        }
        thread::sleep(PAUSE);
    }
}

/// How far a bucket is behind its spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The bucket.
    pub url: String,
    /// The newest checkpoint of the spool that is in the bucket.
    pub newest: Option<u64>,
    /// Those that are not, ascending.
    pub waiting: Vec<u64>,
    /// Why nothing can be uploaded at the moment, with its exit code.
    pub error: Option<(u8, String)>,
}

impl Progress {
    /// What a spool knows of its bucket; none if the store is no spool.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn of(store: &Store) -> Result<Option<Self>> {
        State::read_any(store.dir())?.map(|state| Self::with(store, state)).transpose()
    }

    /// The same of the spool of this bucket, also before anything was uploaded.
    ///
    /// # Errors
    /// When the spool cannot be read, or is another bucket's.
    pub fn to(store: &Store, to: &Location) -> Result<Self> {
        Self::with(store, State::read(store.dir(), &to.to_string())?)
    }

    fn with(store: &Store, state: State) -> Result<Self> {
        let (there, waiting): (Vec<u64>, Vec<u64>) =
            store.ids()?.into_iter().partition(|id| state.uploaded.contains_key(id));
        let error = state.error.map(|Trouble { code, message }| (code, message));
        Ok(Self { url: state.url, newest: there.last().copied(), waiting, error })
    }
}
