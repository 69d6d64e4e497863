//! Making the sockets again, with their connections, what is queued in them, and what was closed at the other end.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use super::super::late::Late;
use super::super::open::Opened;
use super::super::{Description, Files};
use super::name::{self, Bound, Name};
use super::queue::Message;
use super::{Crew, State, Unix, acts, external, options};
use crate::error::{Error, Result};
use crate::remote::Call;
use crate::sys::fd::fcntl;
use crate::sys::socket::{self, Ucred};

/// Clients that may wait while connections are made.
const MANY: u32 = 4096;

/// Makes every socket of the record, in the place that [`Opened`] has for it, here and in the processes of the job, which must
/// be there.
///
/// # Errors
/// When a name is taken, or the kernel refuses something.
pub fn make(files: &Files, opened: &mut Opened, late: &Late, crew: &mut dyn Crew) -> Result<()> {
    let mut order: Vec<&Unix> = super::all(files).map(|(_, s)| s).collect();
    order.sort_by_key(|s| s.inode);
    let sockets = order.iter().map(|s| (s.inode, *s)).collect();
    let mut maker = Maker {
        crew,
        order,
        sockets,
        made: HashMap::new(),
        closed: HashMap::new(),
        bound: HashMap::new(),
        paired: HashSet::new(),
    };
    maker.make_all()?;
    let index: HashMap<u64, usize> = super::all(files).map(|(index, s)| (s.inode, index)).collect();
    let fds: HashMap<usize, i32> = maker.made.iter().map(|(inode, fd)| (index[inode], fd.as_raw_fd())).collect();
    let number = |right: u32| {
        let right = right as usize;
        fds.get(&right).copied().or_else(|| late.number(right)).unwrap_or_else(|| opened.number(right))
    };
    maker.send_streams(&number)?;
    maker.send_datagrams(&number)?;
    maker.connect_waiting()?;
    maker.close_ends()?;
    for socket in &maker.order {
        socket.finish(&maker.made[&socket.inode])?;
    }
    for (inode, fd) in &maker.made {
        nix::unistd::dup3(fd, &mut opened.fds[index[inode]], nix::fcntl::OFlag::empty())
            .map_err(|e| Error::system("keeping a socket of the job", e))?;
    }
    give(files, opened, maker.crew)
}

/// Each process has a pidfd of ours where its sockets belong: it fetches them with that.
fn give(files: &Files, opened: &Opened, crew: &mut dyn Crew) -> Result<()> {
    for table in &files.tables {
        let pid = table.pids[0];
        let rows = table.rows.iter().map(|row| row.description);
        let watched = files.watches().filter(|w| w.pid == pid).map(|w| w.description);
        let all: BTreeSet<usize> = rows.chain(watched).map(|d| d as usize).collect();
        let mut calls = Vec::new();
        for index in all.into_iter().filter(|index| matches!(files.descriptions[*index], Description::Unix(_))) {
            let number = opened.number(index) as u64;
            let got = calls.len();
            calls.push(Call::new(libc::SYS_pidfd_getfd, &[number, number, 0]));
            calls.push(Call::new(libc::SYS_dup3, &[0, number, 0]).first_from(got));
            calls.push(Call::new(libc::SYS_close, &[]).first_from(got));
        }
        if !calls.is_empty() {
            crew.run(pid, calls, &[], "giving it its sockets")?;
        }
    }
    Ok(())
}

struct Maker<'a> {
    crew: &'a mut dyn Crew,
    order: Vec<&'a Unix>,
    sockets: HashMap<u64, &'a Unix>,
    made: HashMap<u64, Rc<OwnedFd>>,
    /// The other ends of those whose other end was closed, until it is closed again.
    closed: HashMap<u64, Rc<OwnedFd>>,
    /// How sockets that have a name of their own are connected to.
    bound: HashMap<u64, Bound>,
    /// Those that were made connected.
    paired: HashSet<u64>,
}

/// Two ends of a connection that a listener gave. One may have been closed.
struct Pair<'a> {
    client: Option<&'a Unix>,
    server: Option<&'a Unix>,
    /// The name of the end that was closed.
    closed_name: &'a [u8],
}

impl<'a> Maker<'a> {
    /// Every socket with its name and its connection, but for datagrams.
    fn make_all(&mut self) -> Result<()> {
        let mut accepted: Vec<Pair<'a>> = Vec::new();
        for socket in self.order.clone() {
            let in_pair = |p: &Pair<'_>| [p.client, p.server].iter().flatten().any(|s| s.inode == socket.inode);
            if self.made.contains_key(&socket.inode) || accepted.iter().any(in_pair) {
                continue;
            }
            match &socket.state {
                State::Connected(peer) => {
                    let other = self.sockets[peer];
                    let mutual = matches!(other.state, State::Connected(peer) if peer == socket.inode);
                    if let Some(server) = self.server_of(socket, other) {
                        let client = if server.inode == socket.inode { other } else { socket };
                        accepted.push(Pair { client: Some(client), server: Some(server), closed_name: &[] });
                    } else if mutual && (!socket.is_datagram() || socket.peer.is_some()) {
                        let [one, two] = acts::pair(self.crew, socket.kind, socket.peer.as_ref())?;
                        self.made.insert(socket.inode, Rc::new(one));
                        self.made.insert(*peer, Rc::new(two));
                        self.paired.extend([socket.inode, *peer]);
                    } else {
                        self.single(socket)?;
                    }
                }
                State::Orphaned(gone) if !gone.peer_name.is_empty() => {
                    accepted.push(Pair { client: Some(socket), server: None, closed_name: &gone.peer_name });
                }
                State::Orphaned(_) if self.is_accepted(socket) => {
                    accepted.push(Pair { client: None, server: Some(socket), closed_name: &[] });
                }
                State::Orphaned(_) => {
                    let [one, two] = acts::pair(self.crew, socket.kind, socket.peer.as_ref())?;
                    self.made.insert(socket.inode, Rc::new(one));
                    self.closed.insert(socket.inode, Rc::new(two));
                    self.paired.insert(socket.inode);
                }
                _ => self.single(socket)?,
            }
        }
        for client in accepted.iter().filter_map(|p| p.client) {
            self.single(client)?;
        }
        let servers: HashSet<u64> = accepted.iter().filter_map(|p| p.server.map(|s| s.inode)).collect();
        for socket in self.order.iter().filter(|s| !servers.contains(&s.inode)) {
            if let Some(name) = &socket.name {
                self.bound.insert(socket.inode, name.bind(self.made[&socket.inode].as_fd())?);
            }
        }
        accepted.iter().try_for_each(|pair| self.accept(pair))?;
        for socket in self.order.clone() {
            if let State::External(external) = &socket.state {
                let what = format!("connecting {} to {}", socket.what(), name::shown(&external.name));
                let fd = self.made[&socket.inode].clone();
                external::limit_connect(&fd).map_err(|e| Error::system(what.clone(), e))?;
                acts::connect(self.crew, &fd, &external.name, Some(&external.connector), &what)
                    .map_err(|e| external.not_connected(e))?;
            }
        }
        Ok(())
    }

    fn single(&mut self, socket: &Unix) -> Result<()> {
        self.made.insert(socket.inode, new(socket.kind)?);
        Ok(())
    }

    /// Which of two connected ends came out of a listener: it has the listener's name. None if neither did: then they were
    /// made connected.
    fn server_of(&self, one: &'a Unix, two: &'a Unix) -> Option<&'a Unix> {
        if one.is_datagram() {
            return None;
        }
        let accepted = [one, two].into_iter().find(|s| self.is_accepted(s));
        let named = || [one, two].into_iter().find(|s| s.name.is_some());
        accepted.or_else(|| named().filter(|_| one.peer != two.peer))
    }

    /// Whether a socket shares its name with another: both came out of one listener, or this out of that.
    fn is_accepted(&self, socket: &Unix) -> bool {
        let Some(name) = &socket.name else { return false };
        let others = self.order.iter().filter(|s| s.inode != socket.inode && s.kind == socket.kind);
        others.filter_map(|s| s.name.as_ref()).any(|n| n.bytes == name.bytes)
    }

    /// Connects a client to a listener, and takes the other end out of it. The listener is the job's, or stands in for one
    /// that was closed.
    fn accept(&mut self, pair: &Pair<'a>) -> Result<()> {
        let known = pair.server.or(pair.client).expect("one end is there");
        let what = format!("connecting {}", known.what());
        let name = match pair.server.and_then(|s| s.name.clone()) {
            Some(name) => name,
            None => Name { bytes: pair.closed_name.to_vec(), file: None },
        };
        let is_it = |s: &&&Unix| {
            matches!(s.state, State::Listening(_))
                && s.kind == known.kind
                && s.name.as_ref().is_some_and(|n| n.bytes == name.bytes)
        };
        let stands_in;
        let (listener, bound) = if let Some(own) = self.order.iter().find(is_it) {
            (self.made[&own.inode].clone(), &self.bound[&own.inode])
        } else {
            let listener = new(known.kind)?;
            stands_in = name.bind_apart(listener.as_fd())?;
            (listener, &stands_in)
        };
        acts::listen(self.crew, &listener, pair.client.and_then(|c| c.peer.as_ref()), MANY)?;
        let client = match pair.client {
            Some(client) => self.made[&client.inode].clone(),
            None => new(known.kind)?,
        };
        acts::connect(self.crew, &client, &bound.address(), pair.server.and_then(|s| s.peer.as_ref()), &what)?;
        let server = Rc::new(socket::accept(listener.as_fd()).map_err(|e| Error::system(what, e))?);
        match (pair.client, pair.server) {
            (Some(client), None) => self.closed.insert(client.inode, server),
            (None, Some(living)) => {
                self.closed.insert(living.inode, client);
                self.made.insert(living.inode, server)
            }
            (_, Some(living)) => self.made.insert(living.inode, server),
            (None, None) => None,
        };
        Ok(())
    }

    /// What is queued in streams and packets in sequence, sent from the other end.
    fn send_streams(&mut self, number: &dyn Fn(u32) -> i32) -> Result<()> {
        for socket in self.order.iter().filter(|s| !s.is_datagram() && !s.queue.is_empty()) {
            let from = match &socket.state {
                State::Connected(peer) => self.made.get(peer),
                _ => self.closed.get(&socket.inode),
            };
            let Some(from) = from.cloned() else { continue };
            for message in &socket.queue {
                send(self.crew, socket, &from, message, None, number)?;
            }
        }
        Ok(())
    }

    /// Datagrams, and the connections of their sockets: what came from others than the one that a socket is connected to
    /// came before it was, and could not be sent afterwards.
    fn send_datagrams(&mut self, number: &dyn Fn(u32) -> i32) -> Result<()> {
        let datagrams: Vec<&Unix> = self.order.iter().filter(|s| s.is_datagram()).copied().collect();
        let mut later: Vec<(&Unix, usize)> = Vec::new();
        for socket in &datagrams {
            let by_peer = |m: &Message| self.peer_of(socket).is_some_and(|p| m.from == p.name_bytes());
            let last_of_others = socket.queue.iter().rposition(|m| !by_peer(m));
            let split = if self.paired.contains(&socket.inode) { 0 } else { last_of_others.map_or(0, |last| last + 1) };
            for message in &socket.queue[..split] {
                let (from, address) =
                    (self.sender(socket, message)?, self.bound.get(&socket.inode).map(Bound::address));
                send(self.crew, socket, &from, message, address.as_deref(), number)?;
            }
            later.push((socket, split));
        }
        let mut done: HashSet<u64> = self.paired.clone();
        datagrams.iter().try_for_each(|socket| self.connect_datagram(socket, &datagrams, &mut done))?;
        for (socket, split) in later {
            let peer = match &socket.state {
                State::Connected(peer) => self.made.get(peer).cloned(),
                _ => self.closed.get(&socket.inode).cloned(),
            };
            for message in &socket.queue[split..] {
                let Some(from) = &peer else { continue };
                // One that is connected elsewhere needs the address.
                let address = self.bound.get(&socket.inode).map(Bound::address);
                send(self.crew, socket, from, message, address.as_deref(), number)?;
            }
        }
        Ok(())
    }

    fn peer_of(&self, socket: &Unix) -> Option<&'a Unix> {
        match socket.state {
            State::Connected(peer) => self.sockets.get(&peer).copied(),
            _ => None,
        }
    }

    /// The socket that a datagram came from: the one with that name; without a name, one that is connected to here, or any.
    fn sender(&self, to: &Unix, message: &Message) -> Result<Rc<OwnedFd>> {
        let has_it = |s: &&&Unix| s.is_datagram() && s.name_bytes() == message.from;
        let connected = |s: &&&Unix| matches!(s.state, State::Connected(peer) if peer == to.inode);
        let mut candidates = self.order.iter().filter(has_it);
        let found = if message.from.is_empty() { candidates.find(connected) } else { candidates.next() };
        match found {
            Some(found) => Ok(self.made[&found.inode].clone()),
            None => new(libc::SOCK_DGRAM),
        }
    }

    /// Whoever is connected to one that is connected elsewhere comes before it: afterwards the kernel would not allow it.
    fn connect_datagram(&mut self, socket: &'a Unix, all: &[&'a Unix], done: &mut HashSet<u64>) -> Result<()> {
        let State::Connected(peer) = socket.state else { return Ok(()) };
        if !done.insert(socket.inode) {
            return Ok(());
        }
        for before in all {
            if matches!(before.state, State::Connected(to) if to == socket.inode) && before.inode != peer {
                self.connect_datagram(before, all, done)?;
            }
        }
        let Some(bound) = self.bound.get(&peer) else { return Ok(()) };
        socket::connect(self.made[&socket.inode].as_fd(), &bound.address())
            .map_err(|e| Error::system(format!("connecting {}", socket.what()), e))
    }

    /// Clients that wait to be accepted, and their listeners as they were.
    fn connect_waiting(&mut self) -> Result<()> {
        for listener in self.order.clone() {
            let State::Listening(listening) = &listener.state else { continue };
            let fd = self.made[&listener.inode].clone();
            for inode in &listening.waiting {
                let client = self.sockets[inode];
                let State::Waiting(connector) = &client.state else { continue };
                let Some(bound) = self.bound.get(&listener.inode) else { continue };
                acts::listen(self.crew, &fd, client.peer.as_ref(), MANY)?;
                let what = format!("connecting {}", client.what());
                acts::connect(self.crew, &self.made[inode], &bound.address(), Some(connector), &what)?;
            }
            acts::listen(self.crew, &fd, listener.peer.as_ref(), listening.backlog)?;
        }
        Ok(())
    }

    /// Closes what was closed.
    fn close_ends(&mut self) -> Result<()> {
        for (inode, _end) in std::mem::take(&mut self.closed) {
            if matches!(&self.sockets[&inode].state, State::Orphaned(gone) if gone.reset) {
                // It is the unread byte that makes the close an error.
                let fd = self.made[&inode].as_fd();
                socket::send(fd, &[0], &[], None, None)
                    .map_err(|e| Error::system("closing the end of a connection", e))?;
            }
        }
        Ok(())
    }
}

impl Unix {
    fn name_bytes(&self) -> &[u8] {
        self.name.as_ref().map_or(&[], |n| &n.bytes)
    }

    /// What comes last: what is shut down, options, flags, and who owns it.
    fn finish(&self, fd: &OwnedFd) -> Result<()> {
        let failed = |e: nix::Error| Error::system(format!("setting up {}", self.what()), e);
        let closed = matches!(self.state, State::Orphaned(_)) && !self.is_datagram();
        if self.shutdown != 0 && !closed {
            socket::shutdown(fd, self.shutdown).map_err(failed)?;
        }
        options::set(fd.as_fd(), &self.options)?;
        if let Some(filter) = &self.filter {
            filter.attach(fd.as_fd())?;
            filter.lock(fd.as_fd())?;
        }
        fcntl(fd.as_fd(), libc::F_SETFL, (self.flags & !libc::O_ASYNC).into()).map_err(failed)?;
        let stat = nix::sys::stat::fstat(fd).map_err(failed)?;
        let (uid, gid, mode) = self.owner;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            std::os::unix::fs::fchown(fd, Some(uid), Some(gid))
                .map_err(|e| Error::system(format!("setting up {}", self.what()), e))?;
        }
        if stat.st_mode & 0o7777 != mode {
            let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
            nix::sys::stat::fchmod(fd, mode).map_err(failed)?;
        }
        Ok(())
    }
}

fn new(kind: i32) -> Result<Rc<OwnedFd>> {
    socket::socket(libc::AF_UNIX, kind, 0).map(Rc::new).map_err(|e| Error::system("making a Unix socket of the job", e))
}

/// Puts one message into the queue of `socket`.
fn send(
    crew: &mut dyn Crew,
    socket: &Unix,
    from: &OwnedFd,
    message: &Message,
    address: Option<&[u8]>,
    number: &dyn Fn(u32) -> i32,
) -> Result<()> {
    let failed = |e: nix::Error| Error::system(format!("sending what was queued in {}", socket.what()), e);
    options::make_room(from.as_fd()).map_err(failed)?;
    let rights: Vec<i32> = message.rights.iter().map(|r| number(*r)).collect();
    let sender = match message.sender {
        Some((pid, uid, gid)) if pid > 0 => {
            // There must be such a process, or one that stands in for it.
            crew.data(pid)?;
            Some(Ucred { pid: crew.number(pid), uid, gid })
        }
        _ => None,
    };
    let mut sent = 0;
    loop {
        let rights = if sent == 0 { &rights[..] } else { &[] };
        sent += socket::send(from.as_fd(), &message.bytes[sent..], rights, sender, address).map_err(failed)?;
        if sent >= message.bytes.len() {
            return Ok(());
        }
    }
}
