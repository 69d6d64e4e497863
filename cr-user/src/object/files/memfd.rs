//! Memory files (`memfd_create`). Their bytes go into the image. The memory of the process may map the same object: it has
//! the same content space, and a restore makes one object for both.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::survey::Seen;
use super::{ContentSource, FilePath, No, not_here, open_again, own_link, seek_if_open};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::fd::fcntl;

/// `TMPFS_MAGIC` and `HUGETLBFS_MAGIC` of `linux/magic.h`.
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;
/// What `/proc/PID/fd` shows before the name.
const PREFIX: &[u8] = b"/memfd:";
/// Seals that cannot be put on before the job's memory is built: against mappings and descriptors to write with that are still to
/// be made, and against more seals.
const LATE_SEALS: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
/// All that can be put on again.
const KNOWN_SEALS: i32 = LATE_SEALS | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | F_SEAL_EXEC;
/// Since 6.3 (`linux/fcntl.h`): the executable bits of its mode do not change any more.
const F_SEAL_EXEC: i32 = 0x20;

/// A memory file.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Memfd {
    /// The content space that its bytes are in; descriptions of one file have one space.
    pub space: u64,
    /// The name given to `memfd_create`.
    pub name: FilePath,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// Offset in bytes.
    pub position: i64,
    /// Its size in bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// `F_SEAL_*`.
    pub seals: i32,
}

/// Whether the descriptor is of a memory file.
pub(super) fn is_memfd(seen: &Seen) -> bool {
    seen.meta.nlink() == 0
        && matches!(seen.filesystem, TMPFS | HUGETLBFS)
        && seen.link.as_os_str().as_bytes().starts_with(PREFIX)
}

/// The record, and where its bytes are read.
pub(super) fn describe(seen: &Seen, space: u64) -> std::result::Result<(Memfd, ContentSource), No> {
    let link = seen.link.as_os_str().as_bytes();
    let name = link.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(b" (deleted)")).unwrap_or(link);
    let name = FilePath(name.to_owned());
    if seen.filesystem == HUGETLBFS {
        let why = format!("is the memory file \"{name}\" of huge pages");
        return Err(No::new(why, "have the job close it, or make it without MFD_HUGETLB"));
    }
    let file = File::open(procfs::fd_path(seen.pid, seen.fd))
        .map_err(|e| No::new(format!("is the memory file \"{name}\", which cannot be read ({e})"), "run cr as root"))?;
    let seals = fcntl(file.as_fd(), libc::F_GET_SEALS, 0).unwrap_or(0);
    if seals & !KNOWN_SEALS != 0 {
        let why = format!("is the memory file \"{name}\" with a seal that cr does not know (seals {seals:#x})");
        return Err(No::new(why, "have the job close it"));
    }
    let meta = &seen.meta;
    let record = Memfd {
        space,
        name,
        flags: seen.flags,
        position: seen.position,
        size: meta.size(),
        mode: meta.mode() & 0o7777,
        seals,
    };
    Ok((record, ContentSource { space, file, len: meta.size() }))
}

impl Memfd {
    /// Makes the object, of its size and full of zeroes.
    pub(super) fn make(&self) -> Result<File> {
        let failed = |e: std::io::Error| {
            let why = format!("no memory file of {} bytes can be made ({e})", self.size);
            not_here(self.what(), why, "free memory, and allow executable memory files if vm.memfd_noexec forbids them")
        };
        let name = CString::new(&*self.name.0).map_err(|e| failed(e.into()))?;
        // One of the two is always given, so that the machine's default (vm.memfd_noexec) does not decide.
        let executable = if self.seals & F_SEAL_EXEC != 0 { libc::MFD_NOEXEC_SEAL } else { libc::MFD_EXEC };
        let flags = MFdFlags::from_bits_retain(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | executable);
        let file = File::from(memfd_create(name.as_c_str(), flags).map_err(|e| failed(e.into()))?);
        file.set_len(self.size).map_err(failed)?;
        Ok(file)
    }

    /// Opens the object made, with this record's flags, at its offset.
    pub(super) fn open(&self, made: &File) -> Result<OwnedFd> {
        let file = open_again(own_link(made.as_raw_fd()).as_ref(), self.flags)
            .map_err(|e| Error::system(format!("opening {} again", self.what()), e))?;
        seek_if_open(&file, self.flags, self.position, &self.name)?;
        Ok(file.into())
    }

    /// Gives the object its permissions and the seals that can be put on early, once its bytes are there.
    pub(super) fn finish(&self, made: &File) -> Result<()> {
        let now = made.metadata().map_err(|e| self.failed(e))?;
        if now.mode() & 0o7777 != self.mode {
            made.set_permissions(Permissions::from_mode(self.mode)).map_err(|e| self.failed(e))?;
        }
        self.add_seals(made, self.seals & !LATE_SEALS)
    }

    /// Puts the other seals on, once all that is mapped and open of it is there.
    pub(super) fn seal(&self, made: &File) -> Result<()> {
        self.add_seals(made, self.seals)
    }

    fn add_seals(&self, made: &File, seals: i32) -> Result<()> {
        let has = fcntl(made.as_fd(), libc::F_GET_SEALS, 0).map_err(|e| self.failed(e.into()))?;
        let missing = seals & !has;
        if missing != 0 {
            fcntl(made.as_fd(), libc::F_ADD_SEALS, missing.into()).map_err(|e| self.failed(e.into()))?;
        }
        Ok(())
    }

    fn what(&self) -> String {
        format!("the memory file \"{}\"", self.name)
    }

    fn failed(&self, e: std::io::Error) -> Error {
        Error::system(format!("setting permissions and seals of {}", self.what()), e)
    }
}
