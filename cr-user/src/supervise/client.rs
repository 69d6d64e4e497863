//! What a controller does when it is asked, and we do where there is none: one checkpoint of a running job, the pruning of a store.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::control::{self, Place};
use super::protocol::{Answer, Command, Done, Less, Response, Status};
use super::{once, signals};
use crate::checkpoint::{self, Job};
use crate::compact;
use crate::describe::Checkpoint;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::object;
use crate::seal::Keys;
use crate::store::prune::{Pruned, Rules};
use crate::store::{self, Store, StoreWriter};

/// How long to wait for a lock whose holder does not answer: it may be starting, ending, or another `cr checkpoint`.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer in bytes: a line about each of some hundred thousand checkpoints.
const LONGEST_ANSWER: u64 = 1 << 26;

/// Takes a checkpoint of `pid` into the store in `dir`, which is made if need be, and sealed if `keys` has a secret; with `kill`, ends the job once the
/// checkpoint is durable.
///
/// If a resident controller holds the store, it is asked. Otherwise the process is held for just this checkpoint. With `only`
/// in the options, the first of these processes is the one whose chain the store holds.
///
/// # Errors
/// When there is no such job, the store belongs to something else, or the checkpoint fails.
pub fn checkpoint(pid: i32, dir: &Path, keys: &Keys, kill: bool, options: &checkpoint::Options) -> Result<Checkpoint> {
    // Before anything is made: a wrong pid must not leave an empty store behind.
    let Some(only) = &options.only else {
        Job::open(pid)?;
        return ask_or_take(pid, dir, keys, kill, options);
    };
    // A part of a job has a chain, and so a store, of its own, which no controller of the whole writes to.
    let part = Job::open_part(pid, only)?.pid();
    if let Ok(store) = Store::open_existing_with(dir, object::KINDS, keys)
        && let Some(held) = status(store.dir())?.filter(|held| held.pid != part)
    {
        return Err(Error::OtherJob { pid: part, owner: held.pid });
    }
    signals::block()?;
    once::checkpoint(
        pid,
        super::lock(&Store::create_or_open_with(&Disk::default(), dir, object::KINDS, keys)?)?,
        kill,
        options,
    )
}

/// Has the controller of the store take the checkpoint; without one, takes it here.
fn ask_or_take(pid: i32, dir: &Path, keys: &Keys, kill: bool, options: &checkpoint::Options) -> Result<Checkpoint> {
    if let Ok(store) = Store::open_existing_with(dir, object::KINDS, keys)
        && let Some(response) = ask(store.dir(), request(pid, kill, options))?
    {
        return taken(response);
    }
    // From here on we leave things behind, which a signal must not end us in the middle of.
    signals::block()?;
    let store = Store::create_or_open_with(&Disk::default(), dir, object::KINDS, keys)?;
    match lock(&store, || request(pid, kill, options))? {
        Turn::Writer(writer) => once::checkpoint(pid, writer, kill, options),
        Turn::Answered(response) => taken(response),
    }
}

fn request(pid: i32, kill: bool, options: &checkpoint::Options) -> Command {
    Command::Checkpoint { kill, pid: Some(pid), less: Less::from(options) }
}

/// What the controller of a store holds; none if there is no controller.
///
/// # Errors
/// When there is one that does not answer.
pub fn status(dir: &Path) -> Result<Option<Status>> {
    match ask(dir, Command::Status)?.map(|response| response.answer) {
        None => Ok(None),
        Some(Answer::Ok(Done::Status(status))) => Ok(Some(*status)),
        Some(Answer::Ok(_)) => Err(strange("something else than a status")),
        Some(Answer::Error(failure)) => Err(failure.into()),
    }
}

/// Removes checkpoints of a store that the rules do not keep; with `dry_run`, only says which. If a resident controller holds the
/// store, it does it between two checkpoints, and what its next delta builds on stays.
///
/// # Errors
/// Those of [`StoreWriter::prune`], and when somebody else writes to the store.
pub fn prune(store: &Store, rules: Rules, dry_run: bool) -> Result<Pruned> {
    let request = || Command::Prune { rules, dry_run };
    if let Some(response) = ask(store.dir(), request())? {
        return pruned(response);
    }
    if dry_run {
        return Ok(store.plan_pruning(&rules, None)?);
    }
    match lock(store, request)? {
        Turn::Writer(writer) => Ok(writer.prune(&rules, None)?),
        Turn::Answered(response) => pruned(response),
    }
}

/// Makes one full image of the newest checkpoint of a store and of all that it builds on. If a resident controller holds the store, it
/// does it, between checkpoints and within its own limit of memory.
///
/// # Errors
/// Those of [`compact::compact`], and when somebody else writes to the store.
pub fn compact(store: &Store, options: &compact::Options) -> Result<compact::Report> {
    let request = || Command::Compact { bandwidth: options.bandwidth };
    if let Some(response) = ask(store.dir(), request())? {
        return compacted(response);
    }
    match lock(store, request)? {
        Turn::Writer(writer) => compact::compact(&writer, options),
        Turn::Answered(response) => compacted(response),
    }
}

enum Turn {
    Writer(StoreWriter),
    Answered(Response),
}

/// The store's lock, or the answer of a controller that was just starting.
fn lock(store: &Store, request: impl Fn() -> Command) -> Result<Turn> {
    let until = Instant::now() + PATIENCE;
    loop {
        match store.lock() {
            Err(store::Error::Locked { .. }) if Instant::now() < until => sleep(Duration::from_millis(20)),
            other => return Ok(Turn::Writer(other?)),
        }
        if let Some(response) = ask(store.dir(), request())? {
            return Ok(Turn::Answered(response));
        }
    }
}

fn taken(response: Response) -> Result<Checkpoint> {
    match response.answer {
        Answer::Ok(Done::Checkpoint(checkpoint)) => Ok(checkpoint),
        Answer::Ok(_) => Err(strange("something else than a checkpoint")),
        Answer::Error(failure) => Err(failure.into()),
    }
}

fn pruned(response: Response) -> Result<Pruned> {
    match response.answer {
        Answer::Ok(Done::Pruned(pruned)) => Ok(pruned),
        Answer::Ok(_) => Err(strange("something else than what it removed")),
        Answer::Error(failure) => Err(failure.into()),
    }
}

fn compacted(response: Response) -> Result<compact::Report> {
    match response.answer {
        Answer::Ok(Done::Compacted(report)) => Ok(report),
        Answer::Ok(_) => Err(strange("something else than what it compacted")),
        Answer::Error(failure) => Err(failure.into()),
    }
}

/// Asks the controller of a store; none if there is no controller.
fn ask(dir: &Path, command: Command) -> Result<Option<Response>> {
    let talking = |e: io::Error| Error::system(format!("talking to the controller of {}", dir.display()), e);
    let place = Place::open(dir).map_err(talking)?;
    let stream = match UnixStream::connect(place.socket()) {
        Ok(stream) => OwnedFd::from(stream),
        // No socket, or one that nobody listens at any more.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(talking(e)),
    };
    if !control::is_trusted(&stream).map_err(talking)? {
        return Err(strange("a socket that belongs to another user"));
    }
    let mut stream = UnixStream::from(stream);
    let mut line = serde_json::to_string(&command.request()).expect("plain structures");
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(talking)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST_ANSWER)).read_line(&mut answer).map_err(talking)?;
    if answer.is_empty() {
        return Err(talking(io::ErrorKind::UnexpectedEof.into()));
    }
    let response =
        serde_json::from_str(&answer).map_err(|e| strange(&format!("an answer that makes no sense ({e})")))?;
    Ok(Some(response))
}

fn strange(what: &str) -> Error {
    let message = format!("the store's controller gave {what}: is it of the same version as this `cr`?");
    Error::Controller { code: 125, message }
}
