//! From the sockets of the job to records, or to the reasons why there can be none.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use libc::{IPPROTO_TCP, SOL_SOCKET};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

use super::super::net::filters;
use super::super::survey::{self, Group};
use super::super::{Holder, No, unix};
use super::diag::{self, Shown};
use super::queue::{self, Connections};
use super::repair::{self, Numbers};
use super::{Connection, End, Ended, Inet, Other, Policy, State, end_of, options, phase};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::socket::{option, polled};

const CLOSE: &str = "have the job close it before the checkpoint";
const TOGETHER: &str =
    "checkpoint both together, give --tcp keep or close, or have the job close it before the checkpoint";
const LATER: &str = "try again in a moment";

/// The sockets of networks that the job has.
pub(in super::super) struct Sockets {
    /// By inode.
    own: HashMap<u64, Own>,
    /// Connections by their own end and the other.
    ends: HashMap<(End, End), u64>,
    /// All of the machine, where that was asked.
    shown: Vec<Shown>,
    /// Of those, connections by both ends.
    shown_ends: HashMap<(End, End), usize>,
    /// The job stands still.
    frozen: bool,
    plan: Plan,
}

/// What is to become of connections with somebody outside, and of the job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Of established ones.
    pub policy: Policy,
    /// The job ends with the checkpoint.
    pub ends: bool,
}

impl Plan {
    /// Whether connections with somebody outside go on with the job.
    pub(in super::super) fn goes_on(self) -> bool {
        !self.ends && self.policy == Policy::Keep
    }
}

struct Own {
    fd: OwnedFd,
    family: i32,
    is_tcp: bool,
    info: Info,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
}

/// What a socket is to the job.
pub(in super::super) enum Found {
    /// One that is restored.
    Own(Box<Inet>),
    /// One end of a connection with somebody outside.
    Outside(No),
}

impl Sockets {
    /// Finds the sockets among the descriptions. `frozen`: the job stands still.
    pub(in super::super) fn of(holders: &[Holder<'_>], groups: &[Group], frozen: bool, plan: Plan) -> Result<Self> {
        let mut own = HashMap::new();
        for group in groups.iter().filter(|g| !g.is_kept && g.first().meta.file_type().is_socket()) {
            let seen = group.first();
            // What a running job has closed meanwhile is no concern; what a frozen one has will be looked at again.
            let Ok(fd) = survey::fetch(holders, seen.pid, seen.fd) else { continue };
            if let Some(socket) = Own::of(fd) {
                own.insert(seen.meta.ino(), socket);
            }
        }
        let connected = own.iter().filter_map(|(inode, s)| Some((s.ends()?, *inode)));
        let mut all =
            Self { ends: connected.collect(), own, shown: Vec::new(), shown_ends: HashMap::new(), frozen, plan };
        let connects = |s: &Own| s.info.phase == phase::SYN_SENT;
        let is_open = |s: &Own| {
            s.info.has_waiting() || connects(s) || s.ends().is_some_and(|(l, r)| !all.ends.contains_key(&(r, l)))
        };
        if all.own.values().any(is_open) {
            let failed = |e| Error::system("asking about the sockets of this machine (sock_diag)", e);
            all.shown = diag::ask().map_err(failed)?;
            all.shown_ends = all.shown.iter().enumerate().map(|(at, s)| ((s.local, s.remote), at)).collect();
        }
        Ok(all)
    }

    /// Whether the other end of a connection with somebody outside is one of these.
    pub(in super::super) fn has_other_end(&self, socket: &Inet) -> bool {
        let outside = socket.outside().filter(|_| !self.ends.is_empty());
        outside.is_some_and(|c| self.ends.contains_key(&(end_of(c.remote), end_of(socket.local))))
    }

    /// Those that are connected. What is queued in them is not in the record yet.
    pub(in super::super) fn into_connections(self) -> Connections {
        let connected = self.own.into_iter().filter(|(_, s)| s.ends().is_some());
        let keeps = self.plan.policy == Policy::Keep;
        Connections::of(connected.map(|(inode, s)| (inode, s.fd)).collect(), keeps)
    }

    /// Says what a socket is, or why it cannot be restored; none if it is of another family.
    pub(in super::super) fn describe(
        &self,
        holders: &[Holder<'_>],
        group: &Group,
    ) -> std::result::Result<Option<Found>, No> {
        let seen = group.first();
        let inode = seen.meta.ino();
        let Some(own) = self.own.get(&inode) else { return Ok(None) };
        let fd = own.fd.as_fd();
        if !own.is_tcp {
            return Ok(None);
        }
        let state = match self.state(inode, own, holders)? {
            Reached::Own(state) => state,
            Reached::Outside(no) => return Ok(Some(Found::Outside(no))),
        };
        own.refuse_what_is_set()?;
        let connected = matches!(state, State::Connected(_));
        let unbound = || if own.family == libc::AF_INET { ([0; 4], 0).into() } else { ([0u8; 16], 0).into() };
        Ok(Some(Found::Own(Box::new(Inet {
            inode,
            family: own.family,
            flags: seen.flags,
            owner: (seen.meta.uid(), seen.meta.gid(), seen.meta.mode() & 0o7777),
            local: own.local.unwrap_or_else(unbound),
            state,
            // Of a running job they are not kept.
            options: if self.frozen { options::read(fd, connected) } else { Vec::new() },
            filter: filters::read(fd)?,
        }))))
    }

    fn state(&self, inode: u64, own: &Own, holders: &[Holder<'_>]) -> std::result::Result<Reached, No> {
        match own.info.phase {
            phase::LISTEN => self.listener(own).map(Reached::Own),
            phase::CLOSE if own.was_connected() => {
                let unread = queue::unread(own.fd.as_fd()).unwrap_or_default();
                Ok(Reached::Own(State::Ended(Ended { unread, failed: own.has_failed() })))
            }
            phase::CLOSE => Ok(Reached::Own(State::Alone)),
            phase::SYN_SENT | phase::SYN_RECV if !self.frozen => Ok(Reached::Own(State::Alone)),
            phase::SYN_SENT => match self.shown.iter().find(|s| s.inode == inode) {
                Some(shown) => Ok(Reached::Own(State::Connecting(SocketAddr::from(shown.remote)))),
                None => Err(No::new(format!("is a TCP socket ({}) that is being connected", own.name()), LATER)),
            },
            phase::SYN_RECV => {
                let why = format!("is a TCP socket ({}) that is being connected", own.name());
                Err(No::new(why, "wait until it is connected, or have the job close it"))
            }
            _ => self.connection(inode, own, holders),
        }
    }

    fn listener(&self, own: &Own) -> std::result::Result<State, No> {
        let is_here = |local: End| {
            own.local.map(end_of).is_some_and(|(ip, port)| port == local.1 && (ip.is_unspecified() || ip == local.0))
        };
        let waits =
            |s: &&Shown| s.inode == 0 && matches!(s.state, phase::ESTABLISHED | phase::CLOSE_WAIT) && is_here(s.local);
        let stranger = self.shown.iter().filter(waits).find(|s| !self.ends.contains_key(&(s.remote, s.local)));
        // Of a job that runs on, nobody but the clients of that moment will miss them; nor if connections are closed anyhow.
        let missed = self.frozen && self.plan.ends && self.plan.policy != Policy::Close;
        if let Some(stranger) = stranger.filter(|_| missed) {
            let (ip, port) = stranger.remote;
            let from = SocketAddr::new(ip, port);
            let why = format!(
                "is a listening TCP socket ({}) with an unaccepted connection of {from}, which is outside of the job or was closed",
                own.name()
            );
            return Err(No::new(
                why,
                "wait until the job has accepted it, or give --tcp close: its client then sees a reset",
            ));
        }
        Ok(State::Listening(own.info.room))
    }

    fn connection(&self, inode: u64, own: &Own, holders: &[Holder<'_>]) -> std::result::Result<Reached, No> {
        let (Some(remote), Some((here, there))) = (own.remote, own.ends()) else {
            let why = "is a TCP socket whose other end is not known".to_owned();
            return Err(No::new(why, LATER));
        };
        let other = match self.ends.get(&(there, here)) {
            Some(other) if *other == inode => {
                return Err(No::new(format!("is a TCP socket ({}) connected to itself", own.name()), CLOSE));
            }
            Some(other) => Other::Own(*other),
            None => match self.other_end(own, remote, (here, there), holders)? {
                Some(other) => other,
                None if self.plan.policy == Policy::Refuse => {
                    return Ok(Reached::Outside(self.outside(own, (here, there))));
                }
                None if self.plan.policy == Policy::Keep && !repair::is_allowed() => {
                    let why = format!(
                        "is a TCP connection ({}) with somebody outside of the job, whose state only CAP_NET_ADMIN shows",
                        own.name()
                    );
                    return Err(No::new(
                        why,
                        "run cr as root, or give --tcp close: the restored job then sees a reset",
                    ));
                }
                None => Other::Outside,
            },
        };
        let heard = phase::has_heard_end(own.info.phase);
        if self.frozen && other == Other::Gone && !heard {
            let why = format!("is a TCP socket ({}) whose other end was closed and still sends", own.name());
            return Err(No::new(why, "wait until the job has read what was sent"));
        }
        let events = polled(own.fd.as_fd(), libc::POLLPRI | libc::POLLRDHUP);
        if events & libc::POLLPRI != 0 && self.frozen {
            let why = format!("is a TCP socket ({}) that has received urgent data", own.name());
            return Err(No::new(why, "wait until the job has read it"));
        }
        Ok(Reached::Own(State::Connected(Box::new(Connection {
            remote,
            other,
            phase: own.info.phase,
            deaf: events & libc::POLLRDHUP != 0 && !heard,
            numbers: (self.frozen && other != Other::Outside).then(|| Numbers::shown(own.fd.as_fd())),
            // Read later (`super::queue`).
            received: Vec::new(),
            sent: Vec::new(),
        }))))
    }

    /// Who is at the other end of a connection, if that is no connected socket of the job; none if it is somebody outside.
    fn other_end(
        &self,
        own: &Own,
        remote: SocketAddr,
        (here, there): (End, End),
        holders: &[Holder<'_>],
    ) -> std::result::Result<Option<Other>, No> {
        let shown = self.shown_at(there, here);
        let runs = !self.frozen;
        match shown {
            // Born a moment ago, perhaps: the job runs.
            Some(s) if s.inode != 0 => {
                // To look through all processes takes its time, and is of interest only where it decides.
                let matters = runs && self.plan.policy == Policy::Refuse;
                Ok((matters && unix::owner_of(s.inode, holders).is_none()).then_some(Other::Gone))
            }
            Some(s) if matches!(s.state, phase::ESTABLISHED | phase::SYN_RECV) => {
                let is_it = |(_, l): &(&u64, &Own)| {
                    l.info.phase == phase::LISTEN
                        && l.local
                            .map(end_of)
                            .is_some_and(|(ip, port)| port == there.1 && (ip.is_unspecified() || ip == there.0))
                };
                let Some((listener, _)) = self.own.iter().find(is_it) else { return Ok(None) };
                let sent = s.unread > 0 || queue_is_busy(own.fd.as_fd());
                if !runs && (sent || s.state != phase::ESTABLISHED || own.info.phase != phase::ESTABLISHED) {
                    let why = format!(
                        "is a TCP connection ({}) that has sent something, and was not accepted yet",
                        own.name()
                    );
                    return Err(No::new(why, "wait until the job has accepted it"));
                }
                Ok(Some(Other::Waiting(*listener)))
            }
            Some(_) => Ok(Some(Other::Gone)),
            None if runs && (remote.ip() == own.local.map_or(remote.ip(), |l| l.ip())) => Ok(Some(Other::Gone)),
            None if phase::has_heard_end(own.info.phase) && (there.0 == here.0 || there.0.is_loopback()) => {
                Ok(Some(Other::Gone))
            }
            None => Ok(None),
        }
    }

    /// What is shown of the end of a connection.
    fn shown_at(&self, local: End, remote: End) -> Option<&Shown> {
        self.shown_ends.get(&(local, remote)).map(|at| &self.shown[*at])
    }

    fn outside(&self, own: &Own, (here, there): (End, End)) -> No {
        let shown = self.shown_at(there, here);
        let owner = shown.filter(|s| s.inode != 0).and_then(|s| unix::owner_of(s.inode, &[]));
        let who = owner.map_or(String::new(), |pid| format!(", which is {}", procfs::who(pid)));
        No::new(format!("is a TCP connection ({}) with somebody outside of the job{who}", own.name()), TOGETHER)
    }
}

/// Whom a socket leads to.
enum Reached {
    Own(State),
    /// Why that is no socket of the job.
    Outside(No),
}

fn queue_is_busy(fd: BorrowedFd<'_>) -> bool {
    crate::sys::tcp::unacknowledged(fd).unwrap_or(0) > 0
}

impl Own {
    fn of(fd: OwnedFd) -> Option<Self> {
        let family = options::int(fd.as_fd(), SOL_SOCKET, libc::SO_DOMAIN);
        if family != libc::AF_INET && family != libc::AF_INET6 {
            return None;
        }
        let is_tcp = options::int(fd.as_fd(), SOL_SOCKET, libc::SO_TYPE) == libc::SOCK_STREAM
            && options::int(fd.as_fd(), SOL_SOCKET, libc::SO_PROTOCOL) == IPPROTO_TCP;
        let info = Info::of(fd.as_fd());
        let local = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok().and_then(|a| address(&a));
        let remote = getpeername::<SockaddrStorage>(fd.as_raw_fd()).ok().and_then(|a| address(&a));
        Some(Self { fd, family, is_tcp, info, local, remote })
    }

    /// Both ends of its connection.
    fn ends(&self) -> Option<(End, End)> {
        let connected = self.is_tcp && !matches!(self.info.phase, phase::CLOSE | phase::LISTEN | phase::SYN_SENT);
        connected.then_some(())?;
        Some((end_of(self.local?), end_of(self.remote?)))
    }

    /// Of one without a connection: whether it ended with an error that was not told yet.
    fn has_failed(&self) -> bool {
        polled(self.fd.as_fd(), 0) & libc::POLLERR != 0
    }

    /// Of one without a connection: whether it had one.
    fn was_connected(&self) -> bool {
        polled(self.fd.as_fd(), libc::POLLRDHUP) & (libc::POLLRDHUP | libc::POLLERR) != 0
    }

    fn name(&self) -> String {
        match (self.local, self.remote) {
            (Some(local), Some(remote)) => format!("{local} to {remote}"),
            (Some(local), None) => local.to_string(),
            _ => "without an address".to_owned(),
        }
    }

    /// What is set on it that cannot be set again.
    fn refuse_what_is_set(&self) -> std::result::Result<(), No> {
        let fd = self.fd.as_fd();
        let refused = |what: &str| Err(No::new(format!("is a TCP socket ({}) {what}", self.name()), CLOSE));
        if option(fd, IPPROTO_TCP, libc::TCP_ULP).is_ok_and(|name| name.iter().any(|b| *b != 0)) {
            return refused("with encryption in the kernel (TCP_ULP)");
        }
        if options::int(fd, SOL_SOCKET, libc::SO_PEEK_OFF) >= 0 {
            return refused("with a place for looks into its queue (SO_PEEK_OFF)");
        }
        Ok(())
    }
}

/// The address in a `struct sockaddr`.
pub(super) fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| SocketAddr::V4(SocketAddrV4::from(*a)));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::V6(SocketAddrV6::from(*a))))
}

/// What `struct tcp_info` of `linux/tcp.h` says.
struct Info {
    phase: u8,
    /// Of a listener: how many wait, and how many may.
    waiting: u32,
    room: u32,
}

impl Info {
    fn of(fd: BorrowedFd<'_>) -> Self {
        let bytes = option(fd, IPPROTO_TCP, libc::TCP_INFO).unwrap_or_default();
        let word =
            |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")));
        let phase = if bytes.is_empty() { phase::CLOSE } else { bytes[0] };
        Self { phase, waiting: word(24), room: word(28) }
    }

    fn has_waiting(&self) -> bool {
        self.phase == phase::LISTEN && self.waiting > 0
    }
}
