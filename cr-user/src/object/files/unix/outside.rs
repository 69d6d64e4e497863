//! Who else has a socket: those that we may look at are looked through.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::super::{Holder, No, survey};
use super::name;
use crate::error::Refusal;
use crate::procfs;

/// The process outside of the job that has the socket of that inode.
pub(in super::super) fn owner_of(inode: u64, holders: &[Holder<'_>]) -> Option<i32> {
    others(holders).find(|other| inodes(*other).any(|i| i == inode))
}

/// A process outside of the job that has what its links to descriptors show so.
pub(in super::super) fn other_owner(link: &Path, holders: &[Holder<'_>]) -> Option<i32> {
    others(holders).find(|other| links(*other).any(|l| l == link))
}

/// Sockets of the job (pid, number, inode) that a process outside has open too. Of a part of a job, descendants may be outside.
pub(in super::super) fn shared_with_others(
    own: &[(i32, i32, u64)],
    holders: &[Holder<'_>],
    is_part: bool,
) -> Vec<Refusal> {
    let wanted: HashSet<u64> = own.iter().map(|(.., inode)| *inode).collect();
    let mut refusals: Vec<Refusal> = Vec::new();
    if wanted.is_empty() {
        return refusals;
    }
    for other in others(holders) {
        let shared: Vec<u64> = inodes(other).filter(|i| wanted.contains(i)).collect();
        // It may have been born a moment ago.
        if shared.is_empty() || !is_part && survey::is_of_job(other, holders) {
            continue;
        }
        for inode in shared {
            for (pid, fd, _) in own.iter().filter(|(.., i)| *i == inode) {
                let why = format!("is a socket that {} has open too", procfs::who(other));
                let no = No::new(why, "checkpoint both together, or have one of them close it").at_number(*pid, *fd);
                if refusals.iter().all(|r| (r.pid, &r.place) != (no.pid, &no.place)) {
                    refusals.push(no);
                }
            }
        }
    }
    refusals
}

/// The other end of a connection, in words.
pub(super) fn other_end(inode: u64, name: &[u8], holders: &[Holder<'_>]) -> String {
    let named = if name.is_empty() { String::new() } else { format!(" {}", name::shown(name)) };
    match owner_of(inode, holders) {
        Some(pid) => format!("the socket [{inode}]{named} of {}, outside of the job", procfs::who(pid)),
        None => format!("the socket [{inode}]{named}, which no process has that can be seen from here"),
    }
}

fn others(holders: &[Holder<'_>]) -> impl Iterator<Item = i32> {
    // What cr has are duplicates, for as long as it looks.
    let me = std::process::id() as i32;
    procfs::processes()
        .filter(move |other| *other != me)
        .filter(|other| holders.iter().all(|h| h.pid != *other && !h.sharers.contains(other)))
}

fn inodes(pid: i32) -> impl Iterator<Item = u64> {
    links(pid).filter_map(|link| inode(&link.to_string_lossy()))
}

fn links(pid: i32) -> impl Iterator<Item = PathBuf> {
    let fds = procfs::descriptors(pid).unwrap_or_default();
    fds.into_iter().filter_map(move |fd| procfs::link(pid, &format!("fd/{fd}")).ok())
}

/// The number in `socket:[812]`.
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}
