//! What is queued in both directions of a connection. It is looked at and left where it is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{IPPROTO_TCP, SOL_SOCKET};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::super::{Description, Files, Holder, Table, unix};
use super::repair::{self, Numbers};
use super::{Inet, Other, State, all, options, phase};
use crate::error::{Error, Refusal, Result};
use crate::fault;
use crate::sys::fd::readable_bytes;
use crate::sys::parked::Parked;
use crate::sys::tcp::{Guard, REPAIR_ON, unacknowledged};

/// Values of `TCP_REPAIR_QUEUE` (`linux/tcp.h`).
pub(super) const NO_QUEUE: i32 = 0;
pub(super) const RECEIVE_QUEUE: i32 = 1;
pub(super) const SEND_QUEUE: i32 = 2;

/// The connections of a stopped job, whose queues were not read yet.
#[derive(Debug, Default)]
pub struct Connections {
    /// Duplicates of their descriptors, by inode.
    fds: HashMap<u64, OwnedFd>,
    busy: Busy,
    /// Those with somebody outside are to go on.
    keeps: bool,
}

/// Ends that must be under repair, since something was sent from one to the other and not acknowledged, or the other is outside:
/// how many bytes.
type Busy = HashMap<u64, usize>;

/// A connected end: its inode, that of its other end if that is in the job, too, and a descriptor.
struct Half<'a> {
    inode: u64,
    other: Option<u64>,
    /// Its other end is outside of the job, and may go on with it.
    goes_on: bool,
    fd: BorrowedFd<'a>,
}

impl Connections {
    /// Of these sockets, by inode.
    pub(super) fn of(fds: HashMap<u64, OwnedFd>, keeps: bool) -> Self {
        Self { fds, busy: Busy::new(), keeps }
    }

    /// Those with somebody outside of the job: both ends of each, the job's first.
    pub fn outside(files: &Files) -> Vec<(SocketAddr, SocketAddr)> {
        all(files).filter_map(|(_, socket)| Some((socket.local, socket.outside()?.remote))).collect()
    }

    /// Looks on which of them something is on its way. Only the two ends of such a one are put under repair, and those with somebody
    /// outside.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn find_busy(&mut self, files: &Files) -> Result<()> {
        let mut sent = Busy::new();
        let halves = self.halves(files);
        for half in &halves {
            // What was acknowledged has arrived: to be looked at before what has arrived.
            sent.insert(half.inode, unacknowledged(half.fd).map_err(failed("looking into the queue"))?);
        }
        let is_busy = |h: &&Half<'_>| {
            h.goes_on || h.other.is_some_and(|o| sent[&h.inode] > 0 || sent.get(&o).is_some_and(|n| *n > 0))
        };
        self.busy = halves.iter().filter(is_busy).map(|h| (h.inode, sent[&h.inode])).collect();
        Ok(())
    }

    /// Those that are not among `others`.
    pub(in super::super) fn but(mut self, others: &Self) -> Self {
        self.fds.retain(|inode, _| !others.fds.contains_key(inode));
        self
    }

    /// Whether one of that inode is among them.
    pub(in super::super) fn has(&self, inode: u64) -> bool {
        self.fds.contains_key(&inode)
    }

    /// One in which something is queued.
    pub(in super::super) fn busy_one(&self, files: &Files) -> Option<u64> {
        let is_quiet = |h: &Half<'_>| unacknowledged(h.fd) == Ok(0) && readable_bytes(h.fd) == Ok(0);
        self.halves(files).iter().find(|h| !is_quiet(h)).map(|h| h.inode)
    }

    /// Descriptions of those that are busy.
    fn busy<'f>(&self, files: &'f Files) -> impl Iterator<Item = (usize, &'f Inet)> {
        all(files).filter(|(_, socket)| self.busy.contains_key(&socket.inode))
    }

    /// The processes that could use one that is busy.
    pub fn users(&self, files: &Files) -> BTreeSet<i32> {
        let busy: HashSet<u32> = self.busy(files).map(|(index, _)| index as u32).collect();
        // What waits in a message, any process may be about to receive.
        let is_in_message = files.descriptions.iter().any(|d| match d {
            Description::Unix(socket) => socket.queue.iter().flat_map(|m| &m.rights).any(|right| busy.contains(right)),
            _ => false,
        });
        let has = |t: &&Table| is_in_message || t.rows.iter().any(|row| busy.contains(&row.description));
        files.tables.iter().filter(has).flat_map(|t| t.pids.iter().copied()).collect()
    }

    /// Of those that are busy, the ones that a process outside of the job has open too: it runs.
    pub fn busy_outside(&self, files: &Files, holders: &[Holder<'_>]) -> Vec<Refusal> {
        let places =
            self.busy(files).flat_map(|(i, s)| files.holders(i).into_iter().map(|(pid, fd)| (pid, fd, s.inode)));
        unix::shared_with_others(&places.collect::<Vec<_>>(), holders, true)
    }

    /// Reads the queues into the record. `parked` are all threads that could use a socket that is busy.
    ///
    /// # Errors
    /// When the kernel does not show them.
    pub fn read(&self, files: &mut Files, parked: &[Parked]) -> Result<()> {
        let mut queues = read(&self.halves(files), &self.busy, parked)?;
        for description in &mut files.descriptions {
            if let Description::Inet(socket) = description
                && let State::Connected(connection) = &mut socket.state
                && let Some(queues) = queues.remove(&socket.inode)
            {
                (connection.received, connection.sent) = (queues.received, queues.sent);
                if let Some((numbers, phase)) = queues.stands {
                    (connection.numbers, connection.phase) = (Some(numbers), phase);
                }
            }
        }
        Ok(())
    }

    /// Those with somebody outside that have ended while they were looked at: process and descriptor.
    pub fn ended_meanwhile(files: &Files) -> Vec<(i32, i32)> {
        let ended = |s: &Inet| s.outside().is_some_and(|c| c.phase == phase::CLOSE);
        all(files).filter(|(_, s)| ended(s)).flat_map(|(index, _)| files.holders(index)).collect()
    }

    /// Those with somebody outside: duplicates of ours.
    pub fn into_outside(mut self, files: &Files) -> Vec<OwnedFd> {
        let inodes = all(files).filter(|(_, s)| s.outside().is_some()).map(|(_, s)| s.inode);
        inodes.collect::<Vec<_>>().iter().filter_map(|inode| self.fds.remove(inode)).collect()
    }

    fn halves(&self, files: &Files) -> Vec<Half<'_>> {
        let half = |(_, socket): (usize, &Inet)| {
            let State::Connected(connection) = &socket.state else { return None };
            let other = match connection.other {
                Other::Own(other) => Some(other),
                _ => None,
            };
            let goes_on = connection.other == Other::Outside && self.keeps;
            Some(Half { inode: socket.inode, other, goes_on, fd: self.fds.get(&socket.inode)?.as_fd() })
        };
        all(files).filter_map(half).collect()
    }
}

/// Closes connections that nobody has any more but we, without a word to the other end.
///
/// # Errors
/// What the kernel says: then the other end hears of it.
pub fn forsake(all: Vec<OwnedFd>) -> Result<()> {
    let quietly = |fd: &OwnedFd| options::set_int(fd.as_fd(), IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_ON);
    let result = all.iter().try_for_each(quietly).map_err(failed("giving up"));
    drop(all);
    result
}

fn failed(what: &str) -> impl Fn(Errno) -> Error {
    move |e| Error::system(format!("{what} of a TCP socket of the job"), e)
}

/// What is queued at one end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Queues {
    /// What arrived and was not read.
    received: Vec<u8>,
    /// What was sent and has not arrived.
    sent: Vec<u8>,
    /// With somebody outside: where the connection stands, and its state.
    stands: Option<(Numbers, u8)>,
}

/// Reads the queues of these ends, of which both of each connection must be there, while the job stands still.
fn read(halves: &[Half<'_>], busy: &Busy, parked: &[Parked]) -> Result<HashMap<u64, Queues>> {
    let (busy_ones, idle): (Vec<_>, Vec<_>) = halves.iter().partition(|h| busy.contains_key(&h.inode));
    let mut all = HashMap::new();
    for half in idle {
        let received = unread(half.fd).map_err(failed("looking into the queue"))?;
        all.insert(half.inode, Queues { received, ..Queues::default() });
    }
    if busy_ones.is_empty() {
        return Ok(all);
    }
    let reuse = |h: &&Half<'_>| (h.fd.as_raw_fd(), options::int(h.fd, SOL_SOCKET, libc::SO_REUSEADDR));
    let sockets = busy_ones.iter().map(reuse).collect::<Vec<_>>();
    let guard = Guard::post(&sockets, parked).map_err(failed("guarding the repair"))?;
    let raw = look_under_repair(&busy_ones, busy);
    guard.dismiss().map_err(failed("ending the repair"))?;
    let raw = raw?;
    for half in &busy_ones {
        let own = &raw[&half.inode];
        let missing = match half.other.and_then(|other| raw.get(&other)) {
            Some(other) => own.sent_up_to.wrapping_sub(other.received_up_to) as usize,
            None => own.sent.len(),
        };
        let Some(arrived) = own.sent.len().checked_sub(missing) else {
            return Err(failed("comparing the queues")(Errno::EAGAIN));
        };
        let stands = own.numbers.map(|numbers| (numbers, own.phase));
        let queues = Queues { received: own.received.clone(), sent: own.sent[arrived..].to_vec(), stands };
        all.insert(half.inode, queues);
    }
    Ok(all)
}

/// The queues of one end as they are, and the sequence numbers behind their last bytes.
#[derive(Default)]
struct Raw {
    received: Vec<u8>,
    received_up_to: u32,
    /// What was not acknowledged: the first of it may have arrived.
    sent: Vec<u8>,
    sent_up_to: u32,
    /// With somebody outside.
    numbers: Option<Numbers>,
    phase: u8,
}

/// The sending queues come first: what arrives meanwhile is then in both, and can be told by the numbers.
fn look_under_repair(halves: &[&Half<'_>], unacknowledged: &HashMap<u64, usize>) -> Result<HashMap<u64, Raw>> {
    let failed = failed("reading the queues (TCP_REPAIR)");
    for half in halves {
        options::set_int(half.fd, IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_ON).map_err(&failed)?;
    }
    fault::point("collect.sockets")?;
    let mut all: HashMap<u64, Raw> = HashMap::new();
    for half in halves {
        choose(half.fd, SEND_QUEUE).map_err(&failed)?;
        let mut sent = vec![0; unacknowledged[&half.inode]];
        if !sent.is_empty() {
            let n = match peek(half.fd, &mut sent) {
                // All of it was acknowledged meanwhile.
                Err(Errno::EAGAIN) => 0,
                other => other.map_err(&failed)?,
            };
            sent.truncate(n);
        }
        let last = options::int(half.fd, IPPROTO_TCP, libc::TCP_QUEUE_SEQ) as u32;
        // Under repair, what is in this queue would not be sent, should the other end ask for it.
        choose(half.fd, NO_QUEUE).map_err(&failed)?;
        let end = u32::from(phase::is_ended(phase_of(half.fd)));
        all.insert(half.inode, Raw { sent, sent_up_to: last.wrapping_sub(end), ..Raw::default() });
    }
    for half in halves {
        let raw = all.get_mut(&half.inode).expect("inserted above");
        choose(half.fd, RECEIVE_QUEUE).map_err(&failed)?;
        let stand = || {
            let phase = phase_of(half.fd);
            let end = u32::from(phase::has_heard_end(phase));
            (phase, (options::int(half.fd, IPPROTO_TCP, libc::TCP_QUEUE_SEQ) as u32).wrapping_sub(end))
        };
        loop {
            (raw.phase, raw.received_up_to) = stand();
            raw.received = unread(half.fd).map_err(&failed)?;
            if stand() == (raw.phase, raw.received_up_to) {
                break;
            }
        }
        choose(half.fd, NO_QUEUE).map_err(&failed)?;
        if half.goes_on {
            // What is acknowledged meanwhile is sent then: looked at last, no more of it is unsent than was when it was read.
            let numbers = Numbers::read(half.fd).and_then(|n| Ok((n, repair::unsent_bytes(half.fd, raw.phase)?)));
            let (numbers, unsent) = numbers.map_err(&failed)?;
            raw.numbers = Some(Numbers {
                sent_up_to: raw.sent_up_to,
                received_up_to: raw.received_up_to,
                unsent: unsent.min(raw.sent.len() as u32),
                ..numbers
            });
        }
    }
    Ok(all)
}

pub(super) fn choose(fd: BorrowedFd<'_>, queue: i32) -> nix::Result<()> {
    options::set_int(fd, IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue)
}

/// The state of a socket: first byte of `struct tcp_info`.
pub(super) fn phase_of(fd: BorrowedFd<'_>) -> u8 {
    crate::sys::socket::option(fd, IPPROTO_TCP, libc::TCP_INFO).map_or(phase::CLOSE, |info| info[0])
}

/// What arrived and was not read.
pub(super) fn unread(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0; readable_bytes(fd)?];
    // With nothing there, an error would be reported, and then it would be gone.
    let n = if bytes.is_empty() { 0 } else { peek(fd, &mut bytes)? };
    bytes.truncate(n);
    Ok(bytes)
}

fn peek(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> nix::Result<usize> {
    recv(fd.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)
}
