//! The story of a resident controller: get hold of a job, take a checkpoint of it whenever it is time or somebody asks,
//! pass signals on to it, and end as it ends.
//!
//! The controller is what makes increments possible, and nothing that the job needs: if it dies, the job runs on.
//!
//! One thread, the engine, does all ptrace work; this one waits for events and never touches the job but by signals.

mod background;
mod board;
mod client;
mod compactor;
mod control;
mod engine;
mod exit;
mod find;
mod journal;
mod launch;
mod namespace;
mod once;
mod plan;
pub mod protocol;
mod signals;
mod uploader;
mod watch;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::bucket::{self, Gate};
use crate::checkpoint::{self, Job};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::object;
use crate::object::files;
use crate::object::files::inet;
use crate::policy::Cadence;
use crate::restore;
use crate::seal::Keys;
use crate::store::{self, Store, StoreWriter};
use crate::sys::clone;

use background::Side;
use control::Socket;
use engine::{Engine, Origin};
use uploader::{Uploader, Word};

pub use background::LOG;
pub use client::{checkpoint, compact, prune, status};
pub use compactor::Automatic;
pub use control::SOCKET;
pub use find::store_of;
pub use journal::JOURNAL;
pub use launch::Command;
pub use protocol::{Compaction, CompactionState, Status, Taken, Uploads};

/// How a job is supervised.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store's directory.
    pub store: PathBuf,
    /// Its keys.
    pub keys: Keys,
    /// The bucket whose spool that is, if it is one.
    pub bucket: Option<bucket::Upload>,
    /// How often checkpoints are taken; none: only when asked.
    pub cadence: Option<Cadence>,
    /// How checkpoints are taken.
    pub checkpoints: checkpoint::Options,
    /// What becomes of TCP connections with somebody outside of the job, if that was said.
    pub tcp: Option<inet::Policy>,
    /// When the chain is compacted.
    pub compaction: Automatic,
}

/// A job that is held, and runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its pid.
    pub pid: i32,
    /// The tails of files that were cut off to restore it.
    pub cuts: Vec<Cut>,
}

/// The tail of a file that was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The file.
    pub path: PathBuf,
    /// Bytes cut off.
    pub bytes: u64,
    /// Where they are now.
    pub kept_at: PathBuf,
}

impl From<&files::Cut> for Cut {
    fn from(cut: &files::Cut) -> Self {
        Self { path: cut.path.clone(), bytes: cut.bytes, kept_at: cut.kept_at.clone() }
    }
}

/// How a supervision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The job ended, with this exit code (128 and the signal's number if it was killed).
    Ended(u8),
    /// The job ended, and only its parent knows how.
    EndedUnknown,
    /// We were told to let the job go on alone.
    LetGo,
    /// Another process, in the background, supervises it.
    Detached(Started),
}

/// Starts `command` and supervises it until it ends. With `resume`, and if the store holds a chain, the job is restarted
/// from that instead.
///
/// `started` is called once the job runs.
///
/// # Errors
/// When the command cannot be run, the store has a chain and `resume` is not set, or the chain cannot be restored.
pub fn run(config: &Config, command: &Command, resume: bool, started: impl FnOnce(&Started)) -> Result<Outcome> {
    let mask = signals::block()?;
    let store = Store::create_or_open_with(&Disk::default(), &config.store, object::KINDS, &config.keys)?;
    let writer = lock(&store)?;
    if store.newest_id()?.is_some() {
        if !resume {
            return Err(Error::HoldsChain { dir: config.store.clone() });
        }
        let options = restore::Options { resume: true, tcp: config.tcp, ..restore::Options::default() };
        let origin = Origin::Chain { id: None, options, pid_namespace: false };
        return supervise(config, origin, writer, Socket::bind(store.dir())?, started);
    }
    // The socket first: that it cannot be made must not leave a job running.
    let socket = Socket::bind(store.dir())?;
    become_reaper()?;
    let pid = launch::start(command, mask)?;
    supervise(config, Origin::Child(pid), writer, socket, started)
}

/// Supervises a process that runs already, until it ends or we are told to let go of it.
///
/// `started` is called once the job is held; with `detach`, a process in the background does the rest, and this one
/// returns then.
///
/// # Errors
/// When there is no such job, or the store belongs to something else.
pub fn attach(config: &Config, pid: i32, detach: bool, started: impl FnOnce(&Started)) -> Result<Outcome> {
    // Before anything is made: a wrong pid must not leave an empty store behind.
    Job::open(pid)?;
    refuse_if_held_elsewhere(pid, &config.store)?;
    let mask = signals::block()?;
    let store = Store::create_or_open_with(&Disk::default(), &config.store, object::KINDS, &config.keys)?;
    here_or_behind(config, &store, Origin::Process(pid), detach.then_some(mask), started)
}

/// Two controllers would stop the job in each other's way, and only one of them could follow what it writes.
fn refuse_if_held_elsewhere(pid: i32, store: &Path) -> Result<()> {
    let Ok(held) = store_of(pid) else { return Ok(()) };
    let real = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if real(&held) == real(store) {
        // Which the lock of the store refuses, naming the controller.
        return Ok(());
    }
    Err(Error::NotAllowed {
        pid,
        why: format!("the controller of the store {} holds it", held.display()),
        todo: format!(
            "stop that one first (SIGTERM to it: the job runs on), or ask it: cr checkpoint {pid} --store {}",
            held.display()
        ),
    })
}

/// Restarts the job from checkpoint `id` (none: the newest), and supervises it until it ends.
///
/// `started` is called once the job runs; with `detach`, a process in the background does the rest, and this one returns
/// then. With `pid_namespace` the job gets its pids in a namespace of its own, and `started` is called inside it.
///
/// # Errors
/// When the chain cannot be restored here and now.
pub fn restore(
    config: &Config,
    id: Option<u64>,
    options: restore::Options,
    pid_namespace: bool,
    detach: bool,
    started: impl FnOnce(&Started),
) -> Result<Outcome> {
    let mask = signals::block()?;
    let store = Store::open_existing_with(&config.store, object::KINDS, &config.keys)?;
    store.need_key()?;
    here_or_behind(config, &store, Origin::Chain { id, options, pid_namespace }, detach.then_some(mask), started)
}

/// Supervises in this process; or, with `detach`, in one in the background, and this one waits with that signal mask.
fn here_or_behind(
    config: &Config,
    store: &Store,
    origin: Origin,
    detach: Option<SigSet>,
    started: impl FnOnce(&Started),
) -> Result<Outcome> {
    let Some(mask) = detach else {
        return lock_and_supervise(config, store, origin, started);
    };
    match background::split(store.dir())? {
        Side::Foreground(messages) => {
            mask.thread_set_mask().map_err(|e| Error::system("unblocking signals", e))?;
            let begun = messages.receive()?;
            started(&begun);
            Ok(Outcome::Detached(begun))
        }
        Side::Background(messenger) => {
            let messenger = Cell::new(Some(messenger));
            let tell = |begun: &Started| messenger.take().expect("told once").started(begun);
            let outcome = lock_and_supervise(config, store, origin, tell);
            if let (Err(e), Some(messenger)) = (&outcome, messenger.take()) {
                messenger.failed(e);
            }
            outcome
        }
    }
}

/// Orphans of the job shall become our children: they belong to it.
fn become_reaper() -> Result<()> {
    clone::become_subreaper().map_err(|e| Error::system("becoming the parent of the job's orphans", e))
}

/// The store's lock. A controller whose job has just ended still holds it for a moment.
fn lock(store: &Store) -> Result<StoreWriter> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let until = Instant::now() + PATIENCE;
    loop {
        match store.lock() {
            Err(store::Error::Locked { .. }) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            other => return Ok(other?),
        }
    }
}

fn lock_and_supervise(
    config: &Config,
    store: &Store,
    origin: Origin,
    started: impl FnOnce(&Started),
) -> Result<Outcome> {
    if matches!(origin, Origin::Chain { pid_namespace: true, .. })
        && let Some(code) = namespace::enter()?
    {
        return Ok(Outcome::Ended(code));
    }
    let writer = lock(store)?;
    let socket = Socket::bind(store.dir())?;
    supervise(config, origin, writer, socket, started)
}

/// Signals are blocked by now, and this is still the only thread.
fn supervise(
    config: &Config,
    origin: Origin,
    writer: StoreWriter,
    socket: Socket,
    started: impl FnOnce(&Started),
) -> Result<Outcome> {
    let store = writer.store().clone();
    if matches!(origin, Origin::Chain { .. }) {
        become_reaper()?;
    }
    let gate = Gate::default();
    let engine = Engine::start(origin, writer, config.checkpoints.clone(), Some(config.compaction), gate.clone())?;
    let mut uploader = None;
    let word = Word::default();
    let begun = |begun: &Started| {
        // Not before: a process that is being restored begins with all that we have open.
        let bucket = config.bucket.as_ref();
        let started_uploader = bucket.map(|bucket| Uploader::start(bucket, &store, &gate, &word)).transpose();
        uploader = started_uploader.inspect_err(|e| word.complain(&e.into())).ok().flatten();
        started(begun);
    };
    let outcome = event_loop()?.block_on(watch::watch(config, &store, engine, socket, &word, begun));
    uploader.into_iter().for_each(Uploader::finish);
    outcome
}

/// An event loop in the calling thread.
fn event_loop() -> Result<Runtime> {
    let built = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    built.map_err(|e| Error::system("starting the event loop", e))
}
