//! The thread that uploads what the engine publishes. Nobody waits for it but the end.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::journal::{Journal, Upload as Line};
use super::protocol::{Failure, Uploads};
use crate::bucket::{self, Gate, Mirror, Passed, Progress, Upload};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::sys::task;

/// Between two looks at what there is to upload: a directory is listed.
const PAUSE: Duration = Duration::from_millis(250);
/// After something has gone wrong.
const LONG_PAUSE: Duration = Duration::from_secs(2);
/// How long it may go wrong at the end, before what is not uploaded is left in the spool.
const PATIENCE: Duration = Duration::from_secs(60);
/// The job comes first.
const NICE: i32 = 5;
/// Class "best effort" of `ioprio_set(2)`, and in it the last: it must get on also where the disk is never idle.
const IO_PRIORITY: i32 = 2 << 13 | 7;

/// The trouble that the thread has, if it has any, for whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Word(Arc<Mutex<Option<Failure>>>);

impl Word {
    /// Takes note of trouble. False: it was known.
    fn note(&self, failure: &Failure) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = known.as_ref() != Some(failure);
        *known = Some(failure.clone());
        is_new
    }

    /// There is no thread, and so nothing is ever uploaded.
    pub(super) fn complain(&self, failure: &Failure) {
        log::error!("nothing is uploaded: {}", failure.message);
        self.note(failure);
    }

    /// All is well; gives the trouble that there was.
    fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn get(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How far the bucket is behind the store; none if the store is not the spool of one. `upload` is what the controller was told.
pub(super) fn progress(store: &Store, upload: Option<&Upload>, word: &Word) -> Option<Uploads> {
    let found = match upload {
        Some(upload) => Progress::to(store, &upload.to).map(Some),
        None => Progress::of(store),
    };
    let broken = |error: bucket::Error| Failure { code: error.exit_code(), message: error.to_string() };
    let (to, newest, waiting, error) = match (found, upload) {
        (Ok(None), _) | (Err(_), None) => return None,
        (Ok(Some(found)), Some(_)) => {
            let error = word.get().or(found.error.map(|(code, message)| Failure { code, message }));
            (found.url, found.newest, found.waiting.len() as u64, error)
        }
        (Ok(Some(found)), None) => {
            let message = format!(
                "nobody uploads: the controller was started with --store {}, and not with the bucket's URL",
                store.dir().display()
            );
            (found.url, found.newest, found.waiting.len() as u64, Some(Failure { code: 2, message }))
        }
        (Err(error), Some(upload)) => {
            // Of none it is known that it is there.
            let all = store.ids().map_or(0, |ids| ids.len() as u64);
            (upload.to.to_string(), None, all, word.get().or_else(|| Some(broken(error))))
        }
    };
    Some(Uploads { to, newest, waiting, error })
}

/// The thread, as its employer sees it.
#[derive(Debug)]
pub(super) struct Uploader {
    end: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Uploader {
    /// Starts the thread, which rests while the gate is shut.
    ///
    /// # Errors
    /// When the kernel makes no thread.
    pub(super) fn start(upload: &Upload, store: &Store, gate: &Gate, word: &Word) -> Result<Self> {
        let (end, ends) = mpsc::channel();
        let mut work = Work {
            upload: upload.clone(),
            store: store.clone(),
            gate: gate.clone(),
            journal: Journal::open(store.dir()),
            mirror: None,
            word: word.clone(),
        };
        let thread = thread::Builder::new()
            .name("cr-upload".to_owned())
            .spawn(move || work.run(&ends))
            .map_err(|e| Error::system("starting a thread", e))?;
        Ok(Self { end, thread })
    }

    /// Waits until all is uploaded, or that has gone wrong for a while.
    pub(super) fn finish(self) {
        drop(self.end);
        if self.thread.join().is_err() {
            log::error!("the thread that uploads checkpoints has panicked; this is a defect of cr");
        }
    }
}

struct Work {
    upload: Upload,
    store: Store,
    gate: Gate,
    journal: Journal,
    mirror: Option<Mirror>,
    word: Word,
}

impl Work {
    fn run(&mut self, ends: &mpsc::Receiver<()>) {
        let lowered = task::set_own_nice(NICE).and_then(|()| task::set_ioprio(0, IO_PRIORITY));
        if let Err(e) = lowered {
            log::info!("uploads have the priority of everything else: {e}");
        }
        let mut ending = None;
        loop {
            let outcome = self.pass();
            let went_well = outcome.is_ok();
            match outcome {
                Ok(passed) => self.tell(&passed),
                Err(error) => {
                    self.complain(&error);
                    if !error.passes() {
                        return;
                    }
                }
            }
            match ending {
                Some(_) if went_well => return,
                Some(began) if Instant::now().duration_since(began) > PATIENCE => return self.give_up(),
                Some(_) => thread::sleep(LONG_PAUSE),
                None => {
                    let pause = if went_well { PAUSE } else { LONG_PAUSE };
                    if ends.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                        ending = Some(Instant::now());
                    }
                }
            }
        }
    }

    fn pass(&mut self) -> bucket::Result<Passed> {
        if self.mirror.is_none() {
            self.mirror = Mirror::open(&self.store, &self.upload, &self.gate)?;
        }
        // One who has uploaded what an earlier command left ends by and by.
        self.mirror.as_mut().map_or_else(|| Ok(Passed::default()), Mirror::pass)
    }

    fn tell(&mut self, passed: &Passed) {
        if self.word.take().is_some() {
            log::warn!("{} can be used again", self.upload.to);
        }
        for &(id, bytes, took) in &passed.uploaded {
            log::info!("checkpoint {id} is in {}: {bytes} bytes, {} ms", self.upload.to, took.as_millis());
            self.journal.note_upload(&Line::Done { id, bytes, ms: took.as_millis() as u64 });
        }
        for &id in &passed.removed {
            log::info!("checkpoint {id} was removed from {}", self.upload.to);
            self.journal.note_upload(&Line::Removed { id });
        }
    }

    /// Once for each trouble, however long it lasts.
    fn complain(&mut self, error: &bucket::Error) {
        let failure = Failure { code: error.exit_code(), message: error.to_string() };
        if !self.word.note(&failure) {
            return;
        }
        let then = if error.passes() { "it is tried again" } else { "nothing more is uploaded" };
        log::warn!("{}. The job and its checkpoints in {} go on; {then}", failure.message, self.store.dir().display());
        self.journal.note_upload(&Line::Error(&failure));
    }

    fn give_up(&self) {
        let left = Progress::to(&self.store, &self.upload.to).map(|progress| progress.waiting).unwrap_or_default();
        let ids: Vec<String> = left.iter().map(ToString::to_string).collect();
        log::error!(
            "of the checkpoints in {}, not in {}: {}. The next `cr` that writes there uploads them",
            self.store.dir().display(),
            self.upload.to,
            ids.join(", ")
        );
    }
}
