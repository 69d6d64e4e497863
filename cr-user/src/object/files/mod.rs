//! Open files: one record of every open file description, and a table of the descriptors that refer to them.
//!
//! One file here per kind: its record, how it is captured, how it is restored, why it may be refused.
//!
//! | kind | restored as |
//! |---|---|
//! | [`regular`] file with a name | the file of that name; what it grew by is cut back ([`rollback`]) |
//! | [`deleted`] file, [`memfd`] | a new object with the same bytes, which are in the image |
//! | [`directory`], [`device`] without state | opened by name |
//! | [`pipe`] within the job | a new pipe with the same data |
//! | [`stdio`] from outside, [`terminal`] | what `cr restore` has |
//! | everything else ([`unsupported`]) | refused by name |

pub mod deleted;
pub mod device;
pub mod directory;
pub mod memfd;
mod open;
pub mod pipe;
pub mod regular;
pub mod rollback;
pub mod stdio;
mod survey;
pub mod terminal;
#[cfg(test)]
mod tests;
mod unsupported;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Whence, isatty, lseek64};

use crate::error::{Error, Refusal, Result};
use crate::image::RecordKind;
use crate::procfs;
use crate::sys::fd::{pidfd_getfd, pidfd_open, same_table};
use survey::{Group, Seen};

pub use open::{Opened, calls, open};
pub use rollback::{Cut, FilePolicy, Growth, RollbackPlan, roll_back};

/// The record of a process's open files.
pub const KIND: RecordKind = RecordKind { id: 7, version: 1, name: "files" };

/// The open files of one process.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Open file descriptions.
    pub descriptions: Vec<Description>,
    /// Descriptors, ascending by number.
    pub table: Vec<Descriptor>,
    /// The pipes that descriptions are ends of.
    pub pipes: Vec<pipe::Pipe>,
}

/// One descriptor.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub fd: i32,
    /// Whether `exec` closes it.
    pub cloexec: bool,
    /// Index of its description.
    pub description: u32,
}

/// One open file description.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Description {
    /// A regular file that has a name.
    Regular(regular::Regular),
    /// A file that has none any more.
    Deleted(deleted::Deleted),
    /// A memory file.
    Memfd(memfd::Memfd),
    /// A directory.
    Directory(directory::Directory),
    /// A device without state.
    Device(device::Device),
    /// An end of a pipe of the job's own.
    Pipe(pipe::PipeEnd),
    /// Standard input, output or error from outside.
    Stdio(stdio::Stdio),
    /// Another terminal.
    Terminal(terminal::Terminal),
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
            Self::Stdio(_) => "stdio",
            Self::Terminal(_) => "terminal",
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
            Self::Pipe(_) | Self::Stdio(_) | Self::Terminal(_) => None,
        }
    }

    /// Its offset in bytes, where it has one.
    pub fn position(&self) -> Option<i64> {
        match self {
            Self::Regular(r) => Some(r.position),
            Self::Deleted(r) => Some(r.position),
            Self::Memfd(r) => Some(r.position),
            Self::Directory(r) => Some(r.position),
            Self::Device(_) | Self::Pipe(_) | Self::Stdio(_) | Self::Terminal(_) => None,
        }
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
    /// The numbers of the descriptors that refer to a description.
    pub fn numbers(&self, description: usize) -> Vec<i32> {
        self.table.iter().filter(|d| d.description as usize == description).map(|d| d.fd).collect()
    }
}

/// A path or name, which need not be UTF-8.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct FilePath(pub Vec<u8>);

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

/// A file whose bytes must go into the image.
#[derive(Debug)]
pub struct ContentSource {
    /// Its content space.
    pub space: u64,
    /// The file, open for reading through a description of ours.
    pub file: File,
    /// Its size in bytes.
    pub len: u64,
}

/// Every descriptor of a process that could not be restored. The process may be running: what it closes meanwhile is left
/// out, and nothing is changed.
///
/// # Errors
/// [`Error::NoSuchJob`], [`Error::NotAllowed`].
pub fn refusals(pid: i32) -> Result<Vec<Refusal>> {
    let pidfd = pidfd_open(pid).map_err(|_| Error::NoSuchJob { pid })?;
    let groups = survey::look(pid)?;
    let mut found = describe(pid, pidfd.as_fd(), &groups, &mut |_, _| 0);
    found.refusals.extend(found.pipes.shared_with_others(pid));
    let mut refusals = other_tables(pid)?;
    let still_there = |r: &Refusal| {
        let seen = groups.iter().flat_map(|g| &g.members).find(|s| place(s) == r.place);
        seen.is_none_or(|s| procfs::link(pid, &format!("fd/{}", s.fd)).is_ok_and(|l| l == s.link))
    };
    refusals.extend(found.refusals.into_iter().filter(still_there));
    Ok(refusals)
}

/// Captures the descriptors of a frozen process. `space_of` gives the content space of a file by device and inode.
///
/// # Errors
/// [`Error::Refused`] with everything that could not be restored, [`Error::System`] when a pipe cannot be read.
pub fn capture(
    pid: i32,
    pidfd: BorrowedFd<'_>,
    space_of: &mut dyn FnMut(u64, u64) -> u64,
) -> Result<(Files, Vec<ContentSource>)> {
    let groups = survey::look(pid)?;
    let mut found = describe(pid, pidfd, &groups, space_of);
    found.refusals.extend(other_tables(pid)?);
    if !found.refusals.is_empty() {
        return Err(Error::Refused(found.refusals));
    }
    found.files.pipes = found.pipes.capture(pid, pidfd)?;
    found.files.table.sort_unstable_by_key(|d| d.fd);
    Ok((found.files, found.sources))
}

/// Compares every file with its record, and finds what has grown. Nothing is changed.
///
/// # Errors
/// [`Error::NotHere`] that names the first file that cannot be restored.
pub fn check(files: &Files, policy: FilePolicy) -> Result<RollbackPlan> {
    let mut plan = RollbackPlan::default();
    for description in &files.descriptions {
        match description {
            Description::Regular(r) => r.check(policy, &mut plan)?,
            Description::Directory(r) => r.check()?,
            Description::Device(r) => r.check()?,
            Description::Terminal(r) => drop(r.open()?),
            // What these need is made by the restore.
            Description::Deleted(_) | Description::Memfd(_) | Description::Pipe(_) | Description::Stdio(_) => {}
        }
    }
    for pipe in &files.pipes {
        pipe.make()?;
    }
    Ok(plan)
}

/// What was found in a process.
#[derive(Default)]
struct Found {
    files: Files,
    sources: Vec<ContentSource>,
    refusals: Vec<Refusal>,
    pipes: pipe::Pipes,
}

impl Found {
    fn add<'a>(&mut self, description: Description, members: impl IntoIterator<Item = &'a Seen>) {
        let index = self.files.descriptions.len() as u32;
        self.files.descriptions.push(description);
        let rows = members.into_iter().map(|s| Descriptor { fd: s.fd, cloexec: s.cloexec, description: index });
        self.files.table.extend(rows);
    }
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

fn describe(pid: i32, pidfd: BorrowedFd<'_>, groups: &[Group], space_of: &mut dyn FnMut(u64, u64) -> u64) -> Found {
    let mut found = Found { pipes: pipe::Pipes::of(groups), ..Found::default() };
    for group in groups {
        if let Err(no) = describe_one(pid, pidfd, groups, group, space_of, &mut found) {
            let refuse = |s: &Seen| Refusal { pid, place: place(s), why: no.why.clone(), todo: no.todo.to_owned() };
            found.refusals.extend(group.members.iter().map(refuse));
        }
    }
    found
}

/// The table of kinds.
fn describe_one(
    pid: i32,
    pidfd: BorrowedFd<'_>,
    groups: &[Group],
    group: &Group,
    space_of: &mut dyn FnMut(u64, u64) -> u64,
    found: &mut Found,
) -> std::result::Result<(), No> {
    let seen = group.first();
    if let Some(no) = unsupported::refuse(pid, seen) {
        return Err(no);
    }
    let kind = seen.meta.file_type();
    let mut space = || space_of(seen.meta.dev(), seen.meta.ino());
    let description = if memfd::is_memfd(seen) {
        let (record, source) = memfd::describe(pid, seen, space())?;
        found.sources.push(source);
        Description::Memfd(record)
    } else if kind.is_file() && deleted::is_nameless(seen) {
        let (record, source) = deleted::describe(pid, seen, space())?;
        found.sources.push(source);
        Description::Deleted(record)
    } else if kind.is_file() {
        Description::Regular(regular::describe(seen)?)
    } else if kind.is_dir() {
        Description::Directory(directory::describe(seen)?)
    } else if kind.is_fifo() && seen.filesystem == pipe::PIPEFS {
        match found.pipes.describe(pidfd, group)? {
            pipe::Found::Own(end) => Description::Pipe(end),
            pipe::Found::Standard(number) => return Ok(add_stdio(group, number, found)),
        }
    } else if kind.is_fifo() {
        return Err(unsupported::fifo(seen));
    } else if kind.is_socket() {
        let number = standard_socket(groups, group).ok_or_else(|| unsupported::socket(seen))?;
        stdio::no_unread_input(get(pidfd, seen)?.as_fd(), "a socket")?;
        return Ok(add_stdio(group, number, found));
    } else if let Some(device) = device::describe(seen) {
        Description::Device(device)
    } else if terminal::is_master(seen) {
        return Err(unsupported::terminal_master(seen));
    } else if isatty(get(pidfd, seen)?).unwrap_or(false) {
        match stdio::standing_for(group.members.iter().map(|s| s.fd), seen.writable()) {
            Some(number) => return Ok(add_stdio(group, number, found)),
            None => Description::Terminal(terminal::describe(seen)),
        }
    } else {
        return Err(unsupported::device(seen));
    };
    found.add(description, &group.members);
    Ok(())
}

fn add_stdio(group: &Group, number: i32, found: &mut Found) {
    for (record, members) in stdio::split(group, number) {
        found.add(Description::Stdio(record), members);
    }
}

/// The standard descriptor that is on the same socket.
fn standard_socket(groups: &[Group], group: &Group) -> Option<i32> {
    let ino = group.first().meta.ino();
    let same = groups.iter().filter(|g| g.first().meta.file_type().is_socket() && g.first().meta.ino() == ino);
    stdio::standing_for(same.flat_map(|g| &g.members).map(|s| s.fd), true)
}

fn get(pidfd: BorrowedFd<'_>, seen: &Seen) -> std::result::Result<std::os::fd::OwnedFd, No> {
    let failed = |e: Errno| No::new(format!("cannot be examined ({e})"), "run cr as root or as the job's owner");
    pidfd_getfd(pidfd, seen.fd).map_err(failed)
}

fn place(seen: &Seen) -> String {
    format!("fd {}", seen.fd)
}

/// Threads that have a table of descriptors of their own, which would not be seen.
fn other_tables(pid: i32) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    for tid in procfs::threads(pid).map_err(|_| Error::NoSuchJob { pid })? {
        match same_table(pid, tid) {
            Ok(true) | Err(Errno::ESRCH) => {}
            Ok(false) => refusals.push(Refusal {
                pid,
                place: format!("thread {tid}"),
                why: "has a table of descriptors of its own (unshare(CLONE_FILES))".to_owned(),
                todo: "have the job's threads share one table".to_owned(),
            }),
            Err(e) => return Err(Error::system(format!("comparing the descriptor tables of pid {pid}"), e)),
        }
    }
    Ok(refusals)
}

fn not_here(what: String, why: String, todo: &str) -> Error {
    Error::NotHere { what, why, todo: todo.to_owned() }
}

/// Opens a file with recorded flags. What only creates is never among them.
fn open_again(path: &Path, flags: i32) -> io::Result<File> {
    let never = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    let flags = OFlag::from_bits_retain((flags & !never) | libc::O_CLOEXEC | libc::O_NOCTTY);
    Ok(nix::fcntl::open(path, flags, Mode::empty())?.into())
}

/// Where one of our own descriptors can be opened again, for a new description of the same object.
fn own_link(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

fn seek(file: impl AsFd, position: i64, path: &FilePath) -> Result<()> {
    lseek64(file, position, Whence::SeekSet)
        .map(drop)
        .map_err(|e| Error::system(format!("going to byte {position} of {path}"), e))
}
