//! Locks on files. `flock` and open-file-description locks belong to the description and are put on by us; POSIX locks and leases
//! belong to a process, which puts them on itself. None is waited for: who holds it now is named instead.
//!
//! `fdinfo` shows each lock with the description through which it was taken.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;

use super::survey::Seen;
use super::{Files, No, not_here};
use crate::error::{Error, Result};
use crate::procfs;
use crate::remote::Call;
use crate::sys::fd;

/// One lock.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// How it was taken.
    pub kind: LockKind,
    /// Nobody else may have one (a write lock), rather than no writer (a read lock).
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Bytes; 0 up to the end of the file, wherever that is.
    pub len: u64,
    /// Index of the description.
    pub description: u32,
    /// The process that takes it again and the number through which it does. Of a POSIX lock it is the one that took it: that
    /// is who `F_GETLK` names, of all that share a table.
    pub holder: (i32, i32),
}

/// How a lock was taken.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// `flock(2)`.
    Flock,
    /// `F_SETLK`: the process's own.
    Posix,
    /// `F_OFD_SETLK`.
    Description,
    /// `F_SETLEASE`.
    Lease,
}

/// The locks that `fdinfo` shows at a descriptor of a table that the processes `sharers` have. Lines are like `1: POSIX  ADVISORY  WRITE 812 fe:00:1234 0 EOF`.
pub(super) fn describe(seen: &Seen, sharers: &[i32], description: u32) -> std::result::Result<Vec<Lock>, No> {
    seen.locks.iter().map(|line| parse(seen, line, sharers, description)).collect()
}

fn parse(seen: &Seen, line: &str, sharers: &[i32], description: u32) -> std::result::Result<Lock, No> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let strange = || {
        let why = format!("holds a lock on {} that cr does not know ({line})", seen.link.display());
        No::new(why, "have the job release it before the checkpoint")
    };
    let [_, kind, state, access, taker, _, start, end] = words[..] else { return Err(strange()) };
    let kind = match (kind, state) {
        ("FLOCK", _) => LockKind::Flock,
        ("POSIX", _) => LockKind::Posix,
        ("OFDLCK", _) => LockKind::Description,
        ("LEASE", "ACTIVE") => LockKind::Lease,
        ("LEASE", _) => {
            let why = format!("holds a lease on {} that somebody else is breaking", seen.link.display());
            return Err(No::new(why, "have the job give it up, or try again"));
        }
        _ => return Err(strange()),
    };
    let start = start.parse::<u64>().map_err(|_| strange())?;
    let len = if end == "EOF" { 0 } else { end.parse::<u64>().map_err(|_| strange())? - start + 1 };
    let taker = taker.parse().ok().filter(|t| kind == LockKind::Posix && sharers.contains(t));
    let pid = taker.unwrap_or(seen.pid);
    Ok(Lock { kind, exclusive: access == "WRITE", start, len, description, holder: (pid, seen.fd) })
}

impl Lock {
    /// Whether it is the same lock, seen at another number.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let process = |l: &Self| if matches!(l.kind, LockKind::Posix) { l.holder.0 } else { 0 };
        (self.kind, self.exclusive, self.start, self.len, self.description, process(self))
            == (other.kind, other.exclusive, other.start, other.len, other.description, process(other))
    }

    /// Puts it on a description of ours, if it belongs to the description.
    ///
    /// # Errors
    /// [`Error::NotHere`] that names who holds it now.
    pub(super) fn take(&self, files: &Files, ours: BorrowedFd<'_>) -> Result<()> {
        let taken = match self.kind {
            LockKind::Flock => fd::flock(ours, self.exclusive),
            LockKind::Description => fd::lock_range(ours, self.exclusive, self.start, self.len),
            LockKind::Posix | LockKind::Lease => return Ok(()),
        };
        taken.map_err(|e| self.failed(files, e))
    }

    /// The call by which a process puts it on itself, and the bytes that it reads at `at`; none if that is not its matter.
    pub(super) fn own_call(&self, at: u64) -> Option<(Call, Vec<u8>)> {
        let fd = self.holder.1 as u64;
        let kind = if self.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        match self.kind {
            LockKind::Posix => {
                // `struct flock` of `asm-generic/fcntl.h`.
                let mut bytes = vec![0; 32];
                bytes[..2].copy_from_slice(&(kind as i16).to_le_bytes());
                bytes[8..16].copy_from_slice(&self.start.to_le_bytes());
                bytes[16..24].copy_from_slice(&self.len.to_le_bytes());
                Some((Call::new(libc::SYS_fcntl, &[fd, libc::F_SETLK as u64, at]), bytes))
            }
            LockKind::Lease => {
                Some((Call::new(libc::SYS_fcntl, &[fd, libc::F_SETLEASE as u64, kind as u64]), Vec::new()))
            }
            LockKind::Flock | LockKind::Description => None,
        }
    }

    /// Says why it could not be taken.
    pub(super) fn failed(&self, files: &Files, e: Errno) -> Error {
        let path = files.descriptions.get(self.description as usize).and_then(|d| d.path());
        let name = path.map_or("a file".into(), |p| p.display().to_string());
        if e != Errno::EAGAIN && e != Errno::EACCES {
            return Error::system(format!("locking {name}"), e);
        }
        let holder = path.and_then(|p| holder_of(p).ok().flatten());
        let why = match holder {
            Some(pid) => format!("{} holds the lock that the job had", procfs::who(pid)),
            None => "somebody else holds the lock that the job had".to_owned(),
        };
        not_here(format!("the file {name}"), why, "end that process, or have it release the lock")
    }
}

/// Who holds a lock on a file: `/proc/locks` names processes, but none for locks of open file descriptions, which are looked for
/// where they are open.
fn holder_of(path: &Path) -> io::Result<Option<i32>> {
    let meta = fs::metadata(path)?;
    let place = format!("{:02x}:{:02x}:{}", libc::major(meta.dev()), libc::minor(meta.dev()), meta.ino());
    let text = fs::read_to_string("/proc/locks")?;
    let mut lines = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|w| w.contains(&place.as_str()) && !w.contains(&"->"));
    let named = line.and_then(|words| words.get(4)?.parse().ok()).filter(|pid| *pid > 0);
    let holds_one = |pid: &i32| {
        let mut fds = procfs::descriptors(*pid).unwrap_or_default().into_iter();
        let is_it = |m: fs::Metadata| (m.dev(), m.ino()) == (meta.dev(), meta.ino());
        fds.any(|fd| {
            fs::metadata(procfs::fd_path(*pid, fd)).is_ok_and(is_it)
                && procfs::fdinfo(*pid, fd).is_ok_and(|i| !i.locks.is_empty())
        })
    };
    let own = std::process::id() as i32;
    Ok(named.or_else(|| procfs::processes().filter(|pid| *pid != own).find(holds_one)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo_are_understood() {
        let meta = fs::metadata("/").unwrap();
        let seen = |line: &str| Seen { locks: vec![line.to_owned()], ..Seen::for_test(9, 4, meta.clone()) };
        let lock = |line: &str| describe(&seen(line), &[9, 812], 2).map(|l| l[0]).map_err(|no| no.why);
        let found = lock("1: POSIX  ADVISORY  WRITE 812 fe:00:1234 100 199").unwrap();
        assert_eq!((found.kind, found.exclusive, found.start, found.len), (LockKind::Posix, true, 100, 100));
        assert_eq!(found.holder, (812, 4));
        assert_eq!(lock("1: POSIX  ADVISORY  WRITE 813 fe:00:1234 0 0").unwrap().holder, (9, 4));
        let found = lock("1: FLOCK  ADVISORY  READ 812 fe:00:1234 0 EOF").unwrap();
        assert_eq!((found.kind, found.exclusive, found.start, found.len), (LockKind::Flock, false, 0, 0));
        assert_eq!(found.holder, (9, 4));
        assert!(lock("1: LEASE  BREAKING  READ 812 fe:00:1234 0 EOF").unwrap_err().contains("breaking"));
        assert!(lock("1: NEWLCK ADVISORY  READ 812 fe:00:1234 0 EOF").unwrap_err().contains("does not know"));
    }
}
