//! Namespaces that a process of the job is in: a restore opens that of the restored process.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::survey::Seen;
use super::{Holder, No, open_again};
use crate::error::{Error, Result};
use crate::procfs;

/// `NSFS_MAGIC` of `linux/magic.h`.
pub(super) const NSFS: i64 = 0x6e73_6673;
/// The files of `/proc/PID/ns`.
const NAMES: [&str; 10] =
    ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts", "pid_for_children", "time_for_children"];

/// A namespace.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// A process that is in it.
    pub pid: i32,
    /// Its name in `/proc/PID/ns`.
    pub name: String,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// The record, where a process of the job is in that namespace; best the one that has it open.
pub(super) fn describe(holders: &[Holder<'_>], seen: &Seen) -> std::result::Result<Namespace, No> {
    let this = (seen.meta.dev(), seen.meta.ino());
    let pids = std::iter::once(seen.pid).chain(holders.iter().map(|h| h.pid));
    for pid in pids {
        let is = |name: &&str| fs::metadata(path(pid, name)).is_ok_and(|m| (m.dev(), m.ino()) == this);
        if let Some(name) = NAMES.into_iter().find(is) {
            return Ok(Namespace { pid, name: name.to_owned(), flags: seen.flags });
        }
    }
    let why = format!("is a namespace that no process of the job is in ({})", seen.link.display());
    Err(No::new(why, "have the job close it before the checkpoint"))
}

impl Namespace {
    /// Opens that of the process, which must exist.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let path = path(self.pid, &self.name);
        let failed = |e: std::io::Error| Error::system(format!("opening {path}"), e);
        open_again(Path::new(&path), self.flags).map(Into::into).map_err(failed)
    }
}

fn path(pid: i32, name: &str) -> String {
    procfs::path(pid, &format!("ns/{name}"))
}
