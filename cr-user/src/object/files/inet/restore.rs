//! Making the sockets again. Connections come first: each of those within the job is made by a listener of ours, which is gone
//! before the job's own listener takes the address, so that nobody else is accepted in its place.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::SOL_SOCKET;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, SockaddrStorage, bind, connect, getsockname, send, shutdown};

use super::super::{Files, not_here, unix};
use super::ended::{self, How};
use super::repair::Numbers;
use super::{
    Connection, End, Inet, Other, Policy, Revived, State, all, diag, end_of, options, pair, phase, queue, repair,
};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::fd::fcntl;
use crate::sys::socket::{listen, set_option, socket};

/// In which what is sent over the loopback interface surely arrives.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the addresses of the sockets can be had. Nothing is changed. `policy` is
/// what becomes of connections with somebody outside.
///
/// # Errors
/// [`Error::NotHere`] that names the socket.
pub fn check(files: &Files, policy: Policy) -> Result<()> {
    let with = |wanted: fn(&Inet) -> bool| all(files).map(|(_, s)| s).filter(move |s| wanted(s)).collect::<Vec<_>>();
    let listeners = with(|s| matches!(s.state, State::Listening(_)));
    let outside = with(|s| s.outside().is_some());
    match policy {
        Policy::Refuse if !outside.is_empty() => {
            let why = "its other end is outside of the job, and --tcp refuse was asked for".to_owned();
            return Err(not_here(outside[0].what(), why, "restore with --tcp keep or close"));
        }
        Policy::Keep => outside.iter().try_for_each(|socket| socket.check_outside())?,
        _ => {}
    }
    if listeners.is_empty() && outside.is_empty() {
        return Ok(());
    }
    let shown = ask()?;
    for socket in listeners {
        let is_there = |s: &&diag::Shown| {
            s.state == phase::LISTEN && s.inode != 0 && s.local == end_of(socket.local) && s.is_of(socket.family)
        };
        if let Some(taken) = shown.iter().find(is_there) {
            let who = unix::owner_of(taken.inode, &[]).map_or("somebody else".to_owned(), procfs::who);
            return Err(not_here(socket.what(), format!("{who} listens there"), "end that first"));
        }
    }
    for socket in outside.into_iter().filter(|_| policy == Policy::Keep) {
        let ends = socket.outside().map(|c| (end_of(socket.local), end_of(c.remote)));
        if let Some(taken) = shown.iter().find(|s| s.inode != 0 && Some((s.local, s.remote)) == ends) {
            let who = unix::owner_of(taken.inode, &[]).map_or("somebody else".to_owned(), procfs::who);
            return Err(not_here(
                socket.what(),
                format!("{who} has that connection"),
                "end that, or restore with --tcp close",
            ));
        }
    }
    Ok(())
}

/// Makes every socket of the record, with its connection and its queues, by the index of its description.
///
/// # Errors
/// [`Error::NotHere`] when an address cannot be had, and [`Error::System`].
pub fn open(files: &Files, policy: Policy) -> Result<(HashMap<usize, OwnedFd>, Revived)> {
    let mut made: HashMap<u64, OwnedFd> = HashMap::new();
    let mut revived = Revived::default();
    let sockets: HashMap<u64, &Inet> = all(files).map(|(_, s)| (s.inode, s)).collect();
    remove_remains(&sockets)?;
    for (_, socket) in all(files) {
        let State::Connected(connection) = &socket.state else { continue };
        match connection.other {
            Other::Own(inode) if !made.contains_key(&socket.inode) => {
                let other = sockets[&inode];
                // Whoever has the address of a listener came out of it.
                let (client, server) = if is_accepted(socket, &sockets) { (other, socket) } else { (socket, other) };
                let (one, two) = pair::make(client, server)?;
                made.insert(client.inode, one);
                made.insert(server.inode, two);
            }
            Other::Gone => {
                let other = socket.opposite(connection);
                let (one, two) = pair::make(socket, &other)?;
                drop(two);
                wait_for(socket, || Ok(phase::has_heard_end(queue::phase_of(one.as_fd()))))?;
                made.insert(socket.inode, one);
            }
            Other::Outside if policy == Policy::Keep => {
                let numbers = connection.numbers.unwrap_or_default();
                let fd = repair::make(socket, connection, &numbers)?;
                let ours = fd.try_clone().map_err(|e| Error::system(format!("making {}", socket.what()), e))?;
                revived.add(ours, socket, numbers);
                made.insert(socket.inode, fd);
            }
            Other::Outside => {
                made.insert(socket.inode, ended::make(socket, &connection.received, How::Reset)?);
            }
            _ => {}
        }
    }
    for (_, socket) in all(files) {
        match &socket.state {
            State::Connected(_) | State::Connecting(_) => continue,
            State::Ended(end) => {
                let how = if end.failed { How::Reset } else { How::Both };
                made.insert(socket.inode, ended::make(socket, &end.unread, how)?);
                continue;
            }
            State::Alone | State::Listening(_) => {}
        }
        let fd = new(socket)?;
        if socket.local.port() != 0 || !socket.local.ip().is_unspecified() {
            socket.bind(&fd, true)?;
        }
        if let State::Listening(room) = socket.state {
            listen(&fd, room).map_err(|e| socket.failed(e))?;
        }
        made.insert(socket.inode, fd);
    }
    for (_, socket) in all(files) {
        if let State::Connecting(remote) = socket.state {
            made.insert(socket.inode, connecting(socket, remote)?);
        }
        let State::Connected(connection) = &socket.state else { continue };
        if let Other::Waiting(_) = connection.other {
            let fd = new(socket)?;
            socket.bind(&fd, true)?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(connection.remote)).map_err(|e| socket.failed(e))?;
            if !socket.is_at_its_address(&fd) {
                return Err(socket.failed(Errno::EADDRNOTAVAIL));
            }
            made.insert(socket.inode, fd);
        }
    }
    let mut by_index = HashMap::new();
    for (index, socket) in all(files) {
        let fd = made.remove(&socket.inode).expect("every socket was made");
        socket.finish(&fd)?;
        by_index.insert(index, fd);
    }
    Ok((by_index, revived))
}

/// A socket that begins to be connected, as it had begun.
fn connecting(socket: &Inet, remote: SocketAddr) -> Result<OwnedFd> {
    let fd = new(socket)?;
    socket.bind(&fd, true)?;
    fcntl(fd.as_fd(), libc::F_SETFL, libc::O_NONBLOCK.into()).map_err(|e| socket.failed(e))?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(remote)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        // It cannot be at once: the program hears of it as it would have.
        Err(_) => ended::make(socket, &[], How::Reset),
    }
}

fn ask() -> Result<Vec<diag::Shown>> {
    diag::ask().map_err(|e| Error::system("asking about the sockets of this machine (sock_diag)", e))
}

/// Takes away what the kernel still has of the job's connections, which no process has any more.
fn remove_remains(sockets: &HashMap<u64, &Inet>) -> Result<()> {
    let ends = |s: &&Inet| match &s.state {
        State::Connected(c) => Some((end_of(s.local), end_of(c.remote))),
        _ => None,
    };
    let connections: Vec<(End, End)> = sockets.values().filter_map(ends).collect();
    // What the other end of those with somebody outside has left is not ours.
    let own: Vec<(End, End)> = sockets.values().filter(|s| s.outside().is_none()).filter_map(ends).collect();
    let addresses: Vec<End> = sockets.values().map(|s| end_of(s.local)).filter(|end| end.1 != 0).collect();
    if addresses.is_empty() {
        return Ok(());
    }
    let shown = ask()?;
    // What waits to be accepted by somebody is not the job's: its listeners are gone.
    let waits =
        |s: &diag::Shown| shown.iter().any(|l| l.state == phase::LISTEN && l.inode != 0 && l.local.1 == s.local.1);
    for remains in shown.iter().filter(|s| s.inode == 0 && s.state != phase::LISTEN && !waits(s)) {
        let (local, remote) = (remains.local, remains.remote);
        let is_connection = connections.contains(&(local, remote)) || own.contains(&(remote, local));
        // What was connected to a listener later than the checkpoint would keep its address busy.
        let at_address = addresses.iter().any(|(ip, port)| *port == local.1 && (*ip == local.0 || ip.is_unspecified()));
        if is_connection || at_address {
            // Where the kernel cannot, the address may be free all the same.
            if let Err(e) = diag::destroy(remains) {
                log::debug!("what is left of a connection of {local:?} with {remote:?} stays: {e}");
            }
        }
    }
    Ok(())
}

fn is_accepted(socket: &Inet, sockets: &HashMap<u64, &Inet>) -> bool {
    let is_its = |s: &&&Inet| matches!(s.state, State::Listening(_)) && s.local.port() == socket.local.port();
    sockets.values().any(|s| is_its(&s))
}

/// Waits until it is so, for as long as [`PATIENCE`].
pub(super) fn wait_for(socket: &Inet, mut done: impl FnMut() -> nix::Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done().map_err(|e| socket.failed(e))? {
        if Instant::now() > end {
            return Err(socket.failed(Errno::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A socket that can be bound where others of the job are, and waits for nothing longer than [`PATIENCE`].
pub(super) fn new(like: &Inet) -> Result<OwnedFd> {
    let fd = socket(like.family, libc::SOCK_STREAM, libc::IPPROTO_TCP).map_err(|e| like.failed(e))?;
    options::set_first(fd.as_fd(), &like.options)?;
    let patience = [PATIENCE.as_secs(), 0].map(u64::to_ne_bytes).concat();
    let lent = options::set_int(fd.as_fd(), SOL_SOCKET, libc::SO_REUSEADDR, 1)
        .and_then(|()| set_option(fd.as_fd(), SOL_SOCKET, libc::SO_SNDTIMEO, &patience))
        .and_then(|()| set_option(fd.as_fd(), SOL_SOCKET, libc::SO_RCVTIMEO, &patience));
    lent.map_err(|e| like.failed(e))?;
    Ok(fd)
}

impl Inet {
    pub(super) fn failed(&self, e: Errno) -> Error {
        Error::system(format!("making {}", self.what()), e)
    }

    /// The other end of a connection, of which nothing is recorded since it was closed.
    fn opposite(&self, connection: &Connection) -> Self {
        let state = State::Connected(Box::new(Connection {
            remote: self.local,
            other: Other::Gone,
            phase: phase::ESTABLISHED,
            deaf: false,
            numbers: connection.numbers.map(Numbers::of_other),
            received: Vec::new(),
            sent: Vec::new(),
        }));
        Self { inode: 0, local: connection.remote, state, options: Vec::new(), filter: None, ..self.clone() }
    }

    /// Whether a connection with somebody outside can go on: with what is known of it, and with its address on this machine.
    fn check_outside(&self) -> Result<()> {
        if self.outside().is_none_or(|c| c.numbers.is_none()) {
            let why = "the checkpoint was taken with --tcp close, and does not hold what it takes to go on".to_owned();
            return Err(not_here(self.what(), why, "restore with --tcp close"));
        }
        if !repair::is_allowed() {
            let why = "only CAP_NET_ADMIN may make it go on".to_owned();
            return Err(not_here(self.what(), why, "run cr as root, or restore with --tcp close"));
        }
        let probe = new(self)?;
        let mut address = self.local;
        address.set_port(0);
        bind(probe.as_raw_fd(), &SockaddrStorage::from(address)).map_err(|e| match e {
            Errno::EADDRNOTAVAIL => {
                let todo = "give it that address, or restore with --tcp close: the job then sees that the connection was reset";
                not_here(self.what(), format!("this machine has no address {}", self.local.ip()), todo)
            }
            other => self.failed(other),
        })
    }

    /// `loosely`: where a connection will have its address anyhow, it need not be bound to that.
    pub(super) fn bind(&self, fd: &OwnedFd, loosely: bool) -> Result<()> {
        let mut local: SocketAddr = self.local;
        // To be bound to one address of IPv6 makes a socket IPv6-only for good, and that shows. Connected it has that address
        // all the same.
        let connects = self.connection().is_some() || matches!(self.state, State::Connecting(_));
        if loosely && connects && self.is_of_both_families() {
            local.set_ip(Ipv6Addr::UNSPECIFIED.into());
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(local)).map_err(|e| match e {
            Errno::EADDRINUSE => not_here(self.what(), format!("{local} is in use"), "end whoever uses it"),
            Errno::EADDRNOTAVAIL => {
                not_here(self.what(), format!("this machine has no address {}", local.ip()), "give it that address")
            }
            other => self.failed(other),
        })
    }

    /// Whether it is a socket of IPv6 that is not IPv6-only, at an address of IPv6.
    fn is_of_both_families(&self) -> bool {
        let only = self.options.iter().find(|o| (o.level, o.name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY));
        self.local.ip().to_canonical().is_ipv6() && only.is_some_and(|o| o.value.iter().all(|b| *b == 0))
    }

    /// Whether a socket has the address that it should have.
    pub(super) fn is_at_its_address(&self, fd: &OwnedFd) -> bool {
        let local = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok().and_then(|a| super::capture::address(&a));
        local.map(end_of) == Some(end_of(self.local))
    }

    pub(super) fn send(&self, fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let n = send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).map_err(|e| self.failed(e))?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// What comes last: options, what is closed for reading, flags, and who owns it.
    fn finish(&self, fd: &OwnedFd) -> Result<()> {
        options::set(fd.as_fd(), &self.options)?;
        if let Some(filter) = &self.filter {
            filter.attach(fd.as_fd())?;
            filter.lock(fd.as_fd())?;
        }
        if let Some(numbers) = self.connection().and_then(|c| c.numbers) {
            options::keep_promise(fd.as_fd(), numbers.promised()).map_err(|e| self.failed(e))?;
        }
        if self.connection().is_some_and(|c| c.deaf) {
            shutdown(fd.as_raw_fd(), Shutdown::Read).map_err(|e| self.failed(e))?;
        }
        fcntl(fd.as_fd(), libc::F_SETFL, (self.flags & !libc::O_ASYNC).into()).map_err(|e| self.failed(e))?;
        let (uid, gid, mode) = self.owner;
        std::os::unix::fs::fchown(fd, Some(uid), Some(gid))
            .map_err(|e| Error::system(format!("making {}", self.what()), e))?;
        let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
        nix::sys::stat::fchmod(fd, mode).map_err(|e| self.failed(e))
    }
}
