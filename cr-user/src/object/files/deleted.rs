//! Files without a name: unlinked while open, or made with `O_TMPFILE`. Their bytes go into the image, and a restore makes
//! an unnamed file in the same directory, or the nearest one above it that exists.

use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::survey::Seen;
use super::{ContentSource, FilePath, No, lost, not_here, open_again, own_link, seek_if_open};
use crate::error::{Error, Result};
use crate::procfs;

/// `NFS_SUPER_MAGIC` of `linux/magic.h`.
const NFS: i64 = 0x6969;
/// `O_TMPFILE` without the `O_DIRECTORY` in it (`asm-generic/fcntl.h`).
const TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// A file without a name.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The content space that its bytes are in; descriptions of one file have one space.
    pub space: u64,
    /// Where it was.
    pub path: FilePath,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// Offset in bytes.
    pub position: i64,
    /// Its size in bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds of its last modification.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Whether it still had another name, which was not found: what has that name is another file after a restore.
    pub has_links: bool,
}

/// Whether nobody will find the file under a name once the job is gone.
pub(super) fn is_nameless(seen: &Seen) -> bool {
    // An NFS client keeps an unlinked open file under a name of its own until it is closed.
    let silly = || seen.link.file_name().is_some_and(|n| n.as_bytes().starts_with(b".nfs"));
    seen.meta.nlink() == 0 || (seen.filesystem == NFS && silly())
}

/// The record, and where its bytes are read.
pub(super) fn describe(seen: &Seen, space: u64) -> std::result::Result<(Deleted, ContentSource), No> {
    if procfs::has_write_lease(seen.meta.dev(), seen.meta.ino()) {
        let why =
            format!("holds a write lease on the deleted file {}, which reading it would break", seen.link.display());
        return Err(No::new(why, "have the job give the lease up"));
    }
    let file = File::open(procfs::fd_path(seen.pid, seen.fd)).map_err(|e| {
        let why = format!("is open on {}, which cannot be read ({e})", seen.link.display());
        No::new(why, "run cr as root")
    })?;
    let link = seen.link.as_os_str().as_bytes();
    let meta = &seen.meta;
    let record = Deleted {
        space,
        path: FilePath(link.strip_suffix(b" (deleted)").unwrap_or(link).to_owned()),
        flags: seen.flags,
        position: seen.position,
        size: meta.size(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: meta.mtime(),
        mtime_ns: meta.mtime_nsec() as u32,
        has_links: meta.nlink() > 0 && !is_nameless(seen),
    };
    Ok((record, ContentSource { space, file, len: meta.size() }))
}

impl Deleted {
    /// Whether this is the description that made the file, by `O_TMPFILE`: `F_GETFL` shows it, and of no other.
    pub(super) fn is_creator(&self) -> bool {
        self.flags & TMPFILE != 0
    }

    /// Makes the file, of its size and full of zeroes.
    pub(super) fn make(&self) -> Result<Made> {
        if self.has_links {
            let told = "had another name at the checkpoint, which cr did not find; the job gets a copy of its own";
            log::warn!("the deleted file {} {told}", self.path);
        }
        let made = lost::nearest(self.path.as_path()).and_then(|dir| {
            let dir = PathBuf::from(own_link(dir.as_raw_fd()));
            if self.is_creator() { temporary(&dir, self.flags) } else { unlinked(&dir) }
        });
        let sized = made.and_then(|made| made.file.set_len(self.size).map(|()| made));
        sized.map_err(|e| {
            let what = format!("the deleted file {}", self.path);
            let why = format!("no file of {} bytes can be made where it was ({e})", self.size);
            not_here(what, why, "make room in that directory, and let cr write there")
        })
    }

    /// Opens the file made, with this record's flags, at its offset.
    pub(super) fn open(&self, made: &File, creator: Option<File>) -> Result<OwnedFd> {
        let file = match creator {
            Some(creator) => creator,
            None => open_again(own_link(made.as_raw_fd()).as_ref(), self.flags & !libc::O_DIRECTORY)
                .map_err(|e| Error::system(format!("opening the deleted file {} again", self.path), e))?,
        };
        seek_if_open(&file, self.flags, self.position, &self.path)?;
        Ok(file.into())
    }

    /// Gives the file its owner, permissions and time, once its bytes are there.
    pub(super) fn finish(&self, made: &File) -> Result<()> {
        let failed = |e: io::Error| Error::system(format!("setting the owner of the deleted file {}", self.path), e);
        let now = made.metadata().map_err(failed)?;
        if (now.uid(), now.gid()) != (self.uid, self.gid) {
            std::os::unix::fs::fchown(made, Some(self.uid), Some(self.gid)).map_err(failed)?;
        }
        made.set_permissions(Permissions::from_mode(self.mode)).map_err(failed)?;
        let time = SystemTime::UNIX_EPOCH + Duration::new(self.mtime.max(0) as u64, self.mtime_ns);
        made.set_times(FileTimes::new().set_modified(time)).map_err(failed)
    }
}

/// A file made.
pub(super) struct Made {
    /// It, open for reading and writing.
    pub(super) file: File,
    /// The description that made it, by `O_TMPFILE`.
    pub(super) creator: Option<File>,
}

fn temporary(dir: &Path, flags: i32) -> io::Result<Made> {
    let flags = OFlag::from_bits_retain(flags & !libc::O_NOFOLLOW) | OFlag::O_CLOEXEC;
    match open(dir, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(fd) => {
            let file = open_again(own_link(fd.as_raw_fd()).as_ref(), libc::O_RDWR)?;
            Ok(Made { file, creator: Some(fd.into()) })
        }
        // Not every file system knows O_TMPFILE.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR) => unlinked(dir),
        Err(e) => Err(e.into()),
    }
}

fn unlinked(dir: &Path) -> io::Result<Made> {
    let mut n = 0u32;
    loop {
        let path = dir.join(format!(".cr-{}-{n}", std::process::id()));
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(Made { file: lost::gone(file)?, creator: None });
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
            Err(e) => return Err(e),
        }
    }
}
