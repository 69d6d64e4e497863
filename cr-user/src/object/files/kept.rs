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
//! | end of a pipe | that it is empty, how much it can hold, its readers and writers, flags, inode | all ends in the job are covered |
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
use std::os::unix::fs::MetadataExt;

use super::survey::{Group, Seen};
use super::{Description, Files, inet, unix};
use crate::error::{Error, Result};
use crate::track::iters::{FileRecord, covered};

/// By the kernel's name of a description, which is an address: as good as random but for its lowest bits.
type Names<T> = HashMap<u64, T, BuildHasherDefault<OfAddress>>;

/// Spreads the bits of an address.
#[derive(Debug, Default)]
struct OfAddress(u64);

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
    /// The lists of descriptors that they were found in, and for each descriptor, one after the other, the place of its description.
    lists: Vec<List>,
    slots: Vec<u32>,
    /// By the kernel's name, the place of a description among the following.
    places: Names<u32>,
    known: Vec<Known>,
    /// Of every description, how it is watched: [`FileRecord::watched`].
    watches: Names<u64>,
    /// How much pipes can hold, by inode.
    capacities: HashMap<u64, u32>,
    /// Those of a checkpoint that is being taken.
    fresh: Option<Fresh>,
}

/// A process, and its descriptors as they are listed.
type List = (i32, Vec<FileRecord>);

#[derive(Debug)]
struct Known {
    evidence: (u32, u64),
    /// Its descriptors; none if it is not covered, or they were taken.
    members: Vec<Seen>,
    record: Option<Description>,
    /// The kernel's names of what the record refers to: the other end of a socket, what a set watches.
    others: Vec<u64>,
    /// Of an epoll set: [`FileRecord::references`].
    references: u32,
    /// The record is right, and is taken.
    is_kept: bool,
}

#[derive(Debug, Default)]
struct Fresh {
    lists: Vec<List>,
    slots: Vec<u32>,
    places: Names<u32>,
    groups: Vec<Group>,
    /// The description of each group.
    described: Vec<u32>,
}

impl Past {
    /// Gathers listed descriptors by description, in the order of their first ones. Of one description all have the same name there:
    /// only the first is asked for, by `look`; and of what is as it was, none.
    pub(super) fn gather(
        &mut self,
        lists: &[(i32, &[FileRecord])],
        look: impl Fn(i32, i32) -> Result<Seen>,
    ) -> Result<Vec<Group>> {
        // Whatever fails from here on, what is taken out of it now is looked at anew the next time.
        let (old_lists, old_slots) = (std::mem::take(&mut self.lists), std::mem::take(&mut self.slots));
        let old_places = std::mem::take(&mut self.places);
        let is_same = old_lists.len() == lists.len() && old_lists.iter().zip(lists).all(has_same_descriptors);
        let mut now = Fresh::default();
        if is_same {
            (now.lists, now.slots) = (old_lists, old_slots);
            now.lists.iter_mut().zip(lists).for_each(|((_, old), (_, new))| old.copy_from_slice(new));
        } else {
            now.lists = lists.iter().map(|(pid, list)| (*pid, list.to_vec())).collect();
        }
        let mut groups: Vec<Group> = Vec::with_capacity(self.known.len());
        let all = lists.iter().flat_map(|(pid, list)| list.iter().map(move |record| (*pid, record)));
        for (nth, (pid, record)) in all.enumerate() {
            let fd = record.fd.cast_signed();
            let place = if is_same {
                now.slots[nth] as usize
            } else {
                let place = *now.places.entry(record.file).or_insert(groups.len() as u32);
                now.slots.push(place);
                place as usize
            };
            if let Some(group) = groups.get_mut(place) {
                if is_same && group.known.is_some() {
                    // It has all of its descriptors already.
                    continue;
                }
                // Each process has locks of its own.
                let same = (record.locks == 0).then(|| group.first().at(pid, fd, record.cloexec != 0));
                group.members.push(same.map_or_else(|| look(pid, fd), Ok)?);
                continue;
            }
            let old = if is_same { Some(place) } else { old_places.get(&record.file).map(|place| *place as usize) };
            let old = old.filter(|old| self.known[*old].is_still(record));
            let members = match old {
                Some(old) if is_same => std::mem::take(&mut self.known[old].members),
                Some(old) => {
                    let mut members = std::mem::take(&mut self.known[old].members);
                    members.truncate(1);
                    if let Some(seen) = members.first_mut() {
                        seen.is_at(pid, fd, record.cloexec != 0);
                    }
                    members
                }
                None => vec![look(pid, fd)?],
            };
            groups.push(Group { members, listed: Some(*record), known: old, is_kept: false });
        }
        if is_same {
            now.places = old_places;
        }
        self.fresh = Some(now);
        Ok(groups)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes what was known out, and marks the groups of which the records are still right.
    /// Connections with somebody outside are among them only where the job goes on with these.
    pub(super) fn keep(&mut self, groups: &mut [Group], goes_on: bool) -> Kept {
        let Some(now) = &mut self.fresh else { return Kept::default() };
        let mut kept = Kept {
            known: std::mem::take(&mut self.known),
            places: std::mem::take(&mut now.places),
            capacities: std::mem::take(&mut self.capacities),
        };
        for at in 0..groups.len() {
            let group = &groups[at];
            let Some((old, listed)) = group.known.zip(group.listed) else { continue };
            let known = &kept.known[old];
            let there = |name: &u64| kept.place(*name).map(|place| &groups[place]);
            let leads_out = matches!(&known.record, Some(Description::Inet(socket)) if socket.leads_out());
            let others_are_known = if leads_out {
                goes_on
            } else if listed.covered == covered::EPOLL {
                let watched = |name: &u64| Some(there(name)?.listed?.watched).filter(|w| *w != u64::MAX);
                let same = |name: &u64| watched(name).is_some_and(|w| self.watches.get(name) == Some(&w));
                known.references == listed.references && known.others.iter().all(same)
            } else {
                known.others.iter().all(|name| there(name).is_some_and(|other| other.known.is_some()))
            };
            let is_kept = others_are_known && known.record.is_some();
            groups[at].is_kept = is_kept;
            kept.known[old].is_kept = is_kept;
        }
        kept
    }

    /// Notes what was captured, and of each group the description; [`Self::learn`] makes something of it.
    pub(super) fn note(&mut self, groups: Vec<Group>, described: Vec<u32>, kept: Kept) {
        // What is left of these is dropped when there is time.
        self.known = kept.known;
        if let Some(fresh) = &mut self.fresh {
            (fresh.groups, fresh.described, fresh.places) = (groups, described, kept.places);
        }
    }

    /// Learns the records of the last capture, once there is time.
    pub fn learn(&mut self, files: &Files) {
        let Fresh { lists, slots, places, groups, described } = self.fresh.take().unwrap_or_default();
        self.clear();
        let names = described.iter().zip(&groups).filter_map(|(d, group)| Some((*d, group.listed?.file)));
        let names: HashMap<u32, u64> = names.collect();
        let inodes = inodes(files, &names);
        self.watches = groups.iter().filter_map(|g| g.listed).map(|l| (l.file, l.watched)).collect();
        self.capacities = capacities(files, &groups, &described);
        self.known = groups.into_iter().zip(described).map(|(g, d)| Known::of(g, d, files, &names, &inodes)).collect();
        (self.lists, self.slots, self.places) = (lists, slots, places);
    }
}

/// Whether a process has the same descriptors of the same descriptions as it had.
fn has_same_descriptors(((old_pid, old), (pid, list)): (&List, &(i32, &[FileRecord]))) -> bool {
    let same = |(a, b): (&FileRecord, &FileRecord)| (a.file, a.fd, a.cloexec) == (b.file, b.fd, b.cloexec);
    old_pid == pid && old.len() == list.len() && old.iter().zip(*list).all(same)
}

impl Known {
    fn of(
        group: Group,
        description: u32,
        files: &Files,
        names: &HashMap<u32, u64>,
        inodes: &HashMap<u64, (u64, u64)>,
    ) -> Self {
        let nothing = Self {
            evidence: (0, 0),
            members: Vec::new(),
            record: None,
            others: Vec::new(),
            references: 0,
            is_kept: false,
        };
        let Some(listed) = group.listed.filter(|l| l.covered != covered::NOTHING) else { return nothing };
        let Some(record) = files.descriptions.get(description as usize) else { return nothing };
        let others = others(&listed, group.first(), record, names, inodes);
        Self {
            evidence: (listed.covered, listed.evidence),
            record: others.is_some().then(|| record.clone()),
            others: others.unwrap_or_default(),
            references: listed.references,
            members: group.members,
            is_kept: false,
        }
    }

    /// Whether this is still so of a description that is listed now, and is there.
    fn is_still(&self, listed: &FileRecord) -> bool {
        self.evidence == (listed.covered, listed.evidence) && !self.members.is_empty()
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

/// How much pipes can hold, by inode.
fn capacities(files: &Files, groups: &[Group], described: &[u32]) -> HashMap<u64, u32> {
    let one = |(group, description): (&Group, &u32)| match files.descriptions.get(*description as usize)? {
        Description::Pipe(end) => Some((group.first().meta.ino(), files.pipes.get(end.pipe as usize)?.capacity)),
        _ => None,
    };
    groups.iter().zip(described).filter_map(one).collect()
}

/// What was known, and which of it is still right.
#[derive(Default)]
pub(super) struct Kept {
    known: Vec<Known>,
    /// Groups by the kernel's name.
    places: Names<u32>,
    /// How much pipes can hold, by inode.
    capacities: HashMap<u64, u32>,
}

impl Kept {
    /// The record of a group, and the kernel's names of what it refers to.
    pub(super) fn take(&mut self, group: &Group) -> Option<(Description, Vec<u64>)> {
        let known = &mut self.known[group.known.filter(|_| group.is_kept)?];
        Some((known.record.take()?, std::mem::take(&mut known.others)))
    }

    /// The connections among them.
    pub(super) fn connections(&self) -> impl Iterator<Item = &inet::Inet> {
        self.known.iter().filter(|known| known.is_kept).filter_map(|known| match &known.record {
            Some(Description::Inet(socket)) => Some(&**socket),
            _ => None,
        })
    }

    /// The group with that name.
    pub(super) fn place(&self, name: u64) -> Option<usize> {
        self.places.get(&name).map(|place| *place as usize)
    }

    /// How much the pipe of that inode could hold.
    pub(super) fn capacity(&self, inode: u64) -> Option<u32> {
        self.capacities.get(&inode).copied()
    }
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
