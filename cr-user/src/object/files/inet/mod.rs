//! TCP sockets of the job: new, bound and listening ones, and connections of which both ends are in the job.
//!
//! What they are is asked of each through a duplicate of its descriptor, and of all at once (`diag`) where a connection has an
//! end that no process has. What is unread is looked at and left where it is. What was sent and has not arrived lies in a
//! queue that the kernel shows only under repair ([`crate::sys::tcp`]), and is read only of connections where there is any; the
//! threads that could use those are parked meanwhile ([`crate::remote::park`]). So it is read in a step of its own ([`Connections`]).
//!
//! A restore connects both ends anew, by a listener of its own at the address of one of them, sends again what was queued, and
//! closes what was closed. Numbers and timestamps of the packets are others then, which neither end can see.

pub(super) mod capture;
mod diag;
pub mod options;
mod queue;
mod restore;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::{Description, Files, not_here};
use crate::error::Result;

pub use queue::Connections;
pub(super) use restore::{check, open};

/// States of a connection (`net/tcp_states.h`).
pub mod phase {
    /// Connected.
    pub const ESTABLISHED: u8 = 1;
    /// Connecting.
    pub const SYN_SENT: u8 = 2;
    /// Being connected to.
    pub const SYN_RECV: u8 = 3;
    /// We ended it, and that was not acknowledged.
    pub const FIN_WAIT1: u8 = 4;
    /// We ended it.
    pub const FIN_WAIT2: u8 = 5;
    /// Not connected.
    pub const CLOSE: u8 = 7;
    /// The other end ended it.
    pub const CLOSE_WAIT: u8 = 8;
    /// The other end ended it, then we did, and that was not acknowledged.
    pub const LAST_ACK: u8 = 9;
    /// It listens.
    pub const LISTEN: u8 = 10;
    /// Both ended it, and ours was not acknowledged.
    pub const CLOSING: u8 = 11;

    /// Whether our end was sent.
    pub(super) fn is_ended(phase: u8) -> bool {
        matches!(phase, FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK)
    }

    /// Whether the other end's end arrived.
    pub(super) fn has_heard_end(phase: u8) -> bool {
        matches!(phase, CLOSE_WAIT | LAST_ACK | CLOSING)
    }
}

/// An end of a connection: of an IPv4 address in the clothes of IPv6, the IPv4 address.
type End = (IpAddr, u16);

fn end_of(address: SocketAddr) -> End {
    (address.ip().to_canonical(), address.port())
}

/// A socket.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Inet {
    /// Its inode as it was: others in the record refer to it by that.
    pub inode: u64,
    /// `AF_INET` or `AF_INET6`.
    pub family: i32,
    /// Status flags (`O_*`).
    pub flags: i32,
    /// User, group and permissions that `fstat` shows.
    pub owner: (u32, u32, u32),
    /// Its own address; with port 0 if it was not bound to any.
    pub local: SocketAddr,
    /// What it is to others.
    pub state: State,
    /// Its options.
    pub options: Vec<options::Setting>,
}

/// What a socket is to others.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Alone,
    /// It listens, with room for so many clients that wait.
    Listening(u32),
    /// It is connected.
    Connected(Box<Connection>),
}

/// One end of a connection.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The address of the other end.
    pub remote: SocketAddr,
    /// Who is there.
    pub other: Other,
    /// Its state, one of [`phase`].
    pub phase: u8,
    /// `shutdown(SHUT_RD)`.
    pub deaf: bool,
    /// What arrived and was not read.
    pub received: Vec<u8>,
    /// What was sent and has not arrived.
    pub sent: Vec<u8>,
}

/// Who is at the other end.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// The socket of that inode.
    Own(u64),
    /// Nobody any more.
    Gone,
    /// Nobody yet: it waits to be accepted by the listener of that inode.
    Waiting(u64),
}

impl Inet {
    /// The inode of the other end of its connection, if that is in the job too.
    pub(super) fn other_end(&self) -> Option<u64> {
        match &self.state {
            State::Connected(connection) => match connection.other {
                Other::Own(other) => Some(other),
                Other::Gone | Other::Waiting(_) => None,
            },
            _ => None,
        }
    }

    /// What it is called in messages.
    fn what(&self) -> String {
        match &self.state {
            State::Connected(c) => format!("the TCP connection of {} with {}", self.local, c.remote),
            State::Listening(_) => format!("the TCP socket that listens at {}", self.local),
            State::Alone => format!("the TCP socket bound to {}", self.local),
        }
    }
}

/// The sockets among the descriptions, with their index.
fn all(files: &Files) -> impl Iterator<Item = (usize, &Inet)> {
    files.descriptions.iter().enumerate().filter_map(|(index, d)| match d {
        Description::Inet(inet) => Some((index, &**inet)),
        _ => None,
    })
}

/// Whether everything that the sockets refer to is in the record.
fn validate(files: &Files) -> Result<()> {
    let by_inode: HashMap<u64, &Inet> = all(files).map(|(_, s)| (s.inode, s)).collect();
    for (_, socket) in all(files) {
        let State::Connected(connection) = &socket.state else { continue };
        let known = match connection.other {
            Other::Own(other) => by_inode.get(&other).is_some_and(|o| matches!(o.state, State::Connected(_))),
            Other::Waiting(listener) => by_inode.get(&listener).is_some_and(|l| matches!(l.state, State::Listening(_))),
            Other::Gone => true,
        };
        if !known {
            let why = "its record refers to what is not in the checkpoint".to_owned();
            return Err(not_here(socket.what(), why, "restore an older checkpoint with --id"));
        }
    }
    Ok(())
}
