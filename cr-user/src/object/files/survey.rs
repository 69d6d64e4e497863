//! What `/proc` shows of a process's descriptors, gathered by open file description.

use std::cmp::Ordering;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::statfs;

use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::fd::compare_descriptions;

/// One descriptor, as `/proc` shows it.
#[derive(Debug)]
pub(super) struct Seen {
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
    /// Whether a lock or lease is held on it.
    pub(super) locked: bool,
}

impl Seen {
    fn of(pid: i32, fd: i32) -> io::Result<Self> {
        let path = format!("/proc/{pid}/fd/{fd}");
        let link = fs::read_link(&path)?;
        let meta = fs::metadata(&path)?;
        let filesystem = statfs::statfs(path.as_str())?.filesystem_type().0;
        let info = procfs::fdinfo(pid, fd)?;
        Ok(Self {
            fd,
            cloexec: info.flags & libc::O_CLOEXEC != 0,
            link,
            meta,
            filesystem,
            flags: info.flags & !libc::O_CLOEXEC,
            position: info.position,
            locked: info.locked,
        })
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

/// Whether open flags allow reading.
pub(super) fn readable(flags: i32) -> bool {
    flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR)
}

/// Whether open flags allow writing.
pub(super) fn writable(flags: i32) -> bool {
    flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
}

/// One open file description, and every descriptor that the process has for it.
#[derive(Debug)]
pub(super) struct Group {
    /// Never empty; ascending by number.
    pub(super) members: Vec<Seen>,
}

impl Group {
    /// The descriptor with the lowest number: it speaks for all.
    pub(super) fn first(&self) -> &Seen {
        &self.members[0]
    }
}

/// Every open file description of the process, ascending by lowest descriptor. Descriptors that a running process closes
/// meanwhile are left out.
pub(super) fn look(pid: i32) -> Result<Vec<Group>> {
    let numbers = procfs::descriptors(pid).map_err(|e| gone(pid, e))?;
    let mut all = Vec::with_capacity(numbers.len());
    for fd in numbers {
        match Seen::of(pid, fd) {
            Ok(seen) => all.push(seen),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(gone(pid, e)),
        }
    }
    // What is equal by key stands together, so that only few pairs need the kernel's word. The sort is stable: numbers
    // stay ascending.
    all.sort_by_key(Seen::key);
    let mut groups: Vec<Group> = Vec::new();
    let mut run = 0;
    for seen in all {
        if groups.get(run).is_some_and(|g| g.first().key() != seen.key()) {
            run = groups.len();
        }
        match find(pid, &groups[run..], seen.fd)? {
            Ok(at) => groups[run + at].members.push(seen),
            Err(at) => groups.insert(run + at, Group { members: vec![seen] }),
        }
    }
    groups.sort_by_key(|g| g.first().fd);
    Ok(groups)
}

/// Where the description of `fd` is among groups that are in the kernel's order, or belongs.
fn find(pid: i32, groups: &[Group], fd: i32) -> Result<std::result::Result<usize, usize>> {
    let (mut low, mut high) = (0, groups.len());
    while low < high {
        let middle = low.midpoint(high);
        match compare_descriptions(pid, groups[middle].first().fd, pid, fd) {
            Ok(Ordering::Equal) => return Ok(Ok(middle)),
            Ok(Ordering::Less) => low = middle + 1,
            // One of the two was closed meanwhile, which only a running process does.
            Ok(Ordering::Greater) | Err(Errno::EBADF) => high = middle,
            Err(e) => return Err(Error::system(format!("comparing the descriptors of pid {pid}"), e)),
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
