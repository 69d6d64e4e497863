//! Directories: opened again by path. What was read of one so far is its offset, a number that only its file system
//! understands: it means the same in the same directory, or in a copy on a file system that numbers entries alike.
//!
//! One that was removed is made anew; see [`super::lost`].

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::statfs;

use super::lost::{self, LostDirectory};
use super::survey::Seen;
use super::{FilePath, No, not_here, open_again, seek};
use crate::error::{Error, Result};

/// A directory.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its path.
    pub path: FilePath,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// Where reading goes on.
    pub position: i64,
    /// Kind of its file system: the magic number of `statfs(2)`.
    pub filesystem: i64,
    /// Index in [`Files::lost`](super::Files::lost), if it was removed.
    pub lost: Option<u32>,
}

/// The record, unless the path leads elsewhere. `lost` gets a directory that was removed.
pub(super) fn describe(seen: &Seen, lost: &mut Vec<LostDirectory>) -> std::result::Result<Directory, No> {
    let mut record = Directory {
        path: FilePath::from(&*seen.link),
        flags: seen.flags,
        position: seen.position,
        filesystem: seen.filesystem,
        lost: None,
    };
    if lost::is_lost(&seen.meta) {
        // Nothing is left to be read in it.
        (record.position, record.lost) = (0, Some(lost::index_in(lost, &seen.link, &seen.meta)));
        return Ok(record);
    }
    let there = fs::metadata(&seen.link);
    if !there.is_ok_and(|t| (t.dev(), t.ino()) == (seen.meta.dev(), seen.meta.ino())) {
        let why = format!("is open on a directory that is not at {} any more", seen.link.display());
        return Err(No::new(why, "put the directory back under this name, or have the job close it"));
    }
    Ok(record)
}

impl Directory {
    /// Whether it is there, and can be opened.
    pub(super) fn check(&self) -> Result<()> {
        if self.lost.is_some() {
            return Ok(());
        }
        let file = self.open()?;
        let now = statfs::fstatfs(&file).map_err(|e| self.not_here(format!("it cannot be examined ({e})")))?;
        if self.position != 0 && now.filesystem_type().0 != self.filesystem {
            return Err(
                self.not_here("the job was in the middle of reading it, on another kind of file system".to_owned())
            );
        }
        Ok(())
    }

    /// Opens it with its flags, at its offset.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let file = open_again(self.path.as_path(), self.flags | libc::O_DIRECTORY)
            .map_err(|e| self.not_here(format!("it cannot be opened ({e})")))?;
        if self.position != 0 {
            seek(&file, self.position, &self.path)?;
        }
        Ok(file.into())
    }

    fn not_here(&self, why: String) -> Error {
        not_here(format!("the directory {}", self.path), why, "put the directory back where it was")
    }
}
