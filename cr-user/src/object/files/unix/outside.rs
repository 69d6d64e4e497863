//! Who else has a socket: those that we may look at are looked through.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::super::Holder;
use super::name;
use crate::error::Refusal;

/// The process outside of the job that has the socket of that inode: its pid and command.
pub(super) fn owner_of(inode: u64, holders: &[Holder<'_>]) -> Option<(i32, String)> {
    others(holders).find(|other| inodes(*other).any(|i| i == inode)).map(|other| (other, command(other)))
}

/// Whether a process outside of the job has what its links to descriptors show so.
pub(in super::super) fn has_other_owner(link: &Path, holders: &[Holder<'_>]) -> bool {
    let mut links =
        others(holders).flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten());
    links.any(|entry| fs::read_link(entry.path()).is_ok_and(|l| l == link))
}

/// Sockets of the job (pid, number, inode) that a process outside has open too.
pub(super) fn shared_with_others(own: &[(i32, i32, u64)], holders: &[Holder<'_>]) -> Vec<Refusal> {
    let wanted: HashSet<u64> = own.iter().map(|(.., inode)| *inode).collect();
    let mut refusals: Vec<Refusal> = Vec::new();
    if wanted.is_empty() {
        return refusals;
    }
    for other in others(holders) {
        for inode in inodes(other).filter(|i| wanted.contains(i)) {
            for (pid, fd, _) in own.iter().filter(|(.., i)| *i == inode) {
                let place = format!("fd {fd}");
                if refusals.iter().any(|r| r.pid == *pid && r.place == place) {
                    continue;
                }
                let why = format!("is a Unix socket that pid {other} ({}) has open too", command(other));
                let todo = "checkpoint both together, or have one of them close it".to_owned();
                refusals.push(Refusal { pid: *pid, place, why, todo });
            }
        }
    }
    refusals
}

/// The other end of a connection, in words.
pub(super) fn other_end(inode: u64, name: &[u8], holders: &[Holder<'_>]) -> String {
    let named = if name.is_empty() { String::new() } else { format!(" {}", name::shown(name)) };
    match owner_of(inode, holders) {
        Some((pid, command)) => format!("the socket [{inode}]{named} of pid {pid} ({command}), outside of the job"),
        None => format!("the socket [{inode}]{named}, which no process has that can be seen from here"),
    }
}

fn others(holders: &[Holder<'_>]) -> impl Iterator<Item = i32> {
    let all = fs::read_dir("/proc").into_iter().flatten();
    let pids = all.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|other| holders.iter().all(|h| h.pid != *other && !h.sharers.contains(other)))
}

fn inodes(pid: i32) -> impl Iterator<Item = u64> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|entry| inode(&fs::read_link(entry.path()).ok()?.to_string_lossy()))
}

/// The number in `socket:[812]`.
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn command(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}
