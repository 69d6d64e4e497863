//! POSIX message queues that are empty: opened again by name, or made again with their attributes.
//!
//! The kernel shows a message only to whoever takes it out. Were cr to die between taking and putting back, it would be lost, and
//! whoever waits for the queue to fill would be told of what is put back. So a queue with messages is refused. So is one with a
//! notification (`mq_notify`), since the kernel shows nobody the value that it sends.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::errno::Errno;

use super::survey::{self, Seen};
use super::{FilePath, Holder, No, not_here, open_again, outside, own_link};
use crate::error::{Error, Refusal, Result};
use crate::procfs;
use crate::sys::mqueue;

/// `MQUEUE_MAGIC` of `ipc/mqueue.c`.
pub(super) const MQUEUE: i64 = 0x1980_0202;

/// One queue.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name, with the slash.
    pub name: FilePath,
    /// Whether it has no name any more.
    pub deleted: bool,
    /// Messages that it can hold.
    pub max_messages: i64,
    /// Bytes of the longest.
    pub max_bytes: i64,
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

/// One description of a queue.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct QueueEnd {
    /// Index of the queue in [`Files::queues`](super::Files::queues).
    pub queue: u32,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// The record of a description, or why there can be none; `queues` gets the queue if it is new.
pub(super) fn describe(
    holders: &[Holder<'_>],
    seen: &Seen,
    queues: &mut Vec<Queue>,
) -> std::result::Result<QueueEnd, No> {
    let link = seen.link.as_os_str().as_bytes();
    let meta = &seen.meta;
    let deleted = meta.nlink() == 0;
    let path = if deleted { link.strip_suffix(b" (deleted)").unwrap_or(link) } else { link };
    let base = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let name = FilePath([b"/", base].concat());
    let failed = |e: io::Error| {
        No::new(format!("is the message queue {name}, which cannot be examined ({e})"), "run cr as root, or try again")
    };
    let ours = survey::fetch(holders, seen.pid, seen.fd).map_err(|e| failed(e.into()))?;
    let attributes = mqueue::attributes(ours.as_fd()).map_err(|e| failed(e.into()))?;
    if attributes.messages > 0 {
        let why = format!(
            "is the message queue {name}, which holds {} messages; nobody can read them without taking them out",
            attributes.messages
        );
        return Err(No::new(why, "wait until the job has received them"));
    }
    if let Some(pid) = notified(seen).map_err(failed)? {
        let why = format!("is the message queue {name}, whose next message pid {pid} is to be told of (mq_notify)");
        return Err(No::new(why, "have the job cancel that with mq_notify(queue, NULL)"));
    }
    let place = (meta.dev(), meta.ino());
    let index = queues.iter().position(|q| (q.dev, q.ino) == place).unwrap_or_else(|| {
        queues.push(Queue {
            name,
            deleted,
            max_messages: attributes.max_messages,
            max_bytes: attributes.max_bytes,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            dev: place.0,
            ino: place.1,
        });
        queues.len() - 1
    });
    Ok(QueueEnd { queue: index as u32, flags: seen.flags })
}

/// Queues of the job that a process outside has open too. Looks at every process that we may look at.
pub(super) fn shared_with_others(holders: &[Holder<'_>], groups: &[survey::Group], queues: &[Queue]) -> Vec<Refusal> {
    let places: Vec<(u64, u64)> = queues.iter().map(|q| (q.dev, q.ino)).collect();
    let mut refusals = Vec::new();
    for user in outside::users(holders, &places) {
        let why = format!("is the message queue {}, which {user} has open too", queues[user.of].name);
        let no = No::new(why, "checkpoint both together, or have one of them close it");
        let members = groups.iter().flat_map(|g| &g.members);
        let ours = members.filter(|s| (s.meta.dev(), s.meta.ino()) == places[user.of]);
        refusals.extend(ours.map(|seen| no.at(seen)));
    }
    refusals
}

/// Who is to be told of the next message: the queue as a file says so.
fn notified(seen: &Seen) -> io::Result<Option<u32>> {
    let text = procfs::text(&procfs::fd_path(seen.pid, seen.fd))?;
    Ok(text.split("NOTIFY_PID:").nth(1).and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid != 0))
}

impl Queue {
    /// The name as the kernel knows it.
    fn c_name(&self) -> CString {
        CString::new(self.name.0.strip_prefix(b"/").unwrap_or(&self.name.0)).unwrap_or_default()
    }

    /// Whether what has its name now is like it.
    pub(super) fn check(&self) -> Result<()> {
        const TODO: &str = "remove it with mq_unlink: the restore makes an empty one";
        if self.deleted {
            return Ok(());
        }
        let now = match mqueue::open(&self.c_name(), libc::O_RDONLY | libc::O_CLOEXEC, 0, None) {
            Ok(now) => now,
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(self.not_here(format!("it cannot be opened ({e})"), "let cr read and write it")),
        };
        let now =
            mqueue::attributes(now.as_fd()).map_err(|e| self.not_here(format!("it cannot be examined ({e})"), TODO))?;
        if now.messages > 0 {
            let why = format!("it was empty at the checkpoint, and holds {} messages now", now.messages);
            return Err(self.not_here(why, "receive them, or remove it with mq_unlink: the restore makes an empty one"));
        }
        if (now.max_messages, now.max_bytes) != (self.max_messages, self.max_bytes) {
            let why = format!("it holds {} messages of {} bytes now", now.max_messages, now.max_bytes);
            return Err(self.not_here(why, TODO));
        }
        Ok(())
    }

    /// Opens it, or makes it.
    pub(super) fn make(&self) -> Result<OwnedFd> {
        const ACCESS: i32 = libc::O_RDWR | libc::O_CLOEXEC;
        let failed = |e: Errno| {
            let why = format!("none of {} messages of {} bytes can be made ({e})", self.max_messages, self.max_bytes);
            self.not_here(why, "raise the limits in /proc/sys/fs/mqueue, and RLIMIT_MSGQUEUE")
        };
        let create = |name: &CString| {
            let flags = ACCESS | libc::O_CREAT | libc::O_EXCL;
            mqueue::open(name, flags, 0o600, Some((self.max_messages, self.max_bytes)))
        };
        if !self.deleted {
            match mqueue::open(&self.c_name(), ACCESS, 0, None) {
                Err(Errno::ENOENT) => {}
                there => return there.map_err(failed),
            }
        }
        let mut name = self.c_name();
        let mut n = 0u32;
        let made = loop {
            match create(&name) {
                Err(Errno::EEXIST) if self.deleted => {
                    name = CString::new(format!("cr-{}-{n}", std::process::id())).unwrap_or_default();
                    n += 1;
                }
                done => break done.map_err(failed)?,
            }
        };
        if self.deleted {
            mqueue::unlink(&name).map_err(failed)?;
        }
        let made = File::from(made);
        let owned = std::os::unix::fs::fchown(&made, Some(self.uid), Some(self.gid));
        owned
            .and_then(|()| made.set_permissions(Permissions::from_mode(self.mode)))
            .map_err(|e| Error::system(format!("setting the owner of the message queue {}", self.name), e))?;
        Ok(made.into())
    }

    /// A description of the one made, with its flags.
    pub(super) fn open(&self, made: &OwnedFd, end: &QueueEnd) -> Result<OwnedFd> {
        let file = open_again(own_link(made.as_raw_fd()).as_ref(), end.flags);
        file.map(Into::into).map_err(|e| Error::system(format!("opening the message queue {} again", self.name), e))
    }

    fn not_here(&self, why: String, todo: &str) -> Error {
        not_here(format!("the message queue {}", self.name), why, todo)
    }
}
