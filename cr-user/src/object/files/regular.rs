//! Regular files that have a name: opened again by path, at the same offset. Their bytes are not in the image.
//!
//! What may happen to the file between checkpoint and restore, and what a restore makes of it:
//!
//! | since the checkpoint it … | open for writing | only read |
//! |---|---|---|
//! | vanished, or is no regular file any more | error | error |
//! | shrank | error | error |
//! | grew | [`FilePolicy`]: cut back, kept, or an error | fine: the job would have seen it grow |
//! | has its size, and another modification time | named, not an error | named, not an error |
//!
//! Bytes that were overwritten in place after the checkpoint stay as they are: only growth can be undone. Inode numbers
//! are not compared, since another node may show a copy of the file.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::rollback::{FilePolicy, Growth, RollbackPlan};
use super::survey::{Seen, writable};
use super::{FilePath, links, not_here, open_as_told, seek, why_not};
use crate::error::{Error, Result};

/// A regular file.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Regular {
    /// Its path.
    pub path: FilePath,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// Offset in bytes.
    pub position: i64,
    /// Its size in bytes at the checkpoint.
    pub size: u64,
    /// Seconds of its last modification.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_ns: i64,
    /// Permissions.
    pub mode: u32,
    /// Device on the machine of the checkpoint.
    pub dev: u64,
    /// Inode on the machine of the checkpoint.
    pub ino: u64,
}

/// The record, with a name that leads to the file; none if there is none.
pub(super) fn describe(seen: &Seen) -> Option<Regular> {
    let meta = &seen.meta;
    let place = (meta.dev(), meta.ino());
    let path = if links::leads_to(&seen.link, place.0, place.1) {
        FilePath::from(&*seen.link)
    } else {
        // A file that was renamed shows its new path: so this name was removed, and the file has another.
        FilePath::from(&*links::other_name(&seen.link, place.0, place.1)?)
    };
    Some(Regular {
        path,
        flags: seen.flags,
        position: seen.position,
        size: meta.size(),
        mtime: meta.mtime(),
        mtime_ns: meta.mtime_nsec(),
        mode: meta.mode() & 0o7777,
        dev: meta.dev(),
        ino: meta.ino(),
    })
}

impl Regular {
    /// Compares the file with the record, and opens it once to see whether that will work.
    pub(super) fn check(&self, policy: FilePolicy, plan: &mut RollbackPlan) -> Result<()> {
        let now =
            fs::metadata(self.path.as_path()).map_err(|e| self.not_here(format!("it is gone ({e})"), PUT_BACK))?;
        if !now.is_file() {
            return Err(self.not_here(format!("it is {} now, not a regular file", kind_of(now.file_type())), PUT_BACK));
        }
        if now.size() < self.size {
            let why = format!("it had {} bytes at the checkpoint and has {} now", self.size, now.size());
            return Err(self.not_here(why, "put back a copy that has at least the bytes that it had"));
        }
        if now.size() > self.size && writable(self.flags) {
            match policy {
                FilePolicy::Rollback => plan.grown(Growth::new(&self.path, self.size, now.size())),
                FilePolicy::Keep => {}
                FilePolicy::Refuse => {
                    let why = format!("it grew from {} to {} bytes after the checkpoint", self.size, now.size());
                    return Err(self.not_here(why, "restore with --files rollback (cuts it back) or --files keep"));
                }
            }
        } else if now.size() == self.size && (now.mtime(), now.mtime_nsec()) != (self.mtime, self.mtime_ns) {
            plan.modified(&self.path);
        }
        self.reopen().map(drop)
    }

    /// Opens it with its flags, at its offset.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let file = self.reopen()?;
        seek(&file, self.position, &self.path)?;
        Ok(file.into())
    }

    fn reopen(&self) -> Result<File> {
        open_as_told(&self.path, self.flags).map_err(|e| {
            let todo = "give cr the permissions that the job had, and put the file itself where it was";
            self.not_here(why_not(&e), todo)
        })
    }

    fn not_here(&self, why: String, todo: &str) -> Error {
        not_here(format!("the file {}", self.path), why, todo)
    }
}

const PUT_BACK: &str = "put the file back where it was";

/// The kind of a file in words, with its article.
pub(super) fn kind_of(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a regular file"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a character device"
    }
}
