//! Watches of files and directories (`inotify(7)`). The kernel tells the inode of each and a handle of it, from which its path is
//! found; a restore watches what is at that path, under the same number.
//!
//! Events that the job has not read yet cannot be read without taking them: a job that has some is refused.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::survey::{self, Info, Seen};
use super::{FilePath, Holder, No, not_here, own_link, set_flags};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::{events, fd};

/// Numbers of watches only go up, one by one: what would take too long to count up to.
const MOST: i32 = 1 << 20;
/// Of every so many events that counting up makes, the queue is rid. It holds 16384 by default.
const DRAIN_EVERY: i32 = 4096;

/// A set of watches.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Inotify {
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// Its watches, ascending by number.
    pub watches: Vec<Watched>,
}

/// A file or directory that is watched.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The number of the watch.
    pub wd: i32,
    /// `IN_*`.
    pub mask: u32,
    /// Its path.
    pub path: FilePath,
}

/// The record.
pub(super) fn describe(holders: &[Holder<'_>], seen: &Seen) -> std::result::Result<Inotify, No> {
    let unread = survey::fetch(holders, seen.pid, seen.fd).and_then(|ours| fd::readable_bytes(ours.as_fd()));
    match unread {
        Ok(0) => {}
        Ok(n) => {
            let why = format!("is an inotify watch with {n} bytes of events that the job has not read yet");
            return Err(No::new(why, "wait until it has read them"));
        }
        Err(e) => return Err(No::new(format!("is an inotify watch that cannot be examined ({e})"), "run cr as root")),
    }
    let info = seen.info()?;
    let mut marks = marks(&info);
    marks.sort_unstable_by_key(|m| m.wd);
    let mut places = Places { mounts: procfs::mount_points(), ..Places::default() };
    let mut watches = Vec::new();
    for mark in marks {
        let path = places.by_handle(&mark).or_else(|| places.asked(holders).find(&mark)).ok_or_else(|| {
            let why = format!(
                "is an inotify watch of inode {} on device {:x}, whose path cannot be found",
                mark.ino, mark.sdev
            );
            No::new(why, "have the job remove the watch, or run cr as root")
        })?;
        if mark.wd > MOST {
            let why = format!("is an inotify watch whose numbers have got as far as {}", mark.wd);
            return Err(No::new(why, "have the job make a new one"));
        }
        watches.push(Watched { wd: mark.wd, mask: mark.mask, path: FilePath::from(&*path) });
        places.add(path);
    }
    Ok(Inotify { flags: seen.flags, watches })
}

/// What the kernel tells of a watch. `sdev` is the device as `/proc/self/mountinfo` shows it, major above 20 bits of minor.
struct Mark {
    wd: i32,
    ino: u64,
    sdev: u64,
    mask: u32,
    kind: i32,
    handle: Vec<u8>,
}

/// `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:21f ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000`
fn marks(info: &Info) -> Vec<Mark> {
    let parse = |line: &str| {
        let words = line.strip_prefix("inotify ")?;
        let text = |key: &str| words.split_whitespace().find_map(|w| w.strip_prefix(key));
        let hex = |key: &str| u64::from_str_radix(text(key)?, 16).ok();
        let handle = text("f_handle:").unwrap_or_default().as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        Some(Mark {
            wd: hex("wd:")? as i32,
            ino: hex("ino:")?,
            sdev: hex("sdev:")?,
            mask: hex("mask:")? as u32,
            kind: hex("fhandle-type:").unwrap_or(0) as i32,
            handle: handle.filter_map(byte).collect(),
        })
    };
    info.lines().filter_map(parse).collect()
}

impl Mark {
    fn is(&self, path: &Path) -> bool {
        let dev = libc::makedev((self.sdev >> 20) as u32, (self.sdev & 0xf_ffff) as u32);
        fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (dev, self.ino))
    }
}

/// Where files are looked for.
#[derive(Default)]
struct Places {
    /// What is mounted: device and path.
    mounts: Vec<(String, PathBuf)>,
    /// What the job has to do with: where a file is looked for whose handle leads nowhere.
    all: HashSet<PathBuf>,
    asked: bool,
}

impl Places {
    /// Where the file system of a file is mounted.
    fn mounts_of(&self, mark: &Mark) -> impl Iterator<Item = &PathBuf> {
        let device = format!("{}:{}", mark.sdev >> 20, mark.sdev & 0xf_ffff);
        self.mounts.iter().filter(move |(dev, _)| *dev == device).map(|(_, path)| path)
    }

    /// The path to which the file system leads the handle.
    fn by_handle(&self, mark: &Mark) -> Option<PathBuf> {
        self.mounts_of(mark).find_map(|mount| {
            let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
            let mount = File::options().read(true).custom_flags(flags).open(mount).ok()?;
            let found = events::open_by_handle(mount.as_fd(), mark.kind, &mark.handle).ok()?;
            let path = fs::read_link(own_link(found.as_raw_fd())).ok()?;
            let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
            let (found, there) = (File::from(found).metadata().ok()?, fs::symlink_metadata(&path).ok()?);
            (path.is_absolute() && same(&found, &there)).then_some(path)
        })
    }

    /// With the directories that the job has to do with.
    fn asked(&mut self, holders: &[Holder<'_>]) -> &Self {
        if !std::mem::replace(&mut self.asked, true) {
            for pid in holders.iter().map(|h| h.pid) {
                let fds = procfs::descriptors(pid).unwrap_or_default();
                let names =
                    fds.into_iter().map(|fd| format!("fd/{fd}")).chain(["cwd", "root", "exe"].map(str::to_owned));
                names.filter_map(|name| procfs::link(pid, &name).ok()).for_each(|path| self.add(path));
            }
        }
        self
    }

    fn add(&mut self, path: PathBuf) {
        self.all.extend(path.parent().map(Path::to_owned));
        self.all.insert(path);
    }

    fn find(&self, mark: &Mark) -> Option<PathBuf> {
        let places = || self.mounts_of(mark).chain(self.all.iter().filter(|p| p.is_absolute()));
        let entries = |dir: &PathBuf| {
            let all = fs::read_dir(dir).into_iter().flatten().flatten();
            all.filter(|e| e.ino() == mark.ino).map(|e| e.path())
        };
        places().find(|p| mark.is(p)).cloned().or_else(|| places().flat_map(entries).find(|p| mark.is(p)))
    }
}

impl Inotify {
    /// Whether everything that it watches is there.
    pub(super) fn check(&self) -> Result<()> {
        for watched in &self.watches {
            fs::symlink_metadata(watched.path.as_path()).map_err(|e| gone(watched, &e.to_string()))?;
        }
        Ok(())
    }

    /// Makes it, with its watches. It does not block, and holds events of its making: [`Self::settle`] ends that.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let failed = |e: nix::Error| Error::system("making an inotify watch of the job", e);
        let inotify = events::inotify(libc::IN_NONBLOCK | libc::IN_CLOEXEC).map_err(failed)?;
        // A file that nobody else knows, to be watched for the sake of the number.
        let nothing =
            nix::sys::memfd::memfd_create(c"nothing", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).map_err(failed)?;
        let nothing = CString::new(own_link(nothing.as_raw_fd())).expect("a path without a zero byte");
        let mut next = 1;
        for watched in &self.watches {
            while next < watched.wd {
                let wd = events::inotify_add(inotify.as_fd(), &nothing, libc::IN_DELETE_SELF).map_err(failed)?;
                events::inotify_remove(inotify.as_fd(), wd).map_err(failed)?;
                next = wd + 1;
                if wd % DRAIN_EVERY == 0 {
                    drain(&inotify)?;
                }
            }
            let path = CString::new(&*watched.path.0).map_err(|e| gone(watched, &e.to_string()))?;
            // One of the first is always in the mask, which may not be empty; the others are about the path alone.
            let mask = watched.mask | libc::IN_UNMOUNT | libc::IN_DONT_FOLLOW | libc::IN_MASK_CREATE;
            let wd = events::inotify_add(inotify.as_fd(), &path, mask).map_err(|e| gone(watched, &e.to_string()))?;
            if wd != watched.wd {
                return Err(gone(watched, &format!("it got the number {wd} instead of {}", watched.wd)));
            }
            next = wd + 1;
        }
        Ok(inotify)
    }

    /// Forgets what happened while the job was being restored, and gives it its flags.
    pub(super) fn settle(&self, inotify: &OwnedFd) -> Result<()> {
        drain(inotify)?;
        set_flags(inotify.as_fd(), self.flags).map_err(|e| Error::system("setting the flags of an inotify watch", e))
    }
}

fn drain(inotify: &OwnedFd) -> Result<()> {
    let failed = |e: io::Error| Error::system("emptying an inotify watch of the job", e);
    let mut file = File::from(inotify.try_clone().map_err(failed)?);
    let mut events = vec![0; 1 << 16];
    loop {
        match file.read(&mut events) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(failed(e)),
        }
    }
}

fn gone(watched: &Watched, why: &str) -> Error {
    let what = format!("{}, which the job watches (inotify)", watched.path);
    not_here(
        what,
        format!("it cannot be watched ({why})"),
        "put it back, and raise fs.inotify.max_user_watches if need be",
    )
}
