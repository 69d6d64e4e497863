//! What is known of open file descriptions from the last checkpoint, and is not asked again.
//!
//! With the list of descriptors comes, for each description, a number made of every word of the kernel on which its record
//! depends ([`FileRecord::evidence`]). As long as that is what it was, the record is too.
//!
//! | kind | what the number covers | kept when |
//! |---|---|---|
//! | regular file, directory, device, name of a file | flags, offset, inode (number, owner, mode, links, size, times, device), each name up to the root, mounts | it was found under the name that it was opened by |
//! | TCP connection | the whole socket, its inode, defaults of the network, name of the congestion algorithm | nothing is queued, and both ends are of the job and kept, or one is outside and the job goes on |
//! | Unix socket | the whole socket, its inode | it has no name, nothing is queued, and its other end, if any, is kept and knows it |
//! | eventfd | count, flags | always |
//! | epoll set | how it polls; at each file watched: by which sets, with number, events and data; how many watches it has | it has no watch that has reported once and for all, nor one that depends on who added it |
//!
//! Words, not counts of changes or addresses: should another object come to lie where one lay, it is the same to whoever asks, or
//! the number differs. What is only an address in it (a socket's other end, the process that it was made by) is held by the
//! socket, whose inode number is given once. Of all other kinds, and wherever something else is of influence (locks, owners,
//! filters, devices that a socket is bound to, file systems that keep their own counsel), the number covers nothing, and they are
//! looked at each time. So is everything where the kernel does not list descriptors.
//!
//! `CR_AUDIT=descriptors` has each checkpoint look at everything besides, and fail where that makes a difference.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::survey::{Group, Seen};
use super::{Description, Files, inet, unix};
use crate::error::{Error, Result};
use crate::track::iters::{FileRecord, covered};

/// By the kernel's name of a description, which is an address: as good as random but for its lowest bits.
pub(super) type Names<T> = HashMap<u64, T, BuildHasherDefault<OfAddress>>;

/// Spreads the bits of an address.
#[derive(Debug, Default)]
pub(super) struct OfAddress(u64);

impl Hasher for OfAddress {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

/// The descriptions of the last checkpoint.
#[derive(Debug, Default)]
pub struct Past {
    /// By the kernel's name.
    known: Names<Known>,
    /// Where each description is among the groups that are looked at now.
    pub(super) places: Names<usize>,
    /// Of every description, how it is watched: [`FileRecord::watched`].
    watches: Names<u64>,
    /// Those of a checkpoint that is being taken.
    fresh: Vec<(FileRecord, Seen, u32)>,
}

#[derive(Debug)]
struct Known {
    evidence: (u32, u64),
    seen: Option<Seen>,
    record: Option<Description>,
    /// The kernel's names of what the record refers to: the other end of a socket, what a set watches.
    others: Vec<u64>,
    /// Of an epoll set: [`FileRecord::references`].
    references: u32,
}

impl Past {
    /// What `/proc` shows of a description that is listed, if that is known.
    pub(super) fn recall(&mut self, listed: &FileRecord) -> Option<Seen> {
        let known = self.known.get_mut(&listed.file)?;
        (known.evidence == (listed.covered, listed.evidence)).then(|| known.seen.take())?
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.places.clear();
    }

    /// Takes the records out that are still right, and marks their groups.
    /// Connections with somebody outside are among them only where the job goes on with these.
    pub(super) fn keep(&mut self, groups: &mut [Group], goes_on: bool) -> Kept {
        let mut kept = Kept { places: std::mem::take(&mut self.places), ..Kept::default() };
        if !groups.iter().any(|g| g.is_known) {
            return kept;
        }
        kept.records.resize_with(groups.len(), || None);
        for at in 0..groups.len() {
            let group = &groups[at];
            let Some(listed) = group.listed.filter(|_| group.is_known) else { continue };
            let Some(known) = self.known.get(&listed.file) else { continue };
            let there = |name: &u64| kept.places.get(name).map(|place| &groups[*place]);
            let leads_out = matches!(&known.record, Some(Description::Inet(socket)) if socket.leads_out());
            let others_are_known = if leads_out {
                goes_on
            } else if listed.covered == covered::EPOLL {
                let watched = |name: &u64| Some(there(name)?.listed?.watched).filter(|w| *w != u64::MAX);
                let same = |name: &u64| watched(name).is_some_and(|w| self.watches.get(name) == Some(&w));
                known.references == listed.references && known.others.iter().all(same)
            } else {
                known.others.iter().all(|name| there(name).is_some_and(|other| other.is_known))
            };
            if !others_are_known {
                continue;
            }
            let known = self.known.get_mut(&listed.file);
            let record = known.and_then(|k| Some((k.record.take()?, std::mem::take(&mut k.others))));
            groups[at].is_kept = record.is_some();
            kept.records[at] = record;
        }
        kept
    }

    /// Notes what was captured; [`Self::learn`] makes something of it.
    pub(super) fn note(&mut self, groups: Vec<Group>, described: &[u32]) {
        self.fresh.clear();
        for (group, description) in groups.into_iter().zip(described) {
            let Some(listed) = group.listed else { continue };
            self.fresh.extend(group.members.into_iter().next().map(|seen| (listed, seen, *description)));
        }
    }

    /// Learns the records of the last capture, once there is time.
    pub fn learn(&mut self, files: &Files) {
        let names: HashMap<u32, u64> = self.fresh.iter().map(|(l, _, description)| (*description, l.file)).collect();
        let inodes = inodes(files, &names);
        let fresh = std::mem::take(&mut self.fresh);
        self.watches = fresh.iter().map(|(l, ..)| (l.file, l.watched)).collect();
        let covered = fresh.into_iter().filter(|(l, ..)| l.covered != covered::NOTHING);
        self.known.clear();
        self.known.extend(covered.map(|(listed, seen, index)| {
            let record = &files.descriptions[index as usize];
            let others = others(&listed, &seen, record, &names, &inodes);
            let known = Known {
                evidence: (listed.covered, listed.evidence),
                record: others.is_some().then(|| record.clone()),
                others: others.unwrap_or_default(),
                references: listed.references,
                seen: Some(seen),
            };
            (listed.file, known)
        }));
    }
}

/// Sockets by inode: the kernel's name, and the inode that is connected to them.
fn inodes(files: &Files, names: &HashMap<u32, u64>) -> HashMap<u64, (u64, u64)> {
    let end = |(index, description): (usize, &Description)| {
        let name = *names.get(&(index as u32))?;
        let (inode, other) = match description {
            Description::Inet(socket) => (socket.inode, socket.other_end()?),
            Description::Unix(socket) => (socket.inode, socket.other_end()?),
            _ => return None,
        };
        Some((inode, (name, other)))
    };
    files.descriptions.iter().enumerate().filter_map(end).collect()
}

/// The kernel's names of what a record refers to, if it can be kept as long as the evidence is the same.
fn others(
    listed: &FileRecord,
    seen: &Seen,
    record: &Description,
    names: &HashMap<u32, u64>,
    inodes: &HashMap<u64, (u64, u64)>,
) -> Option<Vec<u64>> {
    let mutual = |inode: u64, other: u64| {
        let (name, back) = inodes.get(&other)?;
        (*back == inode).then(|| vec![*name])
    };
    match (record, listed.covered) {
        (Description::Regular(r), covered::NAMED) => (r.path.as_path() == seen.link).then(Vec::new),
        (Description::Directory(r), covered::NAMED) => r.lost.is_none().then(Vec::new),
        (Description::Device(_) | Description::PathOnly(_), covered::NAMED)
        | (Description::Eventfd(_), covered::EVENTFD) => Some(Vec::new()),
        (Description::Inet(socket), covered::TCP) if socket.leads_out() => socket.is_idle_outside().then(Vec::new),
        (Description::Inet(socket), covered::TCP) => mutual(socket.inode, socket.other_end()?),
        (Description::Unix(socket), covered::UNIX) if matches!(socket.state, unix::State::Alone) => Some(Vec::new()),
        (Description::Unix(socket), covered::UNIX) => mutual(socket.inode, socket.other_end()?),
        (Description::Epoll(set), covered::EPOLL) if set.watches.len() + 1 == listed.references as usize => {
            let is_plain = |w: &&super::epoll::Watch| w.spent.is_none() && w.pid == seen.pid;
            let name = |w: &super::epoll::Watch| names.get(&w.description).copied();
            set.watches.iter().map(|w| Some(w).filter(is_plain).and_then(name)).collect()
        }
        _ => None,
    }
}

/// Records that are still right, by group.
#[derive(Default)]
pub(super) struct Kept {
    records: Vec<Option<(Description, Vec<u64>)>>,
    /// Groups by the kernel's name.
    places: Names<usize>,
}

impl Kept {
    /// The record of a group, and the kernel's names of what it refers to.
    pub(super) fn take(&mut self, group: usize) -> Option<(Description, Vec<u64>)> {
        self.records.get_mut(group)?.take()
    }

    /// The connections among them.
    pub(super) fn connections(&self) -> impl Iterator<Item = &inet::Inet> {
        self.records.iter().filter_map(|kept| match kept {
            Some((Description::Inet(socket), _)) => Some(&**socket),
            _ => None,
        })
    }

    /// The group with that name.
    pub(super) fn place(&self, name: u64) -> Option<usize> {
        self.places.get(&name).copied()
    }
}

/// Whether everything is to be looked at besides.
pub(super) fn is_audited() -> bool {
    std::env::var("CR_AUDIT").is_ok_and(|what| what == "descriptors")
}

/// Compares what was kept and looked at with what a look at everything gave; `kept` are the connections that were kept.
///
/// # Errors
/// [`Error::System`] that names the first description that differs.
pub(super) fn audit(short: &Files, full: &Files, kept: &inet::Connections) -> Result<()> {
    let differs = |what: String| {
        let why = std::io::Error::other("the short way differs from a look at everything (CR_AUDIT)");
        Err(Error::system(what, why))
    };
    for (index, (a, b)) in short.descriptions.iter().zip(&full.descriptions).enumerate() {
        let same = match (a, b) {
            // Its time passes.
            (Description::Timerfd(a), Description::Timerfd(b)) => (a.clock, a.flags) == (b.clock, b.flags),
            // What was looked at twice may have gone on in between.
            (Description::Inet(a), Description::Inet(b)) if !kept.has(a.inode) => a.inode == b.inode,
            (Description::Inet(a), Description::Inet(b)) => a.without_numbers() == b.without_numbers(),
            _ => a == b,
        };
        if !same {
            let place = short.holders(index);
            return differs(format!("auditing the {} at {place:?}: {a:?} and {b:?}", a.kind()));
        }
    }
    let rest = |files: &Files| Files { descriptions: Vec::new(), ..files.clone() };
    if short.descriptions.len() != full.descriptions.len() || rest(short) != rest(full) {
        return differs(format!("auditing the open files: {:?} and {:?}", rest(short), rest(full)));
    }
    match kept.busy_one(short) {
        Some(inode) => differs(format!("auditing the queues of the TCP socket [{inode}]")),
        None => Ok(()),
    }
}
