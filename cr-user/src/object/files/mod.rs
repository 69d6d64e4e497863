//! Open files: one record of every open file description, and a table of the descriptors that refer to them.
//!
//! One file here per kind: its record, how it is captured, how it is restored, why it may be refused.
//!
//! | kind | restored as |
//! |---|---|
//! | [`regular`] file with a name | the file of that name; what it grew by is cut back ([`rollback`]) |
//! | [`deleted`] file, [`memfd`] | a new object with the same bytes, which are in the image |
//! | [`directory`], [`device`] without state, what only names a file ([`opath`]) | opened by name |
//! | [`lost`] directory | a new one, removed again |
//! | [`pipe`] within the job | a new pipe with the same data |
//! | [`fifo`] whose ends are all in the job | opened by name, with the same data |
//! | [`mqueue`] that is empty | opened by name, or a new one |
//! | [`unix`] socket within the job | a new one with the same connection and queue |
//! | [`net`]: UDP, ping, raw, packet and netlink sockets | a new one with the same addresses, groups and filter |
//! | [`pty`] pair within the job | a new one of the same number, with its settings, session and foreground group |
//! | [`stdio`] from outside, [`terminal`] | what `cr restore` has |
//! | [`eventfd`], [`timerfd`], [`signalfd`] | a new one in the same state |
//! | [`epoll`] set | a new one that watches the same files, under the numbers that they had |
//! | [`inotify`] watches | new ones of what is at their paths |
//! | [`pidfd`] and [`namespace`] of a process of the job, [`procfile`] of `/proc` | opened again, when the process exists |
//! | everything else | refused by name |

mod batch;
pub mod caller;
mod capture;
pub mod deleted;
pub mod device;
pub mod directory;
pub mod epoll;
pub mod eventfd;
pub mod fifo;
pub mod inet;
pub mod inotify;
pub mod kept;
mod late;
mod links;
pub mod locks;
pub mod lost;
pub mod memfd;
pub mod mqueue;
pub mod namespace;
pub mod net;
pub mod opath;
mod open;
mod outside;
mod own;
pub mod pidfd;
pub mod pipe;
#[cfg(test)]
mod planted;
pub mod procfile;
pub mod pty;
pub mod regular;
pub mod rollback;
pub mod settings;
pub mod signalfd;
mod sock_diag;
pub mod stdio;
pub mod stored;
mod survey;
pub mod terminal;
#[cfg(test)]
mod tests;
pub mod timerfd;
pub mod unix;
mod unsupported;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek64};

use crate::error::{Error, Refusal, Result};
use crate::image::RecordKind;
use crate::object::spaces::is_object_space;
use crate::sys::fd::{self, fcntl};
use crate::track::iters::FileRecord;

pub use batch::Batch;
pub use capture::{Beyond, Captured, ContentSource, capture, other_tables, refusals};
pub use late::{Late, early_calls, make_sockets};
pub use open::{Opened, calls, open};
pub use own::own_calls;
pub use rollback::{Cut, FilePolicy, Growth, RollbackPlan, roll_back};
pub use unix::external;

/// The record of the job's open files.
pub const KIND: RecordKind = RecordKind { id: 7, version: 8, name: "files" };

/// The open files of the job.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Open file descriptions.
    pub descriptions: Vec<Description>,
    /// Tables of descriptors, in the order of the job's processes.
    pub tables: Vec<Table>,
    /// The pipes that descriptions are ends of.
    pub pipes: Vec<pipe::Pipe>,
    /// The FIFOs that descriptions are ends of.
    pub fifos: Vec<fifo::Fifo>,
    /// The message queues that descriptions are of.
    pub queues: Vec<mqueue::Queue>,
    /// The pseudo-terminals that descriptions are ends of.
    pub ptys: Vec<pty::Pty>,
    /// Directories that were removed.
    pub lost: Vec<lost::LostDirectory>,
    /// Processes whose working directory was removed, and its index in `lost`.
    pub lost_places: Vec<(i32, u32)>,
    /// The terminal that the job shares with whoever started it.
    pub caller: Option<caller::Caller>,
    /// Locks and leases.
    pub locks: Vec<locks::Lock>,
    /// Who is signalled.
    pub settings: Vec<settings::Settings>,
    /// What is to become of TCP connections with somebody outside of the job.
    pub tcp: inet::Policy,
}

/// One table of descriptors.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The processes that have it: more than one share it (`CLONE_FILES`).
    pub pids: Vec<i32>,
    /// Descriptors, ascending by number.
    pub rows: Vec<Descriptor>,
}

/// A process whose descriptors are looked at. Of processes that share a table, one stands for all.
#[derive(Debug, Clone)]
pub struct Holder<'a> {
    /// Its pid.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: BorrowedFd<'a>,
    /// Other processes that have the same table.
    pub sharers: Vec<i32>,
    /// Its descriptors, as an iterator lists them while the process stands still; none: `/proc` is read.
    pub listed: Option<Vec<FileRecord>>,
}

/// One descriptor.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub fd: i32,
    /// Whether `exec` closes it.
    pub cloexec: bool,
    /// Index of its description.
    pub description: u32,
}

/// One open file description.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Description {
    /// A regular file that has a name.
    Regular(regular::Regular),
    /// A file that has none any more.
    Deleted(deleted::Deleted),
    /// A memory file.
    Memfd(memfd::Memfd),
    /// A directory.
    Directory(directory::Directory),
    /// What only names a file.
    PathOnly(opath::PathOnly),
    /// A device without state.
    Device(device::Device),
    /// An end of a pipe of the job's own.
    Pipe(pipe::PipeEnd),
    /// An end of a FIFO.
    Fifo(fifo::FifoEnd),
    /// A message queue.
    Queue(mqueue::QueueEnd),
    /// Standard input, output or error from outside.
    Stdio(stdio::Stdio),
    /// An end of a pseudo-terminal of the job.
    Pty(pty::PtyEnd),
    /// Another terminal.
    Terminal(terminal::Terminal),
    /// An event counter.
    Eventfd(eventfd::Eventfd),
    /// A timer that is read from.
    Timerfd(timerfd::Timerfd),
    /// Signals that are read.
    Signalfd(signalfd::Signalfd),
    /// An epoll set.
    Epoll(epoll::Epoll),
    /// Watches of files.
    Inotify(inotify::Inotify),
    /// A pidfd.
    Pidfd(pidfd::Pidfd),
    /// A Unix-domain socket.
    Unix(Box<unix::Unix>),
    /// A TCP socket.
    Inet(Box<inet::Inet>),
    /// Another socket.
    Net(Box<net::Net>),
    /// A namespace.
    Namespace(namespace::Namespace),
    /// A file of `/proc`.
    Proc(procfile::ProcFile),
}

impl Description {
    /// Its kind in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Regular(_) => "file",
            Self::Deleted(_) => "deleted file",
            Self::Memfd(_) => "memfd",
            Self::Directory(_) => "directory",
            Self::Device(_) => "device",
            Self::Pipe(_) => "pipe",
            Self::PathOnly(_) => "name of a file",
            Self::Fifo(_) => "FIFO",
            Self::Queue(_) => "message queue",
            Self::Stdio(_) => "stdio",
            Self::Pty(_) => "pseudo-terminal",
            Self::Terminal(_) => "terminal",
            Self::Eventfd(_) => "eventfd",
            Self::Timerfd(_) => "timerfd",
            Self::Signalfd(_) => "signalfd",
            Self::Epoll(_) => "epoll set",
            Self::Inotify(_) => "inotify watches",
            Self::Pidfd(_) => "pidfd",
            Self::Unix(_) => "Unix socket",
            Self::Inet(_) => "TCP socket",
            Self::Net(r) => r.name(),
            Self::Namespace(_) => "namespace",
            Self::Proc(_) => "file of /proc",
        }
    }

    /// Its path, where it has one; of a deleted file the former one, of a memfd its name.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Regular(r) => Some(r.path.as_path()),
            Self::Deleted(r) => Some(r.path.as_path()),
            Self::Memfd(r) => Some(r.name.as_path()),
            Self::Directory(r) => Some(r.path.as_path()),
            Self::Device(r) => Some(r.path()),
            Self::PathOnly(r) => Some(r.path.as_path()),
            Self::Proc(r) => Some(r.path.as_path()),
            _ => None,
        }
    }

    /// Its offset in bytes, where it has one.
    pub fn position(&self) -> Option<i64> {
        match self {
            Self::Regular(r) => Some(r.position),
            Self::Deleted(r) => Some(r.position),
            Self::Memfd(r) => Some(r.position),
            Self::Directory(r) => Some(r.position),
            Self::Proc(r) => Some(r.position),
            _ => None,
        }
    }

    /// Whether it is opened only when the job's processes exist.
    fn is_late(&self) -> bool {
        match self {
            Self::Pidfd(r) => r.is_late(),
            Self::Proc(r) => r.is_late(),
            Self::Pty(r) => r.is_late(),
            Self::Namespace(_) => true,
            _ => false,
        }
    }

    /// Its status flags (`O_*`) that `F_SETFL` can set.
    pub fn status_flags(&self) -> i32 {
        const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;
        let flags = match self {
            Self::Regular(r) => r.flags,
            Self::Deleted(r) => r.flags,
            Self::Memfd(r) => r.flags,
            Self::Directory(r) => r.flags,
            Self::Device(r) => r.flags,
            Self::Pipe(r) => r.flags,
            Self::PathOnly(r) => r.flags,
            Self::Fifo(r) => r.flags,
            Self::Queue(r) => r.flags,
            Self::Stdio(r) => r.flags,
            Self::Pty(r) => r.flags,
            Self::Terminal(r) => r.flags,
            Self::Eventfd(r) => r.flags,
            Self::Timerfd(r) => r.flags,
            Self::Signalfd(r) => r.flags,
            Self::Epoll(r) => r.flags,
            Self::Inotify(r) => r.flags,
            Self::Pidfd(r) => r.flags,
            Self::Unix(r) => r.flags,
            Self::Inet(r) => r.flags,
            Self::Net(r) => r.flags,
            Self::Namespace(r) => r.flags,
            Self::Proc(r) => r.flags,
        };
        flags & SETTABLE
    }

    /// The content space that holds its bytes, where the image does.
    pub fn space(&self) -> Option<u64> {
        match self {
            Self::Deleted(r) => Some(r.space),
            Self::Memfd(r) => Some(r.space),
            _ => None,
        }
    }
}

impl Files {
    /// Who has a description: process and number of each descriptor that refers to it. Also of a record that is not
    /// [valid](Self::validate), which is shown all the same.
    pub fn holders(&self, description: usize) -> Vec<(i32, i32)> {
        let tables = self.tables.iter().filter_map(|t| Some((*t.pids.first()?, &t.rows)));
        let rows = tables.flat_map(|(pid, rows)| rows.iter().map(move |d| (pid, d)));
        rows.filter(|(_, d)| d.description as usize == description).map(|(pid, d)| (pid, d.fd)).collect()
    }

    /// The description behind a descriptor of a process.
    pub fn description_of(&self, pid: i32, fd: i32) -> Option<u32> {
        self.table_of(pid)?.rows.iter().find(|d| d.fd == fd).map(|d| d.description)
    }

    /// The table of a process.
    pub fn table_of(&self, pid: i32) -> Option<&Table> {
        self.tables.iter().find(|t| t.pids.contains(&pid))
    }

    /// Every number that a descriptor has in any process, or had when an epoll set began to watch it.
    pub fn numbers(&self) -> impl Iterator<Item = i32> {
        let rows = self.tables.iter().flat_map(|t| &t.rows).map(|d| d.fd);
        rows.chain(self.watches().map(|w| w.fd))
    }

    /// What epoll sets watch.
    fn watches(&self) -> impl Iterator<Item = &epoll::Watch> {
        let sets = self.descriptions.iter().filter_map(|d| match d {
            Description::Epoll(set) => Some(&set.watches),
            _ => None,
        });
        sets.flatten()
    }

    /// The process that does what must be done once for a description.
    fn responsible(&self, description: usize) -> i32 {
        let first = self.tables.first().map_or(0, |t| t.pids[0]);
        self.holders(description).first().map_or(first, |(pid, _)| *pid)
    }

    fn is_late(&self, description: u32) -> bool {
        self.descriptions[description as usize].is_late()
    }

    /// Whether everything that the record refers to is in it. The error completes "the record of open files …".
    ///
    /// # Errors
    /// What leads nowhere.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let row = |d: &Descriptor| d.fd >= 0 && (d.description as usize) < self.descriptions.len();
        let table = self.tables.iter().all(|t| !t.pids.is_empty() && t.rows.iter().all(row));
        let pipes = self.descriptions.iter().all(|d| match d {
            Description::Pipe(end) => (end.pipe as usize) < self.pipes.len(),
            Description::Fifo(end) => (end.fifo as usize) < self.fifos.len(),
            Description::Queue(end) => (end.queue as usize) < self.queues.len(),
            Description::Pty(end) => (end.pty as usize) < self.ptys.len(),
            Description::Directory(r) => r.lost.is_none_or(|l| (l as usize) < self.lost.len()),
            _ => true,
        });
        let watch = |w: &epoll::Watch| w.fd >= 0 && (w.description as usize) < self.descriptions.len();
        let locks = self.locks.iter().all(|l| (l.description as usize) < self.descriptions.len());
        let settings = self.settings.iter().all(|s| (s.description as usize) < self.descriptions.len());
        let lost = self.lost_places.iter().all(|(_, l)| (*l as usize) < self.lost.len());
        let spaces = self.descriptions.iter().filter_map(Description::space).all(is_object_space);
        if !(table && pipes && spaces && lost && locks && settings && self.watches().all(watch)) {
            return Err("refers to descriptions or pipes that it does not have".to_owned());
        }
        match unix::leads_nowhere(self).or_else(|| inet::leads_nowhere(self)) {
            Some(socket) => Err(format!("has {socket}, which refers to what is not in the checkpoint")),
            None => Ok(()),
        }
    }
}

/// A path or name, which need not be UTF-8.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct FilePath(#[serde(serialize_with = "crate::object::shown::bytes")] pub Vec<u8>);

impl FilePath {
    /// For the standard library.
    pub fn as_path(&self) -> &Path {
        Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }
}

impl From<&Path> for FilePath {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_owned())
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_path().display().fmt(f)
    }
}

/// Compares every file with its record, which is [valid](Files::validate), and finds what has grown. Nothing is changed. `tcp` is
/// what becomes of connections with somebody outside.
///
/// # Errors
/// [`Error::NotHere`] that names the first file that cannot be restored.
pub fn check(files: &Files, policy: FilePolicy, tcp: inet::Policy) -> Result<RollbackPlan> {
    let mut plan = RollbackPlan::default();
    for description in &files.descriptions {
        match description {
            Description::Regular(r) => r.check(policy, &mut plan)?,
            Description::Directory(r) => r.check()?,
            Description::Device(r) => r.check()?,
            Description::PathOnly(r) => r.check()?,
            Description::Terminal(r) => drop(r.open()?),
            Description::Timerfd(r) => r.check()?,
            Description::Inotify(r) => r.check()?,
            Description::Proc(r) => r.check()?,
            // What these need is made by the restore.
            _ => {}
        }
    }
    for pipe in &files.pipes {
        pipe.make()?;
    }
    files.fifos.iter().try_for_each(fifo::Fifo::check)?;
    files.queues.iter().try_for_each(mqueue::Queue::check)?;
    pty::check(files)?;
    unix::check(files)?;
    inet::check(files, tcp)?;
    net::check(files)?;
    Ok(plan)
}

/// Why a descriptor cannot be restored, and what to do.
struct No {
    why: String,
    todo: &'static str,
}

impl No {
    fn new(why: String, todo: &'static str) -> Self {
        Self { why, todo }
    }
}

impl No {
    /// The refusal of one descriptor.
    fn at(&self, seen: &survey::Seen) -> Refusal {
        self.at_number(seen.pid, seen.fd)
    }

    fn at_number(&self, pid: i32, fd: i32) -> Refusal {
        Refusal { pid, place: format!("fd {fd}"), why: self.why.clone(), todo: self.todo.to_owned() }
    }
}

/// Gives a description that was made without status flags those that it had (`F_SETFL`).
fn set_flags(fd: BorrowedFd<'_>, flags: i32) -> nix::Result<()> {
    const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME;
    if flags & SETTABLE != 0 || fcntl(fd, libc::F_GETFL, 0)? & SETTABLE != 0 {
        fcntl(fd, libc::F_SETFL, (flags & SETTABLE).into())?;
    }
    Ok(())
}

fn not_here(what: String, why: String, todo: &str) -> Error {
    Error::NotHere { what, why, todo: todo.to_owned() }
}

/// What only creates or empties: never among the flags with which something is opened again.
const NEVER: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// Opens a file with recorded flags. A descriptor of ours is opened by its link, which `O_NOFOLLOW` (as `shm_open(3)` has it) would
/// not follow.
fn open_again(path: &Path, flags: i32) -> io::Result<File> {
    let link = if path.parent() == Some(Path::new("/proc/self/fd")) { libc::O_NOFOLLOW } else { 0 };
    let flags = OFlag::from_bits_retain((flags & !(NEVER | link)) | libc::O_CLOEXEC | libc::O_NOCTTY);
    Ok(nix::fcntl::open(path, flags, Mode::empty())?.into())
}

/// The same of a file whose path the kernel had told, and on which there was no symbolic link: now there must be none either. Else
/// somebody who may write to a directory on the way could have us open, and cut, what he may not touch.
fn open_as_told(path: &FilePath, flags: i32) -> io::Result<File> {
    fd::open_without_links(path.as_path(), flags & !NEVER)
}

/// Why it could not be opened so, in words.
fn why_not(e: &io::Error) -> String {
    if e.raw_os_error() == Some(libc::ELOOP) {
        "a symbolic link leads to it now, and did not at the checkpoint".to_owned()
    } else {
        format!("it cannot be opened ({e})")
    }
}

/// Where one of our own descriptors can be opened again, for a new description of the same object.
fn own_link(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

/// Goes to the offset of a description, which one that only names its file does not have.
fn seek_if_open(file: impl AsFd, flags: i32, position: i64, path: &FilePath) -> Result<()> {
    if flags & libc::O_PATH == 0 { seek(file, position, path) } else { Ok(()) }
}

fn seek(file: impl AsFd, position: i64, path: &FilePath) -> Result<()> {
    lseek64(file, position, Whence::SeekSet)
        .map(drop)
        .map_err(|e| Error::system(format!("going to byte {position} of {path}"), e))
}
