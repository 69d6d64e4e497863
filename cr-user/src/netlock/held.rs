//! Locks that outlive us, from the killing of a job to its restore: what they belong to, and which of them are leftovers.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::nftables::{self, Batch, Table};
use super::{Result, failed, open};
use crate::image::JobId;
use crate::netlink::Netlink;
use crate::store::{self, Store};
use crate::{object, procfs};

const PREFIX: &str = "cr-held-";
/// The version of what is written into a lock.
const FORMAT: u64 = 1;

/// A process, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// When it started, as in `/proc/PID/stat`.
    pub start: u64,
}

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start: procfs::start_time(pid)? })
    }

    fn is_alive(self) -> bool {
        procfs::find_voice(self.pid).is_some() && Self::of(self.pid).is_ok_and(|now| now == self)
    }
}

/// What a lock that outlives us belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The store's directory, as an absolute path without links.
    pub store: PathBuf,
    /// Whose checkpoints are in it.
    pub job: JobId,
    /// The job's root.
    pub root: Process,
}

/// A lock that was found.
#[derive(Clone, Debug)]
pub struct Lock {
    /// What it belongs to.
    pub held: Held,
    /// How many connections it silences.
    pub flows: usize,
    /// Who made it: as long as that is at work, nobody else judges.
    maker: Process,
    /// Numbers mean the same only in the same pid namespace, paths in the same mount namespace.
    pids_of: u64,
    paths_of: u64,
    table: Table,
}

impl Held {
    pub(super) fn table(&self) -> String {
        table_of(self.job)
    }

    /// As it is written into the table.
    pub(super) fn note(&self, flows: usize) -> io::Result<Vec<u8>> {
        let (root, maker) = (self.root, Process::of(std::process::id() as i32)?);
        let (pids, paths) = (namespace("pid")?, namespace("mnt")?);
        let numbers = [FORMAT, root.pid as u64, root.start, maker.pid as u64, maker.start, pids, paths, flows as u64];
        let words = numbers.map(|number| number.to_string()).join(" ");
        Ok([words.as_bytes(), b" ", self.store.as_os_str().as_bytes()].concat())
    }
}

impl Lock {
    fn read(netlink: &Netlink, table: Table) -> Option<Self> {
        let job = table.name.strip_prefix(PREFIX)?.parse().ok()?;
        let note = nftables::note_in(netlink, &table.name).ok()?;
        let mut words = note.splitn(9, |byte| *byte == b' ');
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
        // A newer cr knows what its own are.
        number().filter(|format| *format == FORMAT)?;
        let mut process = || Some(Process { pid: i32::try_from(number()?).ok()?, start: number()? });
        let (root, maker) = (process()?, process()?);
        let (pids_of, paths_of, flows) = (number()?, number()?, usize::try_from(number()?).ok()?);
        let store = PathBuf::from(OsStr::from_bytes(words.next()?));
        Some(Self { held: Held { store, job, root }, flows, maker, pids_of, paths_of, table })
    }

    /// Why nobody needs it any more, if that is sure.
    fn leftover(&self) -> Option<String> {
        let Held { store, job, root } = &self.held;
        let same = |kind, other| namespace(kind).is_ok_and(|own| own == other);
        // Whoever made it may be about to kill the job.
        if !same("pid", self.pids_of) || self.maker.is_alive() {
            return None;
        }
        let flows = counted(self.flows);
        if root.is_alive() {
            let (pid, store) = (root.pid, store.display());
            return Some(format!(
                "pid {pid}, whose checkpoints are in {store}, is alive, and {flows} of it were silent since cr died"
            ));
        }
        let gone = same("mnt", self.paths_of) && is_gone(store, *job);
        gone.then(|| format!("the checkpoints in {} are gone, with which {flows} were to come back", store.display()))
    }
}

/// Locks that are held in a network namespace, or our own.
///
/// # Errors
/// When the kernel cannot say it, or we may not ask.
pub fn held(namespace: Option<BorrowedFd<'_>>) -> Result<Vec<Lock>> {
    find(&open(namespace)?)
}

/// Ends the silence of a job's connections in a network namespace, or our own: its sockets are there again. Gives back how many
/// connections that were; 0 if there was no lock.
///
/// # Errors
/// What the kernel says.
pub fn lift(namespace: Option<BorrowedFd<'_>>, job: JobId) -> Result<usize> {
    let netlink = open(namespace)?;
    let mut flows = 0;
    for lock in find(&netlink)?.into_iter().filter(|lock| lock.held.job == job) {
        if remove(&netlink, &lock.table).map_err(failed("removing a network lock"))? {
            flows += lock.flows;
        }
    }
    Ok(flows)
}

/// Removes locks in our own network namespace that were left behind: of jobs that are alive, since `cr` died before it killed
/// them, and of stores that are no more. Gives a sentence for each. To be called at the start of every command.
///
/// Locks in other network namespaces are found by a `cr` that runs there.
pub fn clean_up() -> Vec<String> {
    // Who may not ask, or cannot, has left nothing behind.
    let Ok(netlink) = open(None) else { return Vec::new() };
    let locks = find(&netlink).unwrap_or_default();
    let removed = |lock: Lock| {
        let why = lock.leftover()?;
        match remove(&netlink, &lock.table) {
            Ok(true) => Some(format!("removed a network lock that was left behind: {why}")),
            // Another cr was quicker.
            Ok(false) => None,
            Err(e) => {
                Some(format!("cannot remove the network lock {} that was left behind ({e}): {why}", lock.table.name))
            }
        }
    };
    locks.into_iter().filter_map(removed).collect()
}

fn find(netlink: &Netlink) -> Result<Vec<Lock>> {
    let tables = nftables::tables(netlink).map_err(failed("looking for network locks"))?;
    let ours = tables.into_iter().filter(|table| table.name.starts_with(PREFIX));
    Ok(ours.filter_map(|table| Lock::read(netlink, table)).collect())
}

/// Whether it was there.
fn remove(netlink: &Netlink, table: &Table) -> io::Result<bool> {
    let mut batch = Batch::new();
    batch.remove_found(table);
    match batch.commit(netlink) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        done => done.map(|()| true),
    }
}

fn table_of(job: JobId) -> String {
    format!("{PREFIX}{job}")
}

/// Whether there is no store any more, or that of another job. One that cannot be looked at may be there.
fn is_gone(dir: &Path, job: JobId) -> bool {
    match Store::open_existing(dir, object::KINDS) {
        Ok(store) => store.job() != job,
        Err(error) => matches!(error, store::Error::NoStore { .. }),
    }
}

fn namespace(kind: &str) -> io::Result<u64> {
    Ok(std::fs::metadata(format!("/proc/self/ns/{kind}"))?.ino())
}

fn counted(flows: usize) -> String {
    if flows == 1 { "1 connection".to_owned() } else { format!("{flows} connections") }
}
