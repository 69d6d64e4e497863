//! What `/proc` shows of the descriptors of the job's processes, gathered by open file description.

use std::cmp::Ordering;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::statfs;

use super::kept::Past;
use super::{Holder, No};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::fd::{compare_descriptions, pidfd_getfd, pidfd_open};
use crate::track::iters::FileRecord;

/// One descriptor, as `/proc` shows it.
#[derive(Debug)]
pub(super) struct Seen {
    /// A process that has it: the first of those that share the table.
    pub(super) pid: i32,
    /// Its number.
    pub(super) fd: i32,
    /// Whether `exec` closes it.
    pub(super) cloexec: bool,
    /// What `/proc/PID/fd/FD` links to.
    pub(super) link: PathBuf,
    /// What that leads to.
    pub(super) meta: Metadata,
    /// The kind of its file system: the magic number of `statfs(2)`.
    pub(super) filesystem: i64,
    /// Access mode and status flags, without `O_CLOEXEC`.
    pub(super) flags: i32,
    /// Offset in bytes.
    pub(super) position: i64,
    /// Locks and leases that were taken through it, as `fdinfo` shows them.
    pub(super) locks: Vec<String>,
}

impl Seen {
    pub(super) fn of(pid: i32, fd: i32) -> io::Result<Self> {
        let path = procfs::fd_path(pid, fd);
        let link = fs::read_link(&path)?;
        let meta = fs::metadata(&path)?;
        let filesystem = statfs::statfs(path.as_str())?.filesystem_type().0;
        let info = procfs::fdinfo(pid, fd)?;
        Ok(Self {
            pid,
            fd,
            cloexec: info.flags & libc::O_CLOEXEC != 0,
            link,
            meta,
            filesystem,
            flags: info.flags & !libc::O_CLOEXEC,
            position: info.position,
            locks: info.locks,
        })
    }

    /// The same description at another place.
    pub(super) fn at(&self, pid: i32, fd: i32, cloexec: bool) -> Self {
        let (link, locks) = (self.link.clone(), self.locks.clone());
        Self { pid, fd, cloexec, link, meta: self.meta.clone(), locks, ..*self }
    }

    /// That is where it is now.
    pub(super) fn is_at(&mut self, pid: i32, fd: i32, cloexec: bool) {
        (self.pid, self.fd, self.cloexec) = (pid, fd, cloexec);
    }

    /// A descriptor that is not there.
    #[cfg(test)]
    pub(super) fn for_test(pid: i32, fd: i32, meta: Metadata) -> Self {
        let (link, locks) = (PathBuf::new(), Vec::new());
        Self { pid, fd, cloexec: false, link, meta, filesystem: 0, flags: 0, position: 0, locks }
    }

    /// What the kernel says of it besides.
    pub(super) fn info(&self) -> std::result::Result<Info, No> {
        let text = procfs::text(&procfs::path(self.pid, &format!("fdinfo/{}", self.fd)));
        text.map(Info).map_err(|e| No::new(format!("cannot be examined ({e})"), "run cr as root or as the job's owner"))
    }

    /// Whether it can be read through.
    pub(super) fn readable(&self) -> bool {
        readable(self.flags)
    }

    /// Whether it can be written through.
    pub(super) fn writable(&self) -> bool {
        writable(self.flags)
    }

    /// Descriptors with different keys are different descriptions.
    fn key(&self) -> (u64, u64, i32, i64) {
        (self.meta.dev(), self.meta.ino(), self.flags, self.position)
    }
}

/// The lines of `/proc/PID/fdinfo/FD`.
#[derive(Debug)]
pub(super) struct Info(String);

impl Info {
    /// What stands behind `key`, which ends in a colon.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.lines().find_map(|l| l.strip_prefix(key)).map(str::trim)
    }

    /// All of them.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.lines()
    }
}

/// Whether open flags allow reading.
pub(super) fn readable(flags: i32) -> bool {
    flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR)
}

/// Whether open flags allow writing.
pub(super) fn writable(flags: i32) -> bool {
    flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
}

/// One open file description, and every descriptor that the job has for it.
#[derive(Debug)]
pub(super) struct Group {
    /// Never empty; by process, in the order of the job, and ascending by number.
    pub(super) members: Vec<Seen>,
    /// As the kernel lists the first of them.
    pub(super) listed: Option<FileRecord>,
    /// It is what it was at the last checkpoint: its place in [`Past`].
    pub(super) known: Option<usize>,
    /// Its record is kept from there.
    pub(super) is_kept: bool,
}

impl Group {
    /// One that nothing is known of but what `/proc` shows.
    pub(super) fn of(seen: Seen) -> Self {
        Self { members: vec![seen], listed: None, known: None, is_kept: false }
    }

    /// Whether the evidence that it comes with is everything for what is meant: one of [`covered`](crate::track::iters::covered).
    pub(super) fn is_covered(&self, what: u32) -> bool {
        self.listed.is_some_and(|listed| listed.covered == what)
    }

    /// The first descriptor: it speaks for all.
    pub(super) fn first(&self) -> &Seen {
        &self.members[0]
    }
}

/// Every open file description of the job, each once, whichever processes have it; in the order of their first descriptors.
/// Descriptors that a running process closes meanwhile are left out, and so are processes that end meanwhile, but for the
/// first. What is known to be as it was is not looked at.
pub(super) fn look(holders: &[Holder<'_>], past: &mut Past) -> Result<Vec<Group>> {
    if let Some(lists) = holders.iter().map(listed).collect::<Option<Vec<_>>>() {
        return past.gather(&lists, |pid, fd| Seen::of(pid, fd).map_err(|e| gone(pid, e)));
    }
    past.clear();
    by_comparing(holders)
}

/// The list of a process's descriptors, if there is one that holds as many as `/proc` counts.
fn listed<'h>(holder: &'h Holder<'_>) -> Option<(i32, &'h [FileRecord])> {
    let list = holder.listed.as_deref()?;
    let count = fs::metadata(format!("/proc/{}/fd", holder.pid)).ok()?.len();
    (count == list.len() as u64).then_some((holder.pid, list))
}

fn by_comparing(holders: &[Holder<'_>]) -> Result<Vec<Group>> {
    let mut all = Vec::new();
    for (nth, holder) in holders.iter().enumerate() {
        match look_at(holder.pid) {
            Ok(seen) => all.extend(seen.into_iter().map(|seen| (nth, seen))),
            Err(e) if nth > 0 && matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(e) => return Err(gone(holder.pid, e)),
        }
    }
    // What is equal by key stands together, so that only few pairs need the kernel's word. The sort is stable: processes and
    // numbers stay in order.
    all.sort_by_key(|(_, seen)| seen.key());
    let mut groups: Vec<(usize, Group)> = Vec::new();
    let mut run = 0;
    for (nth, seen) in all {
        if groups.get(run).is_some_and(|(_, g)| g.first().key() != seen.key()) {
            run = groups.len();
        }
        match find(&groups[run..], &seen)? {
            Ok(at) => groups[run + at].1.members.push(seen),
            Err(at) => groups.insert(run + at, (nth, Group::of(seen))),
        }
    }
    groups.sort_by_key(|(nth, g)| (*nth, g.first().fd));
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// A duplicate of a descriptor of the job, or of one of ours that stands for what only a queue has.
pub(super) fn fetch(holders: &[Holder<'_>], pid: i32, fd: i32) -> nix::Result<OwnedFd> {
    if pid == std::process::id() as i32 {
        return pidfd_getfd(pidfd_open(pid)?.as_fd(), fd);
    }
    let holder = holders.iter().find(|h| h.pid == pid).ok_or(Errno::ESRCH)?;
    pidfd_getfd(holder.pidfd, fd)
}

/// Whether a process is one of the job's, or descends from one: it may have been born a moment ago.
pub(super) fn is_of_job(mut pid: i32, holders: &[Holder<'_>]) -> bool {
    let parent_of = |pid: i32| procfs::stat(pid).ok().and_then(|s| s.get(1)?.parse::<i32>().ok());
    let own = std::process::id() as i32;
    // Where the job is our child, its orphans are too, and nobody else is.
    let adopted = holders.first().is_some_and(|root| parent_of(root.pid) == Some(own));
    loop {
        if holders.iter().any(|h| h.pid == pid || h.sharers.contains(&pid)) {
            return true;
        }
        match parent_of(pid) {
            // It has just ended.
            None => return true,
            Some(parent) if adopted && parent == own => return true,
            Some(parent) if parent <= 1 => return false,
            Some(parent) => pid = parent,
        }
    }
}

fn look_at(pid: i32) -> io::Result<Vec<Seen>> {
    let numbers = procfs::descriptors(pid)?;
    let mut all = Vec::with_capacity(numbers.len());
    for fd in numbers {
        match Seen::of(pid, fd) {
            Ok(seen) => all.push(seen),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Compares the open file descriptions behind two descriptors, each of a process, in the kernel's order.
pub(super) fn compare(one: (i32, i32), other: (i32, i32)) -> nix::Result<Ordering> {
    compare_descriptions(procfs::voice(one.0), one.1, procfs::voice(other.0), other.1)
}

/// Where the description of `seen` is among groups that are in the kernel's order, or belongs.
fn find(groups: &[(usize, Group)], seen: &Seen) -> Result<std::result::Result<usize, usize>> {
    let (mut low, mut high) = (0, groups.len());
    while low < high {
        let middle = low.midpoint(high);
        let known = groups[middle].1.first();
        match compare((known.pid, known.fd), (seen.pid, seen.fd)) {
            Ok(Ordering::Equal) => return Ok(Ok(middle)),
            Ok(Ordering::Less) => low = middle + 1,
            // One of the two was closed meanwhile, or its process ended, which only running ones do.
            Ok(Ordering::Greater) | Err(Errno::EBADF | Errno::ESRCH) => high = middle,
            Err(e) => return Err(Error::system(format!("comparing the descriptors of pid {}", seen.pid), e)),
        }
    }
    Ok(Err(low))
}

fn gone(pid: i32, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::NoSuchJob { pid },
        Some(libc::EACCES | libc::EPERM) => Error::NotAllowed {
            pid,
            why: "its descriptors may not be read".to_owned(),
            todo: "run cr as root or as the job's owner".to_owned(),
        },
        _ => Error::system(format!("reading the descriptors of pid {pid}"), e),
    }
}
