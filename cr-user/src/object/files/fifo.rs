//! FIFOs with a name: opened again by name, with what was written and not yet read. Their data are captured without taking a
//! byte out. All who have one open must be of the job.
//!
//! Whoever opens a FIFO is noticed by those who wait for the other end to be opened. So a FIFO is never opened for a capture, and
//! one whose data nobody of the job can read is refused.

use std::fs;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use nix::sys::stat::Mode;

use super::survey::{self, Group, Seen, readable, writable};
use super::{
    FilePath, Holder, No, lost, not_here, open_again, open_as_told, outside, own_link, pipe, regular, why_not,
};
use crate::error::{Error, Refusal, Result};
use crate::sys::fd::{self, fcntl};

/// One FIFO.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Fifo {
    /// Where it is, or was.
    pub path: FilePath,
    /// Whether it has no name any more.
    pub deleted: bool,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes that it can hold (`F_GETPIPE_SZ`).
    pub capacity: u32,
    /// Whether its data are packets (`O_DIRECT`) rather than a stream.
    pub packets: bool,
    /// What was written and not yet read: a packet each, or the stream in one piece.
    #[serde(serialize_with = "crate::object::shown::lists")]
    pub pieces: Vec<Vec<u8>>,
}

/// One description of a FIFO. Its access mode says which end it is.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct FifoEnd {
    /// Index of the FIFO in [`Files::fifos`](super::Files::fifos).
    pub fifo: u32,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// Whether `poll(2)` says that the writers are gone (`POLLHUP`), rather than that none has come yet.
    pub hung_up: bool,
}

/// The FIFOs of the job.
#[derive(Default)]
pub(super) struct Fifos {
    all: Vec<Known>,
}

/// A FIFO, and the descriptors that the job has for it.
struct Known {
    place: (u64, u64),
    record: Fifo,
    members: Vec<(i32, i32)>,
    /// Through which it can be read.
    reader: Option<(i32, i32)>,
}

impl Fifos {
    /// The record of a description, or why there can be none. `groups` are all of the job.
    pub(super) fn describe(
        &mut self,
        holders: &[Holder<'_>],
        group: &Group,
        groups: &[Group],
    ) -> std::result::Result<FifoEnd, No> {
        let seen = group.first();
        let place = (seen.meta.dev(), seen.meta.ino());
        let link = seen.link.display();
        let ours = survey::fetch(holders, seen.pid, seen.fd)
            .map_err(|e| No::new(format!("is a FIFO ({link}) that cannot be examined ({e})"), "try again"))?;
        let ends = || groups.iter().filter(|g| is_end_of(g.first(), place));
        if !ends().any(|g| g.first().readable()) && fd::readable_bytes(ours.as_fd()).unwrap_or(0) > 0 {
            let why = format!("is the FIFO {link}, which holds data that nobody has open for reading");
            return Err(No::new(why, "wait until the job has read them, or have it keep the FIFO open for reading"));
        }
        let known = self.all.iter().position(|k| k.place == place);
        if known.is_none() {
            let mut record = named(seen)?;
            let capacity = fcntl(ours.as_fd(), libc::F_GETPIPE_SZ, 0).unwrap_or(0);
            record.capacity = capacity as u32;
            record.packets = ends().any(|g| g.first().writable() && g.first().flags & libc::O_DIRECT != 0);
            let members = ends().flat_map(|g| &g.members).map(|s| (s.pid, s.fd)).collect();
            let reader = ends().map(Group::first).find(|s| s.readable()).map(|s| (s.pid, s.fd));
            self.all.push(Known { place, record, members, reader });
        }
        let index = known.unwrap_or(self.all.len() - 1);
        let hung_up = !ends().any(|g| g.first().writable()) && pipe::other_end_closed(ours.as_fd());
        Ok(FifoEnd { fifo: index as u32, flags: seen.flags, hung_up })
    }

    /// FIFOs of the job that a process outside has open too. Looks at every process that we may look at.
    pub(super) fn shared_with_others(&self, holders: &[Holder<'_>]) -> Vec<Refusal> {
        let places: Vec<(u64, u64)> = self.all.iter().map(|k| k.place).collect();
        let mut refusals = Vec::new();
        for user in outside::users(holders, &places) {
            let known = &self.all[user.of];
            let why = format!("is the FIFO {}, which {user} has open too", known.record.path);
            let todo = "checkpoint both together, or have one of them close it";
            refusals.extend(known.members.iter().map(|&(pid, fd)| Refusal {
                pid,
                place: format!("fd {fd}"),
                why: why.clone(),
                todo: todo.to_owned(),
            }));
        }
        refusals
    }

    /// Reads every FIFO. The job must be frozen.
    pub(super) fn capture(self, holders: &[Holder<'_>]) -> Result<Vec<Fifo>> {
        self.all.into_iter().map(|known| known.capture(holders)).collect()
    }
}

fn is_end_of(seen: &Seen, place: (u64, u64)) -> bool {
    (seen.meta.dev(), seen.meta.ino()) == place && seen.flags & libc::O_PATH == 0
}

impl Known {
    fn capture(self, holders: &[Holder<'_>]) -> Result<Fifo> {
        let mut fifo = self.record;
        let Some((pid, fd)) = self.reader else { return Ok(fifo) };
        let failed = |e: io::Error| Error::system(format!("reading the FIFO {}", fifo.path), e);
        let theirs = survey::fetch(holders, pid, fd).map_err(|e| failed(e.into()))?;
        fifo.pieces = pipe::copy(theirs.as_fd(), fifo.capacity as i32).map_err(failed)?;
        fifo.packets |= fifo.pieces.len() > 1;
        if fifo.packets && fifo.pieces.iter().any(|p| p.len() > pipe::PACKET) {
            let why = format!("is the FIFO {}, which holds both a stream and packets (O_DIRECT)", fifo.path);
            let todo = "wait until the job has read them".to_owned();
            return Err(Error::Refused(vec![Refusal { pid, place: format!("fd {fd}"), why, todo }]));
        }
        Ok(fifo)
    }
}

/// The record without its data.
fn named(seen: &Seen) -> std::result::Result<Fifo, No> {
    let meta = &seen.meta;
    let deleted = meta.nlink() == 0;
    let mut path = FilePath::from(&*seen.link);
    if deleted {
        let link = seen.link.as_os_str().as_bytes();
        path = FilePath(link.strip_suffix(b" (deleted)").unwrap_or(link).to_owned());
    } else if !fs::metadata(&seen.link).is_ok_and(|t| (t.dev(), t.ino()) == (meta.dev(), meta.ino())) {
        let why = format!("is a FIFO that is not at {} any more, but has another name", seen.link.display());
        return Err(No::new(why, "put it back under this name, or have the job close it"));
    }
    Ok(Fifo {
        path,
        deleted,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        capacity: 0,
        packets: false,
        pieces: Vec::new(),
    })
}

impl Fifo {
    /// Whether it is there.
    pub(super) fn check(&self) -> Result<()> {
        const PUT_BACK: &str = "make it again with mkfifo";
        if self.deleted {
            return Ok(());
        }
        let now = fs::metadata(self.path.as_path())
            .map_err(|e| self.not_here(format!("it cannot be found ({e})"), PUT_BACK))?;
        if !now.file_type().is_fifo() {
            return Err(self.not_here(format!("it is {} now", regular::kind_of(now.file_type())), PUT_BACK));
        }
        Ok(())
    }

    /// Opens it, fills it, and opens all the descriptions that it had: `ends`, with their indices.
    ///
    /// What `poll` says of writers depends on whether there was one since a reader opened: so readers are opened before or after
    /// the one through which it is filled is closed again.
    pub(super) fn restore(&self, ends: &[(usize, &FifoEnd)]) -> Result<Vec<(usize, OwnedFd)>> {
        let failed = |e: io::Error| Error::system(format!("filling the FIFO {}", self.path), e);
        let keeper = self.keeper()?;
        if fd::readable_bytes(keeper.as_fd()).unwrap_or(0) > 0 {
            let why = "somebody else has it open, and has written into it".to_owned();
            return Err(self.not_here(why, "end that process, or have it close the FIFO"));
        }
        fcntl(keeper.as_fd(), libc::F_SETPIPE_SZ, self.capacity.into()).map_err(|e| {
            let why = format!("it cannot be made to hold {} bytes ({e})", self.capacity);
            self.not_here(why, "raise /proc/sys/fs/pipe-max-size, or run cr as root")
        })?;
        let own = own_link(keeper.as_raw_fd());
        let mut filler = open_again(own.as_ref(), libc::O_WRONLY | libc::O_NONBLOCK).map_err(failed)?;
        if self.packets {
            pipe::set_status(filler.as_fd(), libc::O_NONBLOCK | libc::O_DIRECT).map_err(failed)?;
        }
        self.pieces.iter().try_for_each(|piece| filler.write_all(piece)).map_err(failed)?;
        let open = |end: &FifoEnd| -> io::Result<OwnedFd> {
            let file = open_again(own.as_ref(), (end.flags & !libc::O_DIRECT) | libc::O_NONBLOCK)?;
            pipe::set_status(file.as_fd(), end.flags & pipe::SETTABLE)?;
            Ok(file.into())
        };
        let mut opened = Vec::new();
        let only_reads = |flags: i32| readable(flags) && !writable(flags);
        for (index, end) in ends.iter().filter(|(_, e)| only_reads(e.flags) && e.hung_up) {
            opened.push((*index, open(end).map_err(failed)?));
        }
        drop(filler);
        for (index, end) in ends.iter().filter(|(_, e)| only_reads(e.flags) && !e.hung_up) {
            opened.push((*index, open(end).map_err(failed)?));
        }
        for (index, end) in ends.iter().filter(|(_, e)| writable(e.flags)) {
            opened.push((*index, open(end).map_err(failed)?));
        }
        Ok(opened)
    }

    /// A reader, which keeps the data in it.
    fn keeper(&self) -> Result<File> {
        const READ: i32 = libc::O_RDONLY | libc::O_NONBLOCK;
        if !self.deleted {
            let opened = open_as_told(&self.path, READ);
            return opened.map_err(|e| self.not_here(why_not(&e), "let cr read and write it, where it was"));
        }
        let make = |path: &std::path::Path| -> io::Result<File> {
            nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let file = open_again(path, READ | libc::O_NOFOLLOW);
            fs::remove_file(path)?;
            lost::gone(file?)
        };
        let made = lost::under_free_name(self.path.as_path(), make).and_then(|file| {
            std::os::unix::fs::fchown(&file, Some(self.uid), Some(self.gid))?;
            file.set_permissions(Permissions::from_mode(self.mode))?;
            Ok(file)
        });
        made.map_err(|e| self.not_here(format!("no new one can be made ({e})"), "let cr write in that directory"))
    }

    fn not_here(&self, why: String, todo: &str) -> Error {
        not_here(format!("the FIFO {}", self.path), why, todo)
    }
}
