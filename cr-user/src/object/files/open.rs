//! Opening everything again in our own process, and the calls that give it to the restored one.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{Description, Files, Table, open_again};
use crate::error::{Error, Result};
use crate::remote::Call;
use crate::sys::fd::dup_above;

/// Descriptors of ours for everything that the job had open.
#[derive(Debug)]
pub struct Opened {
    /// By index of the description.
    pub fds: Vec<OwnedFd>,
    /// Numbers under which processes inherit them. What comes late is not what they inherit, but keeps its place.
    inherited: Vec<i32>,
    spaces: HashMap<u64, File>,
}

impl Opened {
    /// The object, open for reading and writing, whose bytes are in a content space: the process's memory may map it too.
    pub fn by_space(&self, space: u64) -> Option<BorrowedFd<'_>> {
        self.spaces.get(&space).map(AsFd::as_fd)
    }

    /// Our number for a description.
    pub fn number(&self, description: usize) -> i32 {
        self.fds[description].as_raw_fd()
    }

    /// Every content space whose object was made, with the object.
    pub fn spaces(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.spaces.iter().map(|(space, file)| (*space, file.as_fd()))
    }
}

/// Opens every description in our process, under numbers at or above `base` that no process of the job used: a child
/// made without `exec` inherits them all, and puts them into place with [`calls`]. `fill` writes the bytes of a content space
/// into a file that already has its size and reads as zeroes.
///
/// Files must have been checked, and cut back.
///
/// # Errors
/// [`Error::NotHere`] and [`Error::System`]; what was opened is closed again.
pub fn open(files: &Files, base: i32, fill: &mut dyn FnMut(u64, &File) -> Result<()>) -> Result<Opened> {
    let taken: HashSet<i32> = files.numbers().collect();
    let mut pipes = files.pipes.iter().map(super::pipe::Pipe::filled).collect::<Result<Vec<_>>>()?;
    let mut spaces: HashMap<u64, File> = HashMap::new();
    let mut creators: HashMap<u64, File> = HashMap::new();
    let creators_first = files.descriptions.iter().filter(|d| is_creator(d)).chain(&files.descriptions);
    for description in creators_first {
        let Some(space) = description.space().filter(|s| !spaces.contains_key(s)) else { continue };
        let made = match description {
            Description::Deleted(r) => {
                let made = r.make()?;
                creators.extend(made.creator.map(|c| (space, c)));
                made.file
            }
            Description::Memfd(r) => r.make()?,
            _ => continue,
        };
        fill(space, &made)?;
        spaces.insert(space, File::from(place(&made, base, &taken)?));
    }
    let mut fds = Vec::with_capacity(files.descriptions.len());
    for description in &files.descriptions {
        let fd = match description {
            Description::Regular(r) => r.open()?,
            Description::Deleted(r) => {
                let creator = if r.is_creator() { creators.remove(&r.space) } else { None };
                r.open(&spaces[&r.space], creator)?
            }
            Description::Memfd(r) => r.open(&spaces[&r.space])?,
            Description::Directory(r) => r.open()?,
            Description::Device(r) => r.open()?,
            Description::Pipe(r) => r.open(&mut pipes[r.pipe as usize])?,
            Description::Stdio(r) => r.open()?,
            Description::Terminal(r) => r.open()?,
            Description::Eventfd(r) => r.open()?,
            Description::Timerfd(r) => r.open()?,
            Description::Signalfd(r) => r.open()?,
            Description::Epoll(_) => super::epoll::open()?,
            // It keeps the number free from others until there are the processes.
            Description::Pidfd(_) | Description::Unix(_) => open_again("/dev/null".as_ref(), libc::O_RDONLY)
                .map_err(|e| Error::system("opening /dev/null", e))?
                .into(),
        };
        fds.push(place(&fd, base, &taken)?);
    }
    for description in &files.descriptions {
        match description {
            Description::Deleted(r) => r.finish(&spaces[&r.space])?,
            Description::Memfd(r) => r.finish(&spaces[&r.space])?,
            _ => {}
        }
    }
    for lock in &files.locks {
        lock.take(files, fds[lock.description as usize].as_fd())?;
    }
    let inherited = fds.iter().map(AsRawFd::as_raw_fd).collect();
    Ok(Opened { fds, inherited, spaces })
}

/// The calls that turn the inherited descriptors into a table of the record: everything goes to its number, and every
/// other descriptor is closed but those in `keep`, whose numbers must not be in the table.
///
/// A number must be below the limit of open files in force when they run.
pub fn calls(table: &Table, opened: &Opened, keep: &[i32]) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for row in &table.rows {
        let from = opened.inherited[row.description as usize];
        let flags = if row.cloexec { libc::O_CLOEXEC } else { 0 };
        calls.push(Call::new(libc::SYS_dup3, &[from as u64, row.fd as u64, flags as u64]));
    }
    let mut stay: Vec<i32> = table.rows.iter().map(|d| d.fd).chain(keep.iter().copied()).collect();
    stay.sort_unstable();
    let mut next = 0;
    for fd in stay {
        if fd > next {
            calls.push(Call::new(libc::SYS_close_range, &[next as u64, fd as u64 - 1, 0]));
        }
        next = fd + 1;
    }
    calls.push(Call::new(libc::SYS_close_range, &[next as u64, u64::from(u32::MAX), 0]));
    calls
}

fn is_creator(description: &Description) -> bool {
    matches!(description, Description::Deleted(r) if r.is_creator())
}

/// Moves a descriptor to a number at or above `base` that is not taken.
fn place(fd: &impl AsFd, base: i32, taken: &HashSet<i32>) -> Result<OwnedFd> {
    let mut min = base;
    loop {
        let new = dup_above(fd.as_fd(), min).map_err(|e| Error::system("making a descriptor for the job", e))?;
        if !taken.contains(&new.as_raw_fd()) {
            return Ok(new);
        }
        min = new.as_raw_fd() + 1;
    }
}
