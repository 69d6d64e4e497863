//! Another name of a file whose name was removed: a hard link that is near.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Directory entries that are looked at before the search is given up: some tens of milliseconds.
const MOST: usize = 20_000;

/// A name of the file with device `dev` and inode `ino`, in the directory of `path` and those below it, or else in the directory
/// above that and those below it.
pub(super) fn other_name(path: &Path, dev: u64, ino: u64) -> Option<PathBuf> {
    let mut left = MOST;
    path.ancestors().skip(1).take(2).filter(|p| p.is_absolute()).find_map(|dir| below(dir, dev, ino, &mut left))
}

fn below(dir: &Path, dev: u64, ino: u64, left: &mut usize) -> Option<PathBuf> {
    let mut dirs = VecDeque::from([dir.to_owned()]);
    while let Some(dir) = dirs.pop_front() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            *left = left.checked_sub(1)?;
            if entry.ino() == ino && leads_to(&entry.path(), dev, ino) {
                return Some(entry.path());
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push_back(entry.path());
            }
        }
    }
    None
}

/// Whether a path leads to the file.
pub(super) fn leads_to(path: &Path, dev: u64, ino: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (dev, ino))
}
