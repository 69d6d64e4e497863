//! TCP sockets of the job: new, bound and listening ones, connections within the job, and those with somebody outside.
//!
//! What they are is asked of each through a duplicate of its descriptor, and of all at once (`diag`) where a connection has an
//! end that no process has. What is unread is looked at and left where it is. What was sent and has not arrived lies in a
//! queue that the kernel shows only under repair ([`crate::sys::tcp`]), as it does the numbers of the packets; so that is read in
//! a step of its own ([`Connections`]), of connections where it is needed: those within the job where something is on its way,
//! and all with somebody outside. The threads that could use those are parked meanwhile ([`crate::remote::park`]).
//!
//! A restore makes connections under repair (`repair`). Where both ends are in the job (`pair`), what was on its way is sent
//! again; numbers and timestamps of the packets are others then, which neither end can see. One end alone gets the numbers that the
//! other end goes on with, and is silent until the job runs ([`Revived`]); or it is made as one that was reset, if the user wants
//! that ([`Policy`]).

pub(super) mod capture;
mod diag;
mod ended;
mod forge;
pub mod options;
mod pair;
mod queue;
pub mod repair;
mod restore;
mod revived;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::net::filters::Filter;
use super::{Description, Files};

pub use capture::Plan;
pub use queue::{Connections, forsake};
pub(super) use restore::{check, open};
pub use revived::Revived;

/// What becomes of connections with somebody outside of the job.
#[derive(
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They go on, if the other end is still there.
    #[default]
    Keep,
    /// The program sees that they were reset.
    Close,
    /// There must be none.
    Refuse,
}

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
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
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
    /// What it lets in.
    pub filter: Option<Filter>,
}

/// What a socket is to others.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Alone,
    /// It listens, with room for so many clients that wait.
    Listening(u32),
    /// It is connected.
    Connected(Box<Connection>),
    /// It is being connected to that address.
    Connecting(SocketAddr),
    /// It was connected.
    Ended(Ended),
}

/// A connection that is no more.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What was not read.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub unread: Vec<u8>,
    /// Not both ends have ended it: there is an error of which the program has not heard. Which one, the kernel tells only once, so
    /// it will be the usual one: that the connection was reset.
    pub failed: bool,
}

/// One end of a connection.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The address of the other end.
    pub remote: SocketAddr,
    /// Who is there.
    pub other: Other,
    /// Its state, one of [`phase`].
    pub phase: u8,
    /// `shutdown(SHUT_RD)`.
    pub deaf: bool,
    /// Where it stands; with somebody outside only if it is to go on.
    pub numbers: Option<repair::Numbers>,
    /// What arrived and was not read.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub received: Vec<u8>,
    /// What was sent and has not arrived.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub sent: Vec<u8>,
}

/// Who is at the other end.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// The socket of that inode.
    Own(u64),
    /// Nobody any more.
    Gone,
    /// Nobody yet: it waits to be accepted by the listener of that inode.
    Waiting(u64),
    /// Somebody outside of the job.
    Outside,
}

impl Inet {
    /// The inode of the other end of its connection, if that is in the job too.
    pub(super) fn other_end(&self) -> Option<u64> {
        match &self.state {
            State::Connected(connection) => match connection.other {
                Other::Own(other) => Some(other),
                Other::Gone | Other::Waiting(_) | Other::Outside => None,
            },
            _ => None,
        }
    }

    /// Whether it listens at a port at which others may listen too.
    pub(super) fn shares_port(&self) -> bool {
        let shares = |s: &options::Setting| {
            (s.level, s.name) == (libc::SOL_SOCKET, libc::SO_REUSEPORT) && s.value.iter().any(|b| *b != 0)
        };
        matches!(self.state, State::Listening(_)) && self.options.iter().any(shares)
    }

    /// What it is called in messages.
    pub(super) fn what(&self) -> String {
        match &self.state {
            State::Connected(c) => format!("the TCP connection of {} with {}", self.local, c.remote),
            State::Listening(_) => format!("the TCP socket that listens at {}", self.local),
            State::Connecting(remote) => {
                format!("the TCP socket of {} that is being connected with {remote}", self.local)
            }
            State::Ended(_) => format!("the TCP socket bound to {} whose connection has ended", self.local),
            State::Alone => format!("the TCP socket bound to {}", self.local),
        }
    }

    fn connection(&self) -> Option<&Connection> {
        match &self.state {
            State::Connected(connection) => Some(connection),
            _ => None,
        }
    }

    /// Whether it is connected with somebody outside of the job.
    pub(super) fn leads_out(&self) -> bool {
        self.outside().is_some()
    }

    /// Whether that is one on which nothing is queued, and that goes on. The clock in its numbers may stand still as long as
    /// nothing is sent.
    pub(super) fn is_idle_outside(&self) -> bool {
        self.outside().is_some_and(|c| c.numbers.is_some() && c.received.is_empty() && c.sent.is_empty())
    }

    /// The same, as long as its queues were not read.
    pub(super) fn without_numbers(&self) -> Self {
        let mut all = self.clone();
        if let State::Connected(connection) = &mut all.state {
            connection.numbers = connection.numbers.filter(|_| connection.other != Other::Outside);
        }
        all
    }

    /// Its connection, if that is with somebody outside of the job.
    fn outside(&self) -> Option<&Connection> {
        self.connection().filter(|c| c.other == Other::Outside)
    }
}

/// The sockets among the descriptions, with their index.
fn all(files: &Files) -> impl Iterator<Item = (usize, &Inet)> {
    files.descriptions.iter().enumerate().filter_map(|(index, d)| match d {
        Description::Inet(inet) => Some((index, &**inet)),
        _ => None,
    })
}

/// The first socket that refers to what is not in the record.
pub(super) fn leads_nowhere(files: &Files) -> Option<String> {
    let by_inode: HashMap<u64, &Inet> = all(files).map(|(_, s)| (s.inode, s)).collect();
    let stray = all(files).map(|(_, socket)| socket).find(|socket| {
        let State::Connected(connection) = &socket.state else { return false };
        match connection.other {
            Other::Own(other) => by_inode.get(&other).is_none_or(|o| !matches!(o.state, State::Connected(_))),
            Other::Waiting(listener) => by_inode.get(&listener).is_none_or(|l| !matches!(l.state, State::Listening(_))),
            Other::Gone | Other::Outside => false,
        }
    });
    stray.map(Inet::what)
}
