//! What a process outside the job has open too: only one of the two would have it after a restore.

use std::cmp::Ordering;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::survey::{self, Group};
use super::{Holder, No};
use crate::error::Refusal;
use crate::procfs;

/// What `/proc/PID/fd` shows of the kinds that are looked for.
const LINKS: [&str; 5] = [
    "anon_inode:[eventfd]",
    "anon_inode:[timerfd]",
    "anon_inode:[signalfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:inotify",
];

/// Refuses each that is shared. Looks at every process that we may look at.
pub(super) fn shared(holders: &[Holder<'_>], groups: &[Group]) -> Vec<Refusal> {
    let of_kind = |link: &Path| LINKS.iter().any(|known| link.as_os_str() == *known);
    let mut left: Vec<&Group> = groups.iter().filter(|g| of_kind(&g.first().link)).collect();
    let mut refusals = Vec::new();
    for other in procfs::processes().filter(|pid| !survey::is_of_job(*pid, holders)) {
        if left.is_empty() {
            break;
        }
        for fd in procfs::descriptors(other).unwrap_or_default() {
            let Some(link) = procfs::link(other, &format!("fd/{fd}")).ok().filter(|l| of_kind(l)) else { continue };
            let same = |g: &&Group| {
                let ours = g.first();
                ours.link == link && survey::compare((ours.pid, ours.fd), (other, fd)) == Ok(Ordering::Equal)
            };
            let Some(at) = left.iter().position(same) else { continue };
            let group = left.swap_remove(at);
            let kind = link.to_string_lossy().trim_start_matches("anon_inode:").trim_matches(['[', ']']).to_owned();
            let why = format!("is an {kind} that {} has open too, as fd {fd}", procfs::who(other));
            let no = No::new(why.replace("an timerfd", "a timerfd").replace("an signalfd", "a signalfd"), TODO);
            refusals.extend(group.members.iter().map(|seen| no.at(seen)));
        }
    }
    refusals
}

const TODO: &str = "checkpoint both together, or have one of them close it";

/// A process outside the job that has a file of the job open.
pub(super) struct User {
    /// Which file, by index.
    pub(super) of: usize,
    pid: i32,
    fd: i32,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (fd {})", procfs::who(self.pid), self.fd)
    }
}

/// Who outside the job has one of these files open, by device and inode; one process for each file. Looks at every process that
/// we may look at.
pub(super) fn users(holders: &[Holder<'_>], places: &[(u64, u64)]) -> Vec<User> {
    let mut users: Vec<User> = Vec::new();
    if places.is_empty() {
        return users;
    }
    for pid in procfs::processes().filter(|pid| !survey::is_of_job(*pid, holders)) {
        for fd in procfs::descriptors(pid).unwrap_or_default() {
            let Ok(meta) = fs::metadata(procfs::fd_path(pid, fd)) else { continue };
            let Some(of) = places.iter().position(|p| *p == (meta.dev(), meta.ino())) else { continue };
            let names_only = procfs::fdinfo(pid, fd).is_ok_and(|i| i.flags & libc::O_PATH != 0);
            if !names_only && users.iter().all(|u| u.of != of) {
                users.push(User { of, pid, fd });
            }
        }
    }
    users
}
