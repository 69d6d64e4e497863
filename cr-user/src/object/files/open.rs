//! Opening everything again in our own process, and the calls that give it to the restored one.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::epoll::Trigger;
use super::{Description, Files, Table, inet, late, open_again, own_link, pty, settings};
use crate::error::{Error, Result};
use crate::remote::Call;
use crate::sys::fd::dup_above;

/// Descriptors of ours for everything that the job had open.
#[derive(Debug)]
pub struct Opened {
    /// By index of the description.
    pub fds: Vec<OwnedFd>,
    spaces: HashMap<u64, File>,
    /// Directories that were removed, made anew.
    lost: Vec<File>,
    /// Ends to write to of pipes by whose description an epoll set watches the other end, where that has to be made ready.
    writers: HashMap<u32, OwnedFd>,
    /// TCP connections with somebody outside of the job.
    revived: inet::Revived,
}

impl Opened {
    /// The number of a description, by index, here and in a new process.
    pub(super) fn number(&self, description: usize) -> i32 {
        self.fds[description].as_raw_fd()
    }

    /// The number of the end to write to of a pipe that must be made ready.
    pub(super) fn writer(&self, description: u32) -> i32 {
        self.writers.get(&description).map_or(-1, AsRawFd::as_raw_fd)
    }

    /// To be called when the job is complete, just before it is let go: what restoring it has left behind where the job
    /// watches files is taken away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn settle(&self, files: &Files) -> Result<()> {
        for (description, fd) in files.descriptions.iter().zip(&self.fds) {
            if let Description::Inotify(r) = description {
                r.settle(fd)?;
            }
        }
        // Only now that all of its mappings are there can a memory file be sealed against new ones.
        for description in &files.descriptions {
            if let Description::Memfd(r) = description {
                r.seal(&self.spaces[&r.space])?;
            }
        }
        settings::settle(files, |description| self.fds[description].as_fd())
    }

    /// Takes the connections that go on when the job does.
    pub fn take_revived(&mut self) -> inet::Revived {
        std::mem::take(&mut self.revived)
    }

    /// The working directory of a process, if it is one that was removed.
    pub fn working_directory(&self, files: &Files, pid: i32) -> Option<i32> {
        let place = files.lost_places.iter().find(|(p, _)| *p == pid);
        place.map(|(_, index)| self.lost[*index as usize].as_raw_fd())
    }

    /// The object, open for reading and writing, whose bytes are in a content space: the process's memory may map it too.
    pub fn by_space(&self, space: u64) -> Option<BorrowedFd<'_>> {
        self.spaces.get(&space).map(AsFd::as_fd)
    }

    /// Every content space whose object was made, with the object.
    pub fn spaces(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.spaces.iter().map(|(space, file)| (*space, file.as_fd()))
    }
}

/// Opens every description in our process, under numbers at or above `base` that no process of the job used: a child
/// made without `exec` inherits them all, and puts them into place with [`calls`]. `fill` writes the bytes of a content space
/// into a file that already has its size and reads as zeroes. `tcp` is what becomes of connections with somebody outside.
///
/// Files must have been checked, and cut back.
///
/// # Errors
/// [`Error::NotHere`] and [`Error::System`]; what was opened is closed again.
pub fn open(
    files: &Files,
    base: i32,
    tcp: inet::Policy,
    fill: &mut dyn FnMut(u64, &File) -> Result<()>,
) -> Result<Opened> {
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
    let lost = files.lost.iter().map(|d| Ok(File::from(place(&d.make()?, base, &taken)?)));
    let lost = lost.collect::<Result<Vec<File>>>()?;
    let queues = files.queues.iter().map(super::mqueue::Queue::make).collect::<Result<Vec<_>>>()?;
    let mut fifo_ends = open_fifos(files)?;
    let mut pty_ends = pty::open_all(files)?;
    let (mut networks, revived) = inet::open(files, tcp)?;
    networks.extend(super::net::open(files)?);
    let mut fds = Vec::with_capacity(files.descriptions.len());
    for (index, description) in files.descriptions.iter().enumerate() {
        let fd = match description {
            Description::Unix(_) => late::placeholder()?,
            Description::Inet(_) | Description::Net(_) => networks.remove(&index).expect("each socket was made"),
            one if one.is_late() => late::placeholder()?,
            Description::Regular(r) => r.open()?,
            Description::Deleted(r) => {
                let creator = if r.is_creator() { creators.remove(&r.space) } else { None };
                r.open(&spaces[&r.space], creator)?
            }
            Description::Memfd(r) => r.open(&spaces[&r.space])?,
            Description::Directory(r) => match r.lost.map(|l| l as usize) {
                Some(l) => files.lost[l].open(&lost[l], r.flags)?,
                None => r.open()?,
            },
            Description::PathOnly(r) => r.open()?,
            Description::Fifo(_) => fifo_ends.remove(&index).expect("each end was opened"),
            Description::Pty(_) => pty_ends.remove(&index).expect("each end was opened"),
            Description::Queue(r) => files.queues[r.queue as usize].open(&queues[r.queue as usize], r)?,
            Description::Device(r) => r.open()?,
            Description::Pipe(r) => r.open(&mut pipes[r.pipe as usize])?,
            Description::Stdio(r) => r.open()?,
            Description::Terminal(r) => r.open()?,
            Description::Eventfd(r) => r.open()?,
            Description::Timerfd(r) => r.open()?,
            Description::Signalfd(r) => r.open()?,
            Description::Epoll(r) => r.open()?,
            Description::Inotify(r) => r.open()?,
            Description::Pidfd(r) => r.open()?,
            Description::Namespace(r) => r.open()?,
            Description::Proc(r) => r.open()?,
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
    let mut writers = HashMap::new();
    for watch in files.watches().filter(|w| w.spent == Some(Trigger::Byte)) {
        let reader = own_link(fds[watch.description as usize].as_raw_fd());
        let writer = open_again(reader.as_ref(), libc::O_WRONLY | libc::O_NONBLOCK)
            .map_err(|e| Error::system("opening a pipe of the job", e))?;
        writers.insert(watch.description, place(&writer, base, &taken)?);
    }
    for lock in &files.locks {
        lock.take(files, fds[lock.description as usize].as_fd())?;
    }
    Ok(Opened { fds, spaces, lost, writers, revived })
}

/// Every description of a FIFO, by index.
fn open_fifos(files: &Files) -> Result<HashMap<usize, OwnedFd>> {
    let mut all = HashMap::new();
    for (nth, fifo) in files.fifos.iter().enumerate() {
        let ends = files.descriptions.iter().enumerate().filter_map(|(index, d)| match d {
            Description::Fifo(end) if end.fifo as usize == nth => Some((index, end)),
            _ => None,
        });
        all.extend(fifo.restore(&ends.collect::<Vec<_>>())?);
    }
    Ok(all)
}

/// The calls that turn the inherited descriptors into a table of the record: everything goes to its number, and every
/// other descriptor is closed but those in `keep`, whose numbers must not be in the table.
///
/// A number must be below the limit of open files in force when they run.
pub fn calls(table: &Table, opened: &Opened, keep: &[i32]) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for row in &table.rows {
        let from = opened.number(row.description as usize);
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
