//! Descriptors that only name a file (`O_PATH`): of anything that has a name, opened again by it. Of what has none, only those of
//! deleted files, memory files and removed directories are restored, with these.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::procfile::PROC;
use super::survey::Seen;
use super::{FilePath, No, not_here, open_again, regular};
use crate::error::{Error, Result};

/// A descriptor that names a file.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PathOnly {
    /// Its path.
    pub path: FilePath,
    /// `O_*`.
    pub flags: i32,
    /// The kind of file: `S_IFMT` of its mode.
    pub kind: u32,
    /// Of a device, which.
    pub rdev: u64,
}

/// Whether it is one, of something that is opened by name.
pub(super) fn is_path_only(seen: &Seen) -> bool {
    let named = seen.meta.nlink() > 0 && seen.link.is_absolute() && seen.filesystem != PROC;
    seen.flags & libc::O_PATH != 0 && !seen.meta.is_dir() && named
}

/// The record, unless the path leads elsewhere.
pub(super) fn describe(seen: &Seen) -> std::result::Result<PathOnly, No> {
    let meta = &seen.meta;
    let there = fs::symlink_metadata(&seen.link);
    if !there.is_ok_and(|t| (t.dev(), t.ino()) == (meta.dev(), meta.ino())) {
        let why = format!("is an O_PATH descriptor of a file that is not at {} any more", seen.link.display());
        return Err(No::new(why, "put the file back under this name, or have the job close it"));
    }
    let rdev = if meta.file_type().is_char_device() || meta.file_type().is_block_device() { meta.rdev() } else { 0 };
    Ok(PathOnly { path: FilePath::from(&*seen.link), flags: seen.flags, kind: meta.mode() & libc::S_IFMT, rdev })
}

impl PathOnly {
    /// Whether such a file is there.
    pub(super) fn check(&self) -> Result<()> {
        let now = fs::symlink_metadata(self.path.as_path())
            .map_err(|e| self.not_here(format!("it cannot be found ({e})")))?;
        let is_device = matches!(self.kind, libc::S_IFCHR | libc::S_IFBLK);
        if now.mode() & libc::S_IFMT != self.kind || is_device && now.rdev() != self.rdev {
            let kind = if now.is_symlink() { "a symbolic link" } else { regular::kind_of(now.file_type()) };
            return Err(self.not_here(format!("it is {kind} now, and not what it was")));
        }
        self.open().map(drop)
    }

    /// Names it again.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let file = open_again(self.path.as_path(), self.flags);
        file.map(Into::into).map_err(|e| self.not_here(format!("it cannot be opened ({e})")))
    }

    fn not_here(&self, why: String) -> Error {
        not_here(format!("the file {}", self.path), why, "put it back where it was")
    }
}
