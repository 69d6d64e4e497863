//! Directories that were removed while they are open, or somebody's working directory. They are empty: a restore makes a new
//! one at the same place, or in the nearest directory above that exists, opens it, and removes it again.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{FilePath, not_here, open_again, own_link};
use crate::error::{Error, Result};
use crate::sys::fd;

/// A directory that was removed.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct LostDirectory {
    /// Where it was.
    pub path: FilePath,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device on the machine of the checkpoint.
    pub dev: u64,
    /// Inode on the machine of the checkpoint.
    pub ino: u64,
}

/// Whether it is a directory that was removed.
pub(super) fn is_lost(meta: &Metadata) -> bool {
    meta.is_dir() && meta.nlink() == 0
}

/// The index in `known` of the directory that `link` (a link in `/proc`) leads to; it is added if need be.
pub(super) fn index_in(known: &mut Vec<LostDirectory>, link: &Path, meta: &Metadata) -> u32 {
    let at = known.iter().position(|d| (d.dev, d.ino) == (meta.dev(), meta.ino()));
    at.unwrap_or_else(|| {
        let path = link.as_os_str().as_bytes();
        known.push(LostDirectory {
            path: FilePath(path.strip_suffix(b" (deleted)").unwrap_or(path).to_owned()),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            dev: meta.dev(),
            ino: meta.ino(),
        });
        known.len() - 1
    }) as u32
}

impl LostDirectory {
    /// Makes one like it, and removes it.
    pub(super) fn make(&self) -> Result<File> {
        let make = |path: &Path| -> io::Result<File> {
            fs::create_dir(path)?;
            let file = open_again(path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW);
            fs::remove_dir(path)?;
            gone(file?)
        };
        let made = under_free_name(self.path.as_path(), make).and_then(|file| {
            std::os::unix::fs::fchown(&file, Some(self.uid), Some(self.gid))?;
            file.set_permissions(Permissions::from_mode(self.mode))?;
            Ok(file)
        });
        made.map_err(|e| self.not_here(&e))
    }

    /// Opens the one made, with these flags.
    pub(super) fn open(&self, made: &File, flags: i32) -> Result<OwnedFd> {
        let file = open_again(own_link(made.as_raw_fd()).as_ref(), flags | libc::O_DIRECTORY);
        file.map(Into::into).map_err(|e| self.not_here(&e))
    }

    fn not_here(&self, e: &io::Error) -> Error {
        let what = format!("the directory {}, which the job had removed", self.path);
        not_here(what, format!("no new one can be made ({e})"), "let cr write in the directory that it was in")
    }
}

/// Has `make` make something at `path` if nothing is there, or else under a new name in the nearest directory above that exists.
///
/// It is given a path by way of a descriptor for the directory. Others may write to that: were it found by its path each time, they
/// could have what is made elsewhere, or something else removed, by putting a symbolic link in its place.
pub(super) fn under_free_name<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let taken = |e: &io::Error| e.kind() == io::ErrorKind::AlreadyExists;
    let within = |directory: &File, name: &OsStr| make(&Path::new(&own_link(directory.as_raw_fd())).join(name));
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        && let Ok(directory) = hold(parent)
    {
        match within(&directory, name) {
            Err(e) if taken(&e) || matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
            done => return done,
        }
    }
    let directory = nearest(path)?;
    let mut n = 0u32;
    loop {
        match within(&directory, format!(".cr-{}-{n}", std::process::id()).as_ref()) {
            Err(e) if taken(&e) => n += 1,
            done => return done,
        }
    }
}

/// The nearest directory above `path` that exists and to which no symbolic link leads.
pub(super) fn nearest(path: &Path) -> io::Result<File> {
    let parents = path.ancestors().skip(1).filter(|parent| parent.is_absolute());
    parents.map(hold).find_map(io::Result::ok).map_or_else(|| hold(Path::new("/")), Ok)
}

fn hold(directory: &Path) -> io::Result<File> {
    fd::open_without_links(directory, libc::O_PATH | libc::O_DIRECTORY)
}

/// What was made and has no name any more. If it has one, somebody has put something else in its place before it was opened.
pub(super) fn gone(file: File) -> io::Result<File> {
    let meta = file.metadata()?;
    if meta.nlink() == 0 { Ok(file) } else { Err(io::Error::other("somebody has put something else in its place")) }
}
