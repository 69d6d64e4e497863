//! Unix-domain sockets of the job: streams, datagrams and packets in sequence, with what is queued in them.
//!
//! What they are is asked in three ways: of all sockets at once (`diag`: names, ends, who waits), of each through a duplicate
//! of its descriptor ([`options`]), and by looking into its queue without taking anything out ([`queue`]). Descriptors that lie
//! in a queue and are open nowhere else are described as if the job had them in a table.
//!
//! A restore (`restore`) makes them once there are the processes: the kernel notes who made a pair, who connected and who
//! listened, and shows that to the other end (`SO_PEERCRED`). So each of these calls is made by the process that made it then.
//! Who has ended meanwhile is stood in for by a process with its number, where that is free.

mod acts;
pub(super) mod capture;
mod diag;
pub mod external;
pub mod name;
pub mod options;
mod outside;
pub mod queue;
mod restore;

use std::collections::HashSet;

use super::net::filters::Filter;
use super::{Description, Files};
use crate::error::Result;
use crate::remote::Call;

pub(super) use outside::{other_owner, owner_of, shared_with_others};
pub(super) use restore::make;

/// A socket.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Unix {
    /// Its inode as it was: others in the record refer to it by that.
    pub inode: u64,
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: i32,
    /// Status flags (`O_*`).
    pub flags: i32,
    /// User, group and permissions that `fstat` shows.
    pub owner: (u32, u32, u32),
    /// Its name.
    pub name: Option<name::Name>,
    /// What it is to others.
    pub state: State,
    /// `RCV_SHUTDOWN` (1), `SEND_SHUTDOWN` (2).
    pub shutdown: u8,
    /// Who is at the other end, as the kernel noted it.
    pub peer: Option<Peer>,
    /// Its options.
    pub options: Vec<options::SocketOption>,
    /// What it lets in.
    pub filter: Option<Filter>,
    /// What was sent to it and not yet read.
    pub queue: Vec<queue::Message>,
}

/// What a socket is to others.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Alone,
    /// It listens.
    Listening(Listening),
    /// It waits to be accepted by a listener. By whom it is taken to have been connected, as the other end will see it.
    Waiting(Peer),
    /// It is connected to the socket of that inode.
    Connected(u64),
    /// It was connected, and the other end was closed.
    Orphaned(Orphaned),
    /// It is connected to somebody outside of the job, to whom it will be connected again.
    External(external::External),
}

/// Who may connect, and has.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// How many clients may wait.
    pub backlog: u32,
    /// The clients that wait: their inodes.
    pub waiting: Vec<u64>,
}

/// What is left of the other end.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Orphaned {
    /// The name of the other end, empty if it had none.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub peer_name: Vec<u8>,
    /// The other end was closed with something unread in it, and the job was not told yet (`ECONNRESET`).
    pub reset: bool,
}

/// A process, as it is shown to the other end of a socket.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its pid.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// Processes that make calls for a restore: those of the job, which do nothing else yet, and others made for the purpose.
pub trait Crew {
    /// Has the process of that number make calls, which all must succeed; `bytes` will lie at [`Crew::data`].
    ///
    /// # Errors
    /// The first call that failed.
    fn run(&mut self, pid: i32, calls: Vec<Call>, bytes: &[u8], what: &str) -> Result<Vec<u64>>;

    /// Where the bytes of calls lie in the process of that number, which is made if need be.
    ///
    /// # Errors
    /// When there is no such process and none can be made.
    fn data(&mut self, pid: i32) -> Result<u64>;

    /// The number of the process that stands for the one of that number: the same, unless it was taken.
    fn number(&self, pid: i32) -> i32;

    /// Reads bytes at [`Crew::data`].
    ///
    /// # Errors
    /// When the process died.
    fn read(&mut self, pid: i32, bytes: &mut [u8]) -> Result<()>;

    /// A duplicate of a descriptor of the process.
    ///
    /// # Errors
    /// When it has no such descriptor.
    fn fetch(&mut self, pid: i32, fd: i32) -> Result<std::os::fd::OwnedFd>;
}

impl Unix {
    /// What it is called in messages.
    fn what(&self) -> String {
        match &self.name {
            Some(name) => format!("the Unix socket {name}"),
            None => format!("the Unix socket [{}]", self.inode),
        }
    }

    /// The inode that it is connected to.
    pub(super) fn other_end(&self) -> Option<u64> {
        match self.state {
            State::Connected(other) => Some(other),
            _ => None,
        }
    }

    fn is_datagram(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
    }
}

/// The sockets among the descriptions, with their index.
fn all(files: &Files) -> impl Iterator<Item = (usize, &Unix)> {
    files.descriptions.iter().enumerate().filter_map(|(index, d)| match d {
        Description::Unix(unix) => Some((index, &**unix)),
        _ => None,
    })
}

/// Every description that lies in a message.
pub(super) fn queued(files: &Files) -> HashSet<usize> {
    let messages = all(files).flat_map(|(_, s)| &s.queue);
    messages.flat_map(|m| &m.rights).map(|right| *right as usize).collect()
}

/// The first socket that refers to what is not in the record.
pub(super) fn leads_nowhere(files: &Files) -> Option<String> {
    let inodes: HashSet<u64> = all(files).map(|(_, s)| s.inode).collect();
    let stray = all(files).map(|(_, socket)| socket).find(|socket| {
        let known = match &socket.state {
            State::Connected(peer) => inodes.contains(peer),
            State::Listening(l) => l.waiting.iter().all(|w| inodes.contains(w)),
            _ => true,
        };
        let mut rights = socket.queue.iter().flat_map(|m| &m.rights);
        !known || rights.any(|r| *r as usize >= files.descriptions.len())
    });
    stray.map(Unix::what)
}

/// Whether the names of the sockets can be had. Nothing is changed.
///
/// # Errors
/// [`crate::error::Error::NotHere`] that names the socket.
pub(super) fn check(files: &Files) -> Result<()> {
    external::check(files)?;
    let named: Vec<_> = all(files).filter(|(_, s)| s.name.is_some()).collect();
    if named.is_empty() {
        return Ok(());
    }
    let shown =
        diag::All::ask().map_err(|e| crate::error::Error::system("asking about the sockets of this machine", e))?;
    named.iter().filter_map(|(_, s)| s.name.as_ref()).try_for_each(|name| name.check(&shown))
}
