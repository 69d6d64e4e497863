//! What `cr` changes on a disk to keep checkpoints, each change by one function here.
//!
//! So a test can see every change with its bytes, make any of them fail, and work out what a power loss after it may leave
//! ([`Witness`]; `tests/image/crash` does that). Without a witness each function is the system call that it is named for.
//!
//! What it does *not* do: it does not read, and it knows nothing of stores.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::sys::{fd, reflink};

/// One change to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// A directory is made.
    CreateDir(&'a Path),
    /// A directory's mode is set.
    SetMode(&'a Path),
    /// A file is made if it is not there.
    Create(&'a Path),
    /// Bytes go to an offset of a file.
    Write {
        /// The file, by the name that it was opened with.
        path: &'a Path,
        /// Where in the file.
        offset: u64,
        /// What is written.
        bytes: &'a [u8],
    },
    /// A file is cut, or extended with zeroes.
    SetLen {
        /// The file, by the name that it was opened with.
        path: &'a Path,
        /// Its new size.
        len: u64,
    },
    /// A file's bytes are made durable, not its name.
    SyncData(&'a Path),
    /// A file gets another name, in place of a file that has it.
    Rename {
        /// The old name.
        from: &'a Path,
        /// The new name.
        to: &'a Path,
    },
    /// A name is taken from a file.
    Remove(&'a Path),
    /// The names in a directory are made durable.
    SyncDir(&'a Path),
}

/// What becomes of an operation.
#[derive(Debug)]
pub enum Verdict {
    /// It is carried out.
    Proceed,
    /// It is not carried out, and fails with this.
    Fail(io::Error),
    /// Only the first bytes of a write are written, which is no error; anything else is carried out.
    Short(usize),
}

/// Somebody who sees every change, and decides what becomes of it.
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// Asked before the operation.
    fn judge(&self, operation: &Operation<'_>) -> Verdict;

    /// Told after it was carried out. A write has only those bytes by now that were written.
    fn done(&self, operation: &Operation<'_>);
}

/// The way to the disk, with a witness or without.
#[derive(Debug, Clone, Default)]
pub struct Disk(Option<Arc<dyn Witness>>);

impl Disk {
    /// The disk as seen by a witness.
    pub fn watched(witness: Arc<dyn Witness>) -> Self {
        Self(Some(witness))
    }

    /// Makes a directory.
    pub(crate) fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.change(&Operation::CreateDir(path), || DirBuilder::new().mode(mode).create(path))
    }

    /// Sets the mode of a directory.
    pub(crate) fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.change(&Operation::SetMode(path), || fs::set_permissions(path, Permissions::from_mode(mode)))
    }

    /// Opens a file for reading and writing, mode 0600, and makes it if it is not there.
    pub(crate) fn create(&self, path: &Path) -> io::Result<DiskFile> {
        self.open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600))
    }

    /// Makes a file, mode 0600, which must not be there yet, and opens it for reading and writing.
    pub(crate) fn create_new(&self, path: &Path) -> io::Result<DiskFile> {
        self.open(path, OpenOptions::new().read(true).write(true).create_new(true).mode(0o600))
    }

    /// Opens a file that is there, for reading and writing, by a path without symbolic links.
    pub(crate) fn open_existing(&self, path: &Path) -> io::Result<DiskFile> {
        let file = fd::open_without_links(path, libc::O_RDWR)?;
        Ok(DiskFile { file, path: path.into(), disk: self.clone() })
    }

    fn open(&self, path: &Path, options: &OpenOptions) -> io::Result<DiskFile> {
        let file = self.change(&Operation::Create(path), || options.open(path))?;
        Ok(DiskFile { file, path: path.into(), disk: self.clone() })
    }

    /// Gives a file another name, in place of a file that has it.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(&Operation::Rename { from, to }, || fs::rename(from, to))
    }

    /// Removes a file.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(&Operation::Remove(path), || fs::remove_file(path))
    }

    /// Makes the names in a directory durable.
    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let synced = self.change(&Operation::SyncDir(dir), || File::open(dir).and_then(|dir| dir.sync_all()));
        // Some network and FUSE file systems have no such operation and need none.
        synced.or_else(|error| if error.kind() == ErrorKind::InvalidInput { Ok(()) } else { Err(error) })
    }

    /// Makes everything on the file system of a directory durable.
    pub(crate) fn sync_all_around(&self, dir: &Path) -> io::Result<()> {
        self.change(&Operation::SyncDir(dir), || Ok(nix::unistd::syncfs(File::open(dir)?)?))
    }

    fn change<T>(&self, operation: &Operation<'_>, carry_out: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(witness) = &self.0 else { return carry_out() };
        if let Verdict::Fail(error) = witness.judge(operation) {
            return Err(error);
        }
        let outcome = carry_out()?;
        witness.done(operation);
        Ok(outcome)
    }
}

/// An open file to which all writes go by way of the [`Disk`].
#[derive(Debug)]
pub(crate) struct DiskFile {
    file: File,
    path: Box<Path>,
    disk: Disk,
}

impl DiskFile {
    /// The file itself, for what does not change it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The same file by another descriptor, whose writes go past the page cache; none where that is not to be had.
    pub(crate) fn direct(&self) -> Option<Self> {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&self.path).ok()?;
        Some(Self { file, path: self.path.clone(), disk: self.disk.clone() })
    }

    /// Writes some of the bytes at an offset, and says how many.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let Some(witness) = &self.disk.0 else { return self.file.write_at(bytes, offset) };
        let operation = |bytes| Operation::Write { path: &self.path, offset, bytes };
        let bytes = match witness.judge(&operation(bytes)) {
            Verdict::Proceed => bytes,
            Verdict::Fail(error) => return Err(error),
            Verdict::Short(len) => &bytes[..len.min(bytes.len())],
        };
        let written = self.file.write_at(bytes, offset)?;
        witness.done(&operation(&bytes[..written]));
        Ok(written)
    }

    /// Writes all of the bytes at an offset.
    pub(crate) fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Has the file share a range of another one's blocks. A witness, who is to see bytes, makes it a disk that cannot do that.
    pub(crate) fn share_range(&self, from: &File, from_offset: u64, len: u64, offset: u64) -> io::Result<()> {
        if self.disk.0.is_some() {
            return Err(ErrorKind::Unsupported.into());
        }
        Ok(reflink::share_range(from.as_fd(), from_offset, len, self.file.as_fd(), offset)?)
    }

    /// Cuts the file, or extends it with zeroes.
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change(&Operation::SetLen { path: &self.path, len }, || self.file.set_len(len))
    }

    /// Makes the file's bytes durable, and what is needed to find them.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.disk.change(&Operation::SyncData(&self.path), || self.file.sync_data())
    }
}
