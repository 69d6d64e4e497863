//! Where the files of one run of a target are: in memory, a folder for each process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tempfile::TempDir;

/// The folder, which one run uses at a time.
pub struct Scratch(MutexGuard<'static, TempDir>);

impl Scratch {
    /// Waits for the folder, and empties it.
    pub fn take() -> Self {
        static FOLDER: OnceLock<Mutex<TempDir>> = OnceLock::new();
        let make = || {
            let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
            Mutex::new(folder.expect("a folder in memory"))
        };
        let scratch = Self(FOLDER.get_or_init(make).lock().unwrap_or_else(PoisonError::into_inner));
        for entry in fs::read_dir(scratch.path()).expect("the scratch folder can be listed").flatten() {
            fs::remove_file(entry.path()).expect("a file of the scratch folder can be removed");
        }
        scratch
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a new file there.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).expect("a file in memory");
        path
    }
}
