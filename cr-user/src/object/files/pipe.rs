//! Pipes of the job's own: both ends are in it, or the other end is closed for good. Their data, capacity and packets are
//! captured without taking a byte out; a restore makes a new pipe with the same data in it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::kept::Kept;
use super::survey::{self, Group, readable, writable};
use super::{Holder, No, not_here, open_again, own_link, stdio, unix};
use crate::error::{Error, Refusal, Result};
use crate::procfs;
use crate::sys::fd::{self, fcntl};
use crate::track::iters::covered;

/// `PIPEFS_MAGIC` of `linux/magic.h`: a pipe without a name.
pub(super) const PIPEFS: i64 = 0x5049_5045;
/// Bytes of the largest packet: a page.
pub(super) const PACKET: usize = crate::sys::PAGE as usize;
/// `O_LARGEFILE` as the kernel knows it; libc has 0 for it on 64-bit machines (`asm-generic/fcntl.h`).
const LARGEFILE: i32 = 0o100_000;
/// The status flags that `F_SETFL` changes on a pipe.
pub(super) const SETTABLE: i32 = libc::O_NONBLOCK | libc::O_DIRECT | libc::O_APPEND;

/// One pipe.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Pipe {
    /// Bytes that it can hold (`F_GETPIPE_SZ`).
    pub capacity: u32,
    /// Whether its data are packets (`O_DIRECT`) rather than a stream.
    pub packets: bool,
    /// What was written and not yet read: a packet each, or the stream in one piece.
    #[serde(serialize_with = "crate::object::shown::lists")]
    pub pieces: Vec<Vec<u8>>,
}

/// One description of a pipe. Its access mode says which end it is.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PipeEnd {
    /// Index of the pipe in [`Files::pipes`](super::Files::pipes).
    pub pipe: u32,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// What a description of a pipe is to the job.
pub(super) enum Found {
    /// An end of a pipe that is restored.
    Own(PipeEnd),
    /// The outside's standard input, output or error: this descriptor of it.
    Standard(i32),
}

/// The pipes of the job, and which of them are restored.
#[derive(Default)]
pub(super) struct Pipes {
    seen: HashMap<u64, Ends>,
    /// Inode of each pipe that is restored, by index.
    own: Vec<u64>,
    numbers: HashMap<u64, u32>,
    /// The job runs and has sockets, in whose queues the other end of a pipe may be: they are looked into later.
    pub(super) may_be_queued: bool,
}

/// The descriptors of one pipe, by what they can do: process and number of each.
#[derive(Default)]
struct Ends {
    readers: Vec<(i32, i32)>,
    writers: Vec<(i32, i32)>,
    packets: bool,
    /// An end of it is not known to be as it was, with nothing in it.
    is_open: bool,
}

impl Pipes {
    /// Finds the pipes among the descriptions.
    pub(super) fn of(groups: &[Group]) -> Self {
        let mut pipes = Self::default();
        for group in groups.iter().filter(|g| g.first().filesystem == PIPEFS) {
            let ends = pipes.seen.entry(group.first().meta.ino()).or_default();
            ends.is_open |= group.known.is_none() || !group.is_covered(covered::PIPE);
            for seen in &group.members {
                if seen.readable() {
                    ends.readers.push((seen.pid, seen.fd));
                }
                if seen.writable() {
                    ends.writers.push((seen.pid, seen.fd));
                    ends.packets |= seen.flags & libc::O_DIRECT != 0;
                }
            }
        }
        pipes
    }

    /// Says what the description is, or why it cannot be restored.
    pub(super) fn describe(&mut self, holders: &[Holder<'_>], group: &Group) -> std::result::Result<Found, No> {
        let seen = group.first();
        let ino = seen.meta.ino();
        let ends = &self.seen[&ino];
        if ends.readers.is_empty() || ends.writers.is_empty() {
            let ours = survey::fetch(holders, seen.pid, seen.fd)
                .map_err(|e| No::new(format!("is a pipe that cannot be examined ({e})"), "try again"))?;
            let alive = !other_end_closed(ours.as_fd());
            let standard = stdio::standing_for(
                |n| ends.readers.iter().chain(&ends.writers).any(|(_, fd)| *fd == n),
                seen.writable(),
            );
            match (standard, seen.readable()) {
                (Some(number), true) if alive => {
                    stdio::no_unread_input(ours.as_fd(), "a pipe")?;
                    return Ok(Found::Standard(number));
                }
                // Nobody reads what the job writes, but on restore somebody may.
                (Some(number), false) => return Ok(Found::Standard(number)),
                _ if alive => {
                    // Before anybody is looked for, it must not be we who have it.
                    drop(ours);
                    let other = unix::other_owner(&seen.link, holders);
                    if self.may_be_queued && other.is_none() {
                        return Ok(self.own(ino, seen.flags));
                    }
                    let who = other.map_or(String::new(), |pid| format!(": {} has it open", procfs::who(pid)));
                    let why = format!("is a pipe ({}) whose other end is outside the job{who}", seen.link.display());
                    return Err(No::new(
                        why,
                        "checkpoint the process at its other end with it, or have the job close it",
                    ));
                }
                _ => {}
            }
        }
        Ok(self.own(ino, seen.flags))
    }

    fn own(&mut self, ino: u64, flags: i32) -> Found {
        let pipe = *self.numbers.entry(ino).or_insert(self.own.len() as u32);
        if pipe as usize == self.own.len() {
            self.own.push(ino);
        }
        Found::Own(PipeEnd { pipe, flags })
    }

    /// Pipes of the job that a process outside has open too. Looks at every process that we may look at.
    pub(super) fn shared_with_others(&self, holders: &[Holder<'_>]) -> Vec<Refusal> {
        if self.own.is_empty() {
            return Vec::new();
        }
        let mut refusals = Vec::new();
        for other in procfs::processes().filter(|other| !survey::is_of_job(*other, holders)) {
            for theirs in procfs::descriptors(other).unwrap_or_default() {
                let link = procfs::link(other, &format!("fd/{theirs}"));
                let Some(ino) = link.ok().and_then(|l| inode(&l.to_string_lossy())) else { continue };
                if !self.own.contains(&ino) {
                    continue;
                }
                let name = fs::read_to_string(format!("/proc/{other}/comm")).unwrap_or_default();
                for &(pid, fd) in self.seen[&ino].readers.iter().chain(&self.seen[&ino].writers) {
                    let place = format!("fd {fd}");
                    if !refusals.iter().any(|r: &Refusal| r.pid == pid && r.place == place) {
                        let why = format!("is a pipe that pid {other} ({}) has open too", name.trim_end());
                        let todo = "checkpoint both together, or have one of them close it".to_owned();
                        refusals.push(Refusal { pid, place, why, todo });
                    }
                }
            }
        }
        refusals
    }

    /// Reads every pipe that is restored; of those that are as they were, with nothing in them, it is known how much they can hold.
    /// The job must be frozen.
    pub(super) fn capture(&self, holders: &[Holder<'_>], kept: &Kept) -> Result<Vec<Pipe>> {
        let one = |ino: &u64| {
            let ends = &self.seen[ino];
            match kept.capacity(*ino).filter(|_| !ends.is_open) {
                Some(capacity) => Ok(Pipe { capacity, packets: ends.packets, pieces: Vec::new() }),
                None => capture(holders, ends),
            }
        };
        self.own.iter().map(one).collect()
    }
}

fn capture(holders: &[Holder<'_>], ends: &Ends) -> Result<Pipe> {
    let (pid, fd) = ends.readers.first().or(ends.writers.first()).copied().unwrap_or((0, -1));
    let failed = |e: io::Error| Error::system(format!("reading the pipe at fd {fd} of pid {pid}"), e);
    // Where nobody is left to read, the data are still there (FIONREAD tells) and opening the pipe makes us a reader.
    let theirs: OwnedFd = if ends.readers.is_empty() {
        open_again(procfs::fd_path(pid, fd).as_ref(), libc::O_RDONLY | libc::O_NONBLOCK).map_err(failed)?.into()
    } else {
        survey::fetch(holders, pid, fd).map_err(|e| failed(e.into()))?
    };
    let capacity = fcntl(theirs.as_fd(), libc::F_GETPIPE_SZ, 0).map_err(|e| failed(e.into()))?;
    let pieces = copy(theirs.as_fd(), capacity).map_err(failed)?;
    let packets = ends.packets || pieces.len() > 1;
    if packets && pieces.iter().any(|p| p.len() > PACKET) {
        let why =
            "is a pipe that holds both a stream and packets (O_DIRECT was set or cleared with data in it)".to_owned();
        let todo = "wait until the job has read them".to_owned();
        return Err(Error::Refused(vec![Refusal { pid, place: format!("fd {fd}"), why, todo }]));
    }
    Ok(Pipe { capacity: capacity as u32, packets, pieces })
}

/// What is in the pipe, without taking it out. A pipe of the same capacity has room for it.
pub(super) fn copy(theirs: BorrowedFd<'_>, capacity: i32) -> io::Result<Vec<Vec<u8>>> {
    let pending = fd::readable_bytes(theirs)?;
    if pending == 0 {
        return Ok(Vec::new());
    }
    let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(to.as_fd(), libc::F_SETPIPE_SZ, capacity.into())?;
    if fd::tee(theirs, to.as_fd(), pending)? != pending {
        return Err(io::Error::other("its data could not be copied whole"));
    }
    drop(to);
    let mut from = File::from(from);
    let mut pieces = Vec::new();
    loop {
        // A read ends at the end of a packet.
        let mut piece = vec![0; pending];
        match from.read(&mut piece)? {
            0 => return Ok(pieces),
            n => piece.truncate(n),
        }
        pieces.push(piece);
    }
}

/// The kernel says so by `POLLHUP` to a reader and `POLLERR` to a writer (`poll(2)`).
pub(super) fn other_end_closed(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).is_ok()
        && polled[0].revents().is_some_and(|r| r.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

/// The number in `pipe:[812]`.
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

/// A new pipe that is like the recorded one. Its ends are handed out once each, then opened again.
pub(super) struct Made {
    reader: OwnedFd,
    writer: OwnedFd,
    reader_given: bool,
    writer_given: bool,
}

impl Pipe {
    /// Makes the pipe, of its capacity and empty.
    pub(super) fn make(&self) -> Result<Made> {
        let (reader, writer) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::system("making a pipe of the job", e))?;
        let now = fcntl(writer.as_fd(), libc::F_GETPIPE_SZ, 0).unwrap_or(0);
        if now != self.capacity as i32 {
            fcntl(writer.as_fd(), libc::F_SETPIPE_SZ, self.capacity.into()).map_err(|e| {
                let why = format!("no pipe of {} bytes can be made ({e})", self.capacity);
                not_here("a pipe".to_owned(), why, "raise /proc/sys/fs/pipe-max-size, or run cr as root")
            })?;
        }
        Ok(Made { reader, writer, reader_given: false, writer_given: false })
    }

    /// Makes the pipe and puts its data into it.
    pub(super) fn filled(&self) -> Result<Made> {
        let made = self.make()?;
        let failed = |e: io::Error| Error::system("filling a pipe of the job", e);
        let mode = if self.packets { libc::O_DIRECT } else { 0 };
        set_status(made.writer.as_fd(), libc::O_NONBLOCK | mode).map_err(failed)?;
        let mut writer = File::from(made.writer.try_clone().map_err(failed)?);
        for piece in &self.pieces {
            writer.write_all(piece).map_err(failed)?;
        }
        set_status(made.writer.as_fd(), 0).map_err(failed)?;
        Ok(made)
    }
}

impl PipeEnd {
    /// A description of the pipe with this record's flags.
    pub(super) fn open(&self, made: &mut Made) -> Result<OwnedFd> {
        self.try_open(made).map_err(|e| Error::system("opening a pipe of the job", e))
    }

    fn try_open(&self, made: &mut Made) -> io::Result<OwnedFd> {
        // What open(2) makes has O_LARGEFILE, which F_GETFL shows, and what pipe(2) makes has not.
        let from_pipe = self.flags & LARGEFILE == 0;
        let (end, given) = if writable(self.flags) {
            (&made.writer, &mut made.writer_given)
        } else {
            (&made.reader, &mut made.reader_given)
        };
        let fd = if from_pipe && !*given && !(readable(self.flags) && writable(self.flags)) {
            *given = true;
            end.try_clone()?
        } else {
            open_again(own_link(end.as_raw_fd()).as_ref(), self.flags & !libc::O_DIRECT)?.into()
        };
        set_status(fd.as_fd(), self.flags & SETTABLE)?;
        Ok(fd)
    }
}

/// Sets status flags (`F_SETFL`).
pub(super) fn set_status(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    fcntl(fd, libc::F_SETFL, flags.into())?;
    Ok(())
}
