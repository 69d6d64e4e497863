//! Files that grew after the checkpoint: cut back to what the job knew of them, and the tails kept.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::FilePath;
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};

/// Bytes of a tail that are in memory at one time.
const COPIED_AT_ONCE: usize = 1 << 20;

/// What to do with a file that the job had open for writing and that grew after the checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilePolicy {
    /// Cut it back to its size at the checkpoint, and keep what is cut off.
    #[default]
    Rollback,
    /// Leave it as it is.
    Keep,
    /// Restore nothing.
    Refuse,
}

/// What a restore will do to files, and what it cannot undo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RollbackPlan {
    /// Files to be cut back, each once.
    pub grew: Vec<Growth>,
    /// Files that have the size of the checkpoint but were modified since: nothing is done to them, the user should know.
    pub modified: Vec<PathBuf>,
}

impl RollbackPlan {
    /// Whether no file is cut back.
    pub fn is_empty(&self) -> bool {
        self.grew.is_empty()
    }
}

/// A file that grew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The file.
    pub path: PathBuf,
    /// Bytes at the checkpoint.
    pub from: u64,
    /// Bytes now.
    pub to: u64,
}

/// A tail that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file that was cut back.
    pub path: PathBuf,
    /// Bytes cut off.
    pub bytes: u64,
    /// Where they are now.
    pub kept_at: PathBuf,
}

impl Growth {
    pub(super) fn new(path: &FilePath, from: u64, to: u64) -> Self {
        Self { path: path.as_path().to_owned(), from, to }
    }
}

impl RollbackPlan {
    pub(super) fn grown(&mut self, growth: Growth) {
        if !self.grew.iter().any(|g| g.path == growth.path) {
            self.grew.push(growth);
        }
    }

    pub(super) fn modified(&mut self, path: &FilePath) {
        if !self.modified.iter().any(|p| p == path.as_path()) {
            self.modified.push(path.as_path().to_owned());
        }
    }
}

/// Cuts grown files back. Their tails are first copied to files `<checkpoint>-<n>-<name>` (0600) under `cut_dir`, which is
/// made (0700) if need be, and every tail is durable, with its name, before the first file is cut.
///
/// # Errors
/// When a tail cannot be kept, in which case no file was changed, or a file cannot be cut.
pub fn roll_back(disk: &Disk, plan: &RollbackPlan, cut_dir: &Path, checkpoint: u64) -> Result<Vec<Cut>> {
    if plan.grew.is_empty() {
        return Ok(Vec::new());
    }
    make_dir(disk, cut_dir).map_err(|e| failed("making", cut_dir, e))?;
    let mut cuts = Vec::new();
    let mut files = Vec::new();
    for growth in &plan.grew {
        let file = disk.open_existing(&growth.path).map_err(|e| failed("opening", &growth.path, e))?;
        let keep = || -> io::Result<(PathBuf, u64)> {
            let (kept_at, tail) = new_file(disk, cut_dir, checkpoint, &growth.path)?;
            let copied = copy_from(file.file(), growth.from, &tail).and_then(|bytes| tail.sync_data().map(|()| bytes));
            if copied.is_err() {
                // Half a tail helps nobody, and the whole one is still in its file.
                let _ = disk.remove(&kept_at);
            }
            Ok((kept_at, copied?))
        };
        let (kept_at, bytes) = keep().map_err(|e| failed("keeping the end of", &growth.path, e))?;
        cuts.push(Cut { path: growth.path.clone(), bytes, kept_at });
        files.push(file);
    }
    // The names of the tails, and that of their directory, which an earlier restore may have made and not lived to sync.
    for dir in [cut_dir, cut_dir.parent().unwrap_or(cut_dir)] {
        disk.sync_dir(dir).map_err(|e| failed("syncing", dir, e))?;
    }
    for (file, growth) in files.iter().zip(&plan.grew) {
        file.set_len(growth.from).map_err(|e| failed("cutting back", &growth.path, e))?;
    }
    Ok(cuts)
}

fn make_dir(disk: &Disk, dir: &Path) -> io::Result<()> {
    match disk.create_dir(dir, 0o700) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A name that an earlier restore did not take.
fn new_file(disk: &Disk, dir: &Path, checkpoint: u64, of: &Path) -> io::Result<(PathBuf, DiskFile)> {
    let base = of.file_name().unwrap_or_default();
    let mut n = 1u32;
    loop {
        let mut name = std::ffi::OsString::from(format!("{checkpoint}-{n}-"));
        name.push(base);
        let path = dir.join(name);
        match disk.create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
            Err(e) => return Err(e),
        }
    }
}

/// Copies from `start` to the end, and says how many bytes that was.
fn copy_from(file: &File, start: u64, to: &DiskFile) -> io::Result<u64> {
    let mut buffer = vec![0; COPIED_AT_ONCE];
    let mut copied = 0;
    loop {
        match file.read_at(&mut buffer, start + copied) {
            Ok(0) => return Ok(copied),
            Ok(read) => {
                to.write_all_at(&buffer[..read], copied)?;
                copied += read as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
            Err(e) => return Err(e),
        }
    }
}

fn failed(doing: &str, path: &Path, e: io::Error) -> Error {
    Error::system(format!("{doing} {}", path.display()), e)
}
