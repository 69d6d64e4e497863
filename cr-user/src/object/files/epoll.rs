//! Sets of watched descriptors (`epoll`). The kernel knows each entry by the number under which it was added and by the open
//! file description that this number meant then. A restore adds it under the same number, in a process that has both.
//!
//! An entry may outlive its number: closed, or given to something else, while the description lives on under another. Then
//! the number is lent to the description for as long as it takes to add it.

use std::os::fd::OwnedFd;

use super::survey::{Group, Seen};
use super::{Files, No};
use crate::error::{Error, Result};
use crate::remote::Call;
use crate::sys::{anon, fd};

/// A set of watched descriptors.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Epoll {
    /// What it watches.
    pub entries: Vec<Entry>,
    /// Status flags (`O_*`).
    pub flags: i32,
}

/// One watched descriptor.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The number under which it was added.
    pub number: i32,
    /// `EPOLL*`.
    pub events: u32,
    /// What is told with an event.
    pub data: u64,
    /// Index of the description.
    pub description: u32,
}

/// The entries that `fdinfo` shows; their descriptions are found by [`resolve`], once all are known.
pub(super) fn describe(seen: &Seen, info: &str) -> Epoll {
    let entry = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut after = |key: &str| words.find(|w| *w == key).and_then(|_| words.next());
        let events = u32::from_str_radix(after("events:")?, 16).ok()?;
        let data = u64::from_str_radix(after("data:")?, 16).ok()?;
        Some(Entry { number, events, data, description: u32::MAX })
    };
    Epoll { entries: info.lines().filter_map(entry).collect(), flags: seen.flags }
}

/// Finds the descriptions that the entries of `epoll` mean, the set itself being `group`.
pub(super) fn resolve(
    epoll: &mut Epoll,
    group: &Group,
    groups: &[Group],
    files: &Files,
) -> std::result::Result<(), No> {
    let set = group.first();
    for at in 0..epoll.entries.len() {
        let number = epoll.entries[at].number;
        // Several entries may have one number, of which all but the last have outlived it.
        let nth = epoll.entries[..at].iter().filter(|e| e.number == number).count() as u32;
        let is_it = |s: &Seen| fd::is_watched(s.pid, s.fd, set.pid, set.fd, number, nth).unwrap_or(false);
        let likely = groups.iter().flat_map(|g| &g.members).find(|s| s.pid == set.pid && s.fd == number && is_it(s));
        let found = likely.or_else(|| groups.iter().map(Group::first).find(|s| is_it(s)));
        let description = found.and_then(|s| files.description_of(s.pid, s.fd));
        let Some(description) = description else {
            let why = format!("is an epoll set that watches what was fd {number}, and is open nowhere in the job now");
            return Err(No::new(why, "have the job remove it from the set before it closes it"));
        };
        epoll.entries[at].description = description;
    }
    Ok(())
}

/// A new, empty set.
pub(super) fn open() -> Result<OwnedFd> {
    anon::epoll(libc::EPOLL_CLOEXEC).map_err(|e| Error::system("making an epoll set of the job", e))
}

impl Epoll {
    /// The calls by which a process that has it as `fd` adds the entries. `has` says which description the process has under
    /// a number, `cloexec` whether `exec` closes that, `ours` where we have a description; the bytes of the calls will lie
    /// at `at`.
    pub(super) fn add_calls(
        &self,
        fd: i32,
        has: impl Fn(i32) -> Option<u32>,
        cloexec: impl Fn(i32) -> bool,
        ours: impl Fn(u32) -> i32,
        at: u64,
    ) -> Vec<(Vec<Call>, Vec<u8>)> {
        let mut batches = Vec::new();
        for entry in &self.entries {
            let mut event = entry.events.to_le_bytes().to_vec();
            event.extend_from_slice(&entry.data.to_le_bytes());
            let number = entry.number as u64;
            let add = Call::new(libc::SYS_epoll_ctl, &[fd as u64, libc::EPOLL_CTL_ADD as u64, number, at]);
            let calls = match has(entry.number) {
                Some(description) if description == entry.description => vec![add],
                taken => {
                    let (mut calls, mut pulled, aside) = (Vec::new(), 0, 0);
                    // What has the number now is put aside; where nothing has, the number is kept from being chosen.
                    calls.push(match taken {
                        Some(_) => Call::new(libc::SYS_fcntl, &[number, libc::F_DUPFD as u64, 0]),
                        None => Call::new(libc::SYS_dup3, &[fd as u64, number, libc::O_CLOEXEC as u64]),
                    });
                    super::late::pull(ours(entry.description), &mut calls, &mut pulled);
                    calls.push(Call::new(libc::SYS_dup3, &[0, number, libc::O_CLOEXEC as u64]).first_from(pulled));
                    calls.push(add);
                    if taken.is_some() {
                        let flags = if cloexec(entry.number) { libc::O_CLOEXEC as u64 } else { 0 };
                        calls.push(Call::new(libc::SYS_dup3, &[0, number, flags]).first_from(aside));
                        calls.push(Call::new(libc::SYS_close, &[0]).first_from(aside));
                    } else {
                        calls.push(Call::new(libc::SYS_close, &[number]));
                    }
                    super::late::drop_pulled(&mut calls, pulled);
                    calls
                }
            };
            batches.push((calls, event));
        }
        batches
    }
}
