//! Epoll sets (`epoll(7)`): every file watched, under the number that it had when it was added, with events and data.
//!
//! The set holds on to the file behind a number, not to the number: that may be closed or be something else by now, while the
//! file is still open elsewhere in the job. `kcmp(2)` says which of the job's files it is.
//!
//! What was ready and not yet reported is ready again once everything is in place, and so is reported. What an edge-triggered
//! watch has reported already is reported once more if it is still ready: the kernel does not tell the two apart.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::survey::{self, Group, Seen, readable};
use super::{Description, Files, Holder, No, set_flags};
use crate::error::{Error, Refusal, Result};
use crate::procfs;
use crate::sys::events;
use crate::sys::fd::is_watched;

/// Bits that are no events (`EP_PRIVATE_BITS` of `fs/eventpoll.c`): all that is left of a one-shot watch that has reported.
const PRIVATE: u32 = (libc::EPOLLWAKEUP | libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;

/// How often, and after how long each time, a set is looked at again that watches what nobody has open any more: the last duplicate of
/// ours may be on its way to be closed.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// An epoll set.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Epoll {
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// How it polls devices (`EPIOCGPARAMS`, `struct epoll_params`); 0 for the usual way.
    pub busy_poll: u64,
    /// What it watches.
    pub watches: Vec<Watch>,
}

/// One file that a set watches.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The number under which it was added.
    pub fd: i32,
    /// Index of its description.
    pub description: u32,
    /// `EPOLL*`.
    pub events: u32,
    /// What is reported with the events.
    pub data: u64,
    /// The process that adds it.
    pub pid: i32,
    /// For a one-shot watch that has reported, and does not until it is armed again: how it is brought to report.
    pub spent: Option<Trigger>,
}

/// How a file is made ready for something. Only a report disarms a one-shot watch.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// It is.
    Nothing,
    /// By a byte in this pipe.
    Byte,
    /// By having this timer expire.
    Expiry,
}

/// The record, without what it watches: that is found by [`link`], when all descriptions are known.
pub(super) fn describe(holders: &[Holder<'_>], seen: &Seen) -> std::result::Result<Epoll, No> {
    let failed = |e: Errno| No::new(format!("is an epoll set that cannot be examined ({e})"), "run cr as root");
    let ours = survey::fetch(holders, seen.pid, seen.fd).map_err(failed)?;
    Ok(Epoll { flags: seen.flags, busy_poll: events::busy_poll(ours.as_fd()), watches: Vec::new() })
}

/// Finds what the sets watch. `sets` are descriptions by index, with their descriptors.
pub(super) fn link(
    holders: &[Holder<'_>],
    groups: &[Group],
    sets: &[(usize, &Group)],
    files: &mut Files,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (index, set) in sets {
        match watches(holders, groups, set, files) {
            Ok(found) => {
                if let Description::Epoll(record) = &mut files.descriptions[*index] {
                    record.watches = found;
                }
            }
            Err(no) => refusals.extend(set.members.iter().map(|seen| no.at(seen))),
        }
    }
    refusals
}

/// Has a set that was kept refer to the descriptions of what it watches, in its order. Says whether that is all there is to do.
pub(super) fn link_again(files: &mut Files, index: usize, set: &Group, watched: &[u32]) -> bool {
    let by_number = |description: &u32| {
        let kind = &files.descriptions[*description as usize];
        matches!(kind, Description::Signalfd(_) | Description::Stdio(_)) || kind.is_late()
    };
    if watched.iter().any(by_number) {
        return false;
    }
    let Description::Epoll(record) = &mut files.descriptions[index] else { return false };
    for (watch, description) in record.watches.iter_mut().zip(watched) {
        (watch.description, watch.pid) = (*description, set.first().pid);
    }
    true
}

/// A line of `fdinfo`.
#[derive(Clone, Copy)]
struct Line {
    fd: i32,
    events: u32,
    data: u64,
}

impl Line {
    /// `tfd:        5 events:       1d data: ffffffffffffffff  pos:0 ino:61af sdev:7`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let mut hex = |key: &str| u64::from_str_radix(words.next().filter(|w| *w == key).and(words.next())?, 16).ok();
        Some(Self { fd, events: hex("events:")? as u32, data: hex("data:")? })
    }
}

fn watches(
    holders: &[Holder<'_>],
    groups: &[Group],
    set: &Group,
    files: &Files,
) -> std::result::Result<Vec<Watch>, No> {
    let first = set.first();
    let info = first.info()?;
    let mut all = Vec::new();
    let mut numbers: Vec<i32> = Vec::new();
    for line in info.lines().filter_map(Line::parse) {
        // The kernel lists entries in the order in which kcmp counts those with the same number.
        let skip = numbers.iter().filter(|n| **n == line.fd).count() as u32;
        numbers.push(line.fd);
        let (seen, adder) = match find(groups, set, line.fd, skip)? {
            Found::There(seen) => (seen, seen.pid),
            Found::Elsewhere(seen) => (seen, 0),
            Found::Gone => continue,
        };
        // Refused already, or opened since the others were looked at: then the job runs, and this is no capture.
        let row =
            files.tables.iter().find(|t| t.pids[0] == seen.pid).and_then(|t| t.rows.iter().find(|d| d.fd == seen.fd));
        let Some(description) = row.map(|d| d.description) else { continue };
        let kind = &files.descriptions[description as usize];
        // A signalfd tells of the signals of whoever adds it, and what is opened late has a number nowhere else.
        let by_number = matches!(kind, Description::Signalfd(_)) || kind.is_late();
        let pid = if by_number { adder } else { first.pid };
        if pid == 0 {
            let why = format!("is an epoll set that watches {}, once fd {}", kind.kind(), line.fd);
            return Err(No::new(why, "have the job remove it from the set before it closes the descriptor"));
        }
        let spent = line.events & ONE_SHOT != 0 && line.events & !PRIVATE == 0;
        let spent = if spent { Some(trigger(holders, seen, kind, line.fd)?) } else { None };
        all.push(Watch { fd: line.fd, description, events: line.events, data: line.data, pid, spent });
    }
    Ok(all)
}

enum Found<'a> {
    /// Under its number, in a process that has the set too.
    There(&'a Seen),
    /// Under another.
    Elsewhere(&'a Seen),
    /// It has been removed from the set meanwhile.
    Gone,
}

fn find<'a>(groups: &'a [Group], set: &Group, fd: i32, skip: u32) -> std::result::Result<Found<'a>, No> {
    let seen = set.first();
    let here = |pid: i32, candidate: i32| match is_watched(
        procfs::voice(pid),
        candidate,
        procfs::voice(seen.pid),
        seen.fd,
        fd,
        skip,
    ) {
        Ok(is) => Ok(is),
        Err(Errno::EBADF | Errno::ESRCH) => Ok(false),
        Err(e) => Err(e),
    };
    let gone = |e: Errno| match e {
        Errno::ENOENT => Ok(Found::Gone),
        e => Err(No::new(format!("is an epoll set that cannot be examined ({e})"), "run cr as root")),
    };
    for holder in &set.members {
        match here(holder.pid, fd) {
            Ok(false) => {}
            Ok(true) => {
                let all = groups.iter().flat_map(|g| &g.members);
                let found = all.into_iter().find(|s| s.pid == holder.pid && s.fd == fd);
                return Ok(found.map_or(Found::Gone, Found::There));
            }
            Err(e) => return gone(e),
        }
    }
    for group in groups {
        match here(group.first().pid, group.first().fd) {
            Ok(false) => {}
            Ok(true) => return Ok(Found::Elsewhere(group.first())),
            Err(e) => return gone(e),
        }
    }
    // Closed by the job a moment ago, while we had a duplicate: with that it leaves the set, if not at once.
    for _ in 0..LOOKS {
        let own = std::process::id() as i32;
        if procfs::descriptors(own).is_ok_and(|fds| fds.iter().any(|fd| matches!(here(own, *fd), Ok(true)))) {
            return Ok(Found::Gone);
        }
        if here(seen.pid, seen.fd) == Err(Errno::ENOENT) {
            return Ok(Found::Gone);
        }
        sleep(BETWEEN_LOOKS);
    }
    let others = procfs::processes().filter(|pid| groups.iter().all(|g| g.members.iter().all(|s| s.pid != *pid)));
    let other = others.into_iter().find(|pid| {
        procfs::descriptors(*pid).is_ok_and(|fds| fds.iter().any(|fd| matches!(here(*pid, *fd), Ok(true))))
    });
    let who = other.map_or("no process of the job".to_owned(), |pid| format!("only {}", procfs::who(pid)));
    let why = format!("is an epoll set that watches a file, once fd {fd}, which {who} has open any more");
    Err(No::new(why, "have the job remove it from the set (EPOLL_CTL_DEL) before it closes the descriptor"))
}

/// How a file is brought to report, or why it cannot be.
fn trigger(
    holders: &[Holder<'_>],
    seen: &Seen,
    description: &Description,
    number: i32,
) -> std::result::Result<Trigger, No> {
    match description {
        Description::Timerfd(_) => return Ok(Trigger::Expiry),
        // Whether these are ready depends on the restore, or on who asks.
        Description::Signalfd(_) | Description::Epoll(_) | Description::Stdio(_) | Description::Terminal(_) => {}
        late if late.is_late() => {}
        other => {
            let ready = survey::fetch(holders, seen.pid, seen.fd).is_ok_and(|fd| {
                let mut polled = [PollFd::new(fd.as_fd(), PollFlags::all())];
                poll(&mut polled, PollTimeout::ZERO).is_ok_and(|n| n > 0)
            });
            if ready {
                return Ok(Trigger::Nothing);
            }
            if matches!(other, Description::Pipe(end) if readable(end.flags)) {
                return Ok(Trigger::Byte);
            }
        }
    }
    let what = description.kind();
    let why = format!("is an epoll set in which a one-shot watch of fd {number} ({what}) waits to be armed again");
    Err(No::new(why, "wait until the job has armed it again (EPOLL_CTL_MOD)"))
}

impl Epoll {
    /// Makes it, empty.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let failed = |e: nix::Error| Error::system("making an epoll set of the job", e);
        let fd = events::epoll(libc::EPOLL_CLOEXEC).map_err(failed)?;
        if self.busy_poll != 0 {
            events::set_busy_poll(fd.as_fd(), self.busy_poll).map_err(failed)?;
        }
        set_flags(fd.as_fd(), self.flags).map_err(failed)?;
        Ok(fd)
    }
}

impl Watch {
    /// `struct epoll_event` with which it is added.
    pub(super) fn event(&self) -> [u8; 12] {
        // Whatever it may be ready for, where it is to report at once.
        const ANYTHING: u32 = 0x7df;
        let events = if self.spent.is_some() { self.events | ANYTHING } else { self.events };
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&events.to_le_bytes());
        bytes[4..].copy_from_slice(&self.data.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fdinfo_is_parsed() {
        let line = Line::parse("tfd:       12 events: c000001d data: ffffffffffffffff  pos:0 ino:61af sdev:7").unwrap();
        assert_eq!((line.fd, line.events, line.data), (12, 0xc000_001d, u64::MAX));
        assert!(Line::parse("pos:\t0").is_none());
    }
}
