//! What is queued in both directions of a connection. It is looked at and left where it is.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{IPPROTO_TCP, SOL_SOCKET};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::{options, phase};
use crate::error::{Error, Result};
use crate::sys::fd::readable_bytes;
use crate::sys::tcp::{Guard, REPAIR_ON, unacknowledged};

/// Values of `TCP_REPAIR_QUEUE` (`linux/tcp.h`).
pub(super) const NO_QUEUE: i32 = 0;
pub(super) const RECEIVE_QUEUE: i32 = 1;
pub(super) const SEND_QUEUE: i32 = 2;

/// An end whose other end is in the job too.
pub(super) struct Half<'a> {
    pub(super) inode: u64,
    pub(super) other: u64,
    pub(super) fd: BorrowedFd<'a>,
}

/// What is queued at one end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Queues {
    /// What arrived and was not read.
    pub(super) received: Vec<u8>,
    /// What was sent and has not arrived.
    pub(super) sent: Vec<u8>,
}

/// Reads the queues of these ends, of which both of each connection must be there, while the job stands still.
pub(super) fn read(halves: &[Half<'_>]) -> Result<HashMap<u64, Queues>> {
    let failed = |e: Errno| Error::system("looking into the queues of a TCP socket of the job", e);
    let mut busy = HashMap::new();
    for half in halves {
        // What was acknowledged has arrived: to be looked at before what has arrived.
        busy.insert(half.inode, unacknowledged(half.fd).map_err(failed)?);
    }
    let is_busy = |h: &&Half<'_>| busy[&h.inode] > 0 || busy.get(&h.other).is_some_and(|n| *n > 0);
    let (busy_ones, idle): (Vec<_>, Vec<_>) = halves.iter().partition(is_busy);
    let mut all = HashMap::new();
    for half in idle {
        let received = unread(half.fd).map_err(failed)?;
        all.insert(half.inode, Queues { received, sent: Vec::new() });
    }
    if busy_ones.is_empty() {
        return Ok(all);
    }
    let reuse = |h: &&Half<'_>| (h.fd.as_raw_fd(), options::int(h.fd, SOL_SOCKET, libc::SO_REUSEADDR));
    let guard = Guard::post(&busy_ones.iter().map(reuse).collect::<Vec<_>>()).map_err(failed)?;
    let raw = look_under_repair(&busy_ones, &busy);
    guard.dismiss().map_err(failed)?;
    let raw = raw?;
    for half in &busy_ones {
        let own = &raw[&half.inode];
        let missing = match raw.get(&half.other) {
            Some(other) => own.sent_up_to.wrapping_sub(other.received_up_to) as usize,
            None => own.sent.len(),
        };
        let Some(arrived) = own.sent.len().checked_sub(missing) else {
            return Err(failed(Errno::EAGAIN));
        };
        let queues = Queues { received: own.received.clone(), sent: own.sent[arrived..].to_vec() };
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
}

/// The sending queues come first: what arrives meanwhile is then in both, and can be told by the numbers.
fn look_under_repair(halves: &[&Half<'_>], unacknowledged: &HashMap<u64, usize>) -> Result<HashMap<u64, Raw>> {
    let failed = |e: Errno| Error::system("reading the queues of a TCP socket of the job (TCP_REPAIR)", e);
    for half in halves {
        options::set_int(half.fd, IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_ON).map_err(failed)?;
    }
    let mut all: HashMap<u64, Raw> = HashMap::new();
    for half in halves {
        choose(half.fd, SEND_QUEUE).map_err(failed)?;
        let mut sent = vec![0; unacknowledged[&half.inode]];
        if !sent.is_empty() {
            let n = match peek(half.fd, &mut sent) {
                // All of it was acknowledged meanwhile.
                Err(Errno::EAGAIN) => 0,
                other => other.map_err(failed)?,
            };
            sent.truncate(n);
        }
        let last = options::int(half.fd, IPPROTO_TCP, libc::TCP_QUEUE_SEQ) as u32;
        // Under repair, what is in this queue would not be sent, should the other end ask for it.
        choose(half.fd, NO_QUEUE).map_err(failed)?;
        let end = u32::from(phase::is_ended(phase_of(half.fd)));
        all.insert(half.inode, Raw { sent, sent_up_to: last.wrapping_sub(end), ..Raw::default() });
    }
    for half in halves {
        let raw = all.get_mut(&half.inode).expect("inserted above");
        choose(half.fd, RECEIVE_QUEUE).map_err(failed)?;
        let number = || {
            let end = u32::from(phase::has_heard_end(phase_of(half.fd)));
            (options::int(half.fd, IPPROTO_TCP, libc::TCP_QUEUE_SEQ) as u32).wrapping_sub(end)
        };
        loop {
            raw.received_up_to = number();
            raw.received = unread(half.fd).map_err(failed)?;
            if number() == raw.received_up_to {
                break;
            }
        }
        choose(half.fd, NO_QUEUE).map_err(failed)?;
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
