//! The devices that every program may have open, and that keep nothing of it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::survey::Seen;
use super::{not_here, open_again};
use crate::error::{Error, Result};

/// Minor number under major 1, and path (`Documentation/admin-guide/devices.txt`).
const KNOWN: [(u32, &str); 5] =
    [(3, "/dev/null"), (5, "/dev/zero"), (7, "/dev/full"), (8, "/dev/random"), (9, "/dev/urandom")];

/// A device without state.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its minor number; the major number is 1.
    pub minor: u32,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// The record of a device that is known.
pub(super) fn describe(seen: &Seen) -> Option<Device> {
    let rdev = seen.meta.rdev();
    let known = libc::major(rdev) == 1 && path_of(libc::minor(rdev)).is_some();
    known.then(|| Device { minor: libc::minor(rdev), flags: seen.flags })
}

impl Device {
    /// Where it is.
    pub fn path(&self) -> &'static Path {
        Path::new(path_of(self.minor).unwrap_or("/dev/?"))
    }

    /// Whether it is there.
    pub(super) fn check(&self) -> Result<()> {
        let meta = fs::metadata(self.path()).map_err(|e| self.not_here(&e.to_string()))?;
        if !meta.file_type().is_char_device() || meta.rdev() != libc::makedev(1, self.minor) {
            return Err(self.not_here("it is something else here"));
        }
        self.open().map(drop)
    }

    /// Opens it with its flags.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        open_again(self.path(), self.flags).map(Into::into).map_err(|e| self.not_here(&e.to_string()))
    }

    fn not_here(&self, why: &str) -> Error {
        let what = format!("the device {} (1:{})", self.path().display(), self.minor);
        not_here(what, format!("it cannot be opened ({why})"), "restore where /dev has the usual devices")
    }
}

fn path_of(minor: u32) -> Option<&'static str> {
    KNOWN.iter().find(|(m, _)| *m == minor).map(|(_, path)| *path)
}
