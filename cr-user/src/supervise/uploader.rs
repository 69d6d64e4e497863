//! The thread that uploads what the engine publishes. Nobody waits for it but the end.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::journal::{Journal, Upload as Line};
use super::protocol::Failure;
use crate::bucket::{self, Gate, Mirror, Passed, Upload};
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
    pub(super) fn start(upload: &Upload, store: &Store, gate: &Gate) -> Result<Self> {
        let (end, ends) = mpsc::channel();
        let mut work = Work {
            upload: upload.clone(),
            store: store.clone(),
            gate: gate.clone(),
            journal: Journal::open(store.dir()),
            mirror: None,
            trouble: None,
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
    /// What was said of it last.
    trouble: Option<String>,
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
        if self.trouble.take().is_some() {
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
        let message = error.to_string();
        if self.trouble.as_ref() == Some(&message) {
            return;
        }
        let then = if error.passes() { "it is tried again" } else { "nothing more is uploaded" };
        log::warn!("{message}. The job and its checkpoints in {} go on; {then}", self.store.dir().display());
        self.journal.note_upload(&Line::Error(&Failure { code: error.exit_code(), message: message.clone() }));
        self.trouble = Some(message);
    }

    fn give_up(&self) {
        let left = bucket::only_local(&self.store, &self.upload.to).unwrap_or_default();
        let ids: Vec<String> = left.iter().map(ToString::to_string).collect();
        log::error!(
            "of the checkpoints in {}, not in {}: {}. The next `cr` that writes there uploads them",
            self.store.dir().display(),
            self.upload.to,
            ids.join(", ")
        );
    }
}
