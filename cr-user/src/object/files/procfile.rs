//! Files and directories of `/proc`: of the system as a whole, or of a process of the job. The latter are opened when the
//! process exists again. Reading goes on at the same byte, of what the kernel then has to say.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::survey::Seen;
use super::{FilePath, Holder, No, not_here, open_again, seek};
use crate::error::Result;
use crate::procfs;

/// `PROC_SUPER_MAGIC` of `linux/magic.h`.
pub(super) const PROC: i64 = 0x9fa0;

/// A file or directory of `/proc`.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ProcFile {
    /// Its path.
    pub path: FilePath,
    /// The process of the job that it belongs to; none for the system as a whole.
    pub pid: Option<i32>,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// Offset in bytes.
    pub position: i64,
}

/// The record, where it can be had again.
pub(super) fn describe(holders: &[Holder<'_>], seen: &Seen) -> std::result::Result<ProcFile, No> {
    const CLOSE: &str = "have the job close it before the checkpoint";
    let link = seen.link.display();
    let there = fs::metadata(&seen.link);
    if !there.is_ok_and(|t| (t.dev(), t.ino()) == (seen.meta.dev(), seen.meta.ino())) {
        return Err(No::new(format!("is a file of /proc that is not at {link} any more"), CLOSE));
    }
    if seen.writable() {
        return Err(No::new(format!("is a file of /proc that is open for writing ({link})"), CLOSE));
    }
    let (pid, rest) = owner(&seen.link);
    if let Some(pid) = pid {
        if !holders.iter().any(|h| h.pid == pid || h.sharers.contains(&pid)) {
            let why =
                format!("is a file of /proc that belongs to {}, which is not of the job ({link})", procfs::who(pid));
            return Err(No::new(why, CLOSE));
        }
        // What these hold depends on threads and descriptors that are not there yet when they are opened.
        let rest = rest.strip_prefix(&format!("task/{pid}/")).unwrap_or(rest);
        let first = rest.split('/').next().unwrap_or_default();
        if matches!(first, "task" | "fd" | "fdinfo" | "map_files") && rest != first {
            return Err(No::new(format!("is a file of /proc of a single thread or descriptor ({link})"), CLOSE));
        }
    }
    Ok(ProcFile { path: FilePath::from(&*seen.link), pid, flags: seen.flags, position: seen.position })
}

/// The process in `/proc/812/status`, and what comes after it.
fn owner(path: &Path) -> (Option<i32>, &str) {
    let text = std::str::from_utf8(path.as_os_str().as_bytes()).unwrap_or_default();
    let inside = text.strip_prefix("/proc/").unwrap_or_default();
    let (first, rest) = inside.split_once('/').unwrap_or((inside, ""));
    (first.parse().ok(), rest)
}

impl ProcFile {
    /// Whether it is opened when its process exists.
    pub(super) fn is_late(&self) -> bool {
        self.pid.is_some()
    }

    /// Whether it can be opened, where that can be said.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_late() { Ok(()) } else { self.open().map(drop) }
    }

    /// Opens it, at its offset. Its process must exist.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let file = open_again(self.path.as_path(), self.flags).map_err(|e| {
            let why = format!("it cannot be opened ({e})");
            not_here(self.path.to_string(), why, "restore on a kernel that has this file, with /proc mounted")
        })?;
        if self.position != 0 {
            seek(&file, self.position, &self.path)?;
        }
        Ok(file.into())
    }
}
