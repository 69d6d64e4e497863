//! From the sockets of the job to records, or to the reasons why there can be none.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use libc::SOL_SOCKET;

use super::super::net::filters;
use super::super::survey::{self, Group, Seen};
use super::super::{Description, Holder, No, stdio};
use super::diag::{All, Shown};
use super::external::{External, Key};
use super::queue::{self, Message};
use super::{Listening, Orphaned, Peer, State, Unix, name, options, outside};
use crate::error::{Error, Refusal, Result};
use crate::procfs::Status;
use crate::sys::fd::owner;
use crate::sys::socket::{has_error, option, peer_name};
use crate::track::iters::covered;

/// The sockets of the job.
pub(in super::super) struct Sockets<'a> {
    all: All,
    /// Who may be at the other end, outside of the job.
    external: &'a [Key],
    /// Their inodes, with the descriptors of each: process and number.
    own: HashMap<u64, Vec<(i32, i32)>>,
    /// What is queued, by inode; none if that was not looked at, since the job runs.
    queues: Option<Queues>,
}

/// What is queued in the job's sockets. Descriptors in it are those of groups, by index.
#[derive(Default)]
pub(in super::super) struct Queues {
    /// What all sockets were like then.
    all: All,
    messages: HashMap<u64, Vec<Message>>,
    /// Ours, for what is open only there, each with the descriptor of the socket that it lies in.
    ours: Vec<(OwnedFd, (i32, i32))>,
    refusals: Vec<Refusal>,
}

/// What a socket is to the job.
pub(in super::super) enum Found {
    /// One that is restored.
    Own(Box<Unix>),
    /// The outside's standard input, output or error.
    Standard(i32),
}

/// Looks into the queues of all sockets of a frozen job. What is open nowhere but there is added to `groups`, as ours.
pub(in super::super) fn look_into_queues(holders: &[Holder<'_>], groups: &mut Vec<Group>) -> Result<Queues> {
    let mut queues = Queues::default();
    let is_asked = |g: &Group| is_socket(g) && !g.is_kept && !g.is_covered(covered::TCP);
    if !groups.iter().any(is_asked) {
        return Ok(queues);
    }
    let all = ask()?;
    let mut at = 0;
    while at < groups.len() {
        let seen = groups[at].first();
        let (pid, fd, inode) = (seen.pid, seen.fd, seen.meta.ino());
        let standard = groups[at].members.iter().any(|s| stdio::is_standard(s.fd));
        // That nothing is queued is part of what is covered.
        let asked = is_asked(&groups[at]) && !groups[at].is_covered(covered::UNIX);
        let shown = if asked { all.sockets.get(&inode) } else { None };
        at += 1;
        let Some(shown) = shown else { continue };
        let outside = shown.peer.is_some_and(|p| groups.iter().all(|g| !is_socket(g) || g.first().meta.ino() != p));
        if standard && outside {
            continue;
        }
        let theirs = survey::fetch(holders, pid, fd)
            .map_err(|e| Error::system(format!("looking at the socket at fd {fd} of pid {pid}"), e))?;
        match queue::read(theirs.as_fd(), shown.kind) {
            Ok(raw) => {
                let mut messages = Vec::with_capacity(raw.len());
                for piece in raw {
                    let mut rights = Vec::with_capacity(piece.rights.len());
                    for right in piece.rights {
                        rights.push(queues.identify(right, groups, (pid, fd))?);
                    }
                    let sender = piece.sender.map(|s| (s.pid, s.uid, s.gid));
                    messages.push(Message { bytes: piece.bytes, rights, sender, from: piece.from });
                }
                queues.messages.insert(inode, messages);
            }
            Err(no) => {
                let (pid, fd) = queues.socket_with((pid, fd)).unwrap_or((pid, fd));
                queues.refusals.push(no.at_number(pid, fd));
            }
        }
    }
    queues.all = all;
    Ok(queues)
}

impl Queues {
    /// The group that has the description of a descriptor of ours, which lay in the queue of the socket `within`; a new one if
    /// the job has it in no table.
    fn identify(&mut self, right: OwnedFd, groups: &mut Vec<Group>, within: (i32, i32)) -> Result<u32> {
        let failed = |e: std::io::Error| Error::system("looking at a descriptor in the queue of a socket", e);
        let me = std::process::id() as i32;
        let seen = Seen::of(me, right.as_raw_fd()).map_err(failed)?;
        for (index, group) in groups.iter().enumerate() {
            let first = group.first();
            if (first.meta.dev(), first.meta.ino()) == (seen.meta.dev(), seen.meta.ino())
                && survey::compare((first.pid, first.fd), (me, seen.fd)).map_err(|e| failed(e.into()))?.is_eq()
            {
                return Ok(index as u32);
            }
        }
        groups.push(Group::of(seen));
        // That socket may itself be open only in a queue.
        let within = self.socket_with(within).unwrap_or(within);
        self.ours.push((right, within));
        Ok(groups.len() as u32 - 1)
    }

    /// The descriptor of the socket in whose queue a descriptor of ours lay.
    fn socket_with(&self, (pid, fd): (i32, i32)) -> Option<(i32, i32)> {
        let mut ours = self.ours.iter().filter(|_| pid == std::process::id() as i32);
        ours.find(|(right, _)| right.as_raw_fd() == fd).map(|(_, within)| *within)
    }
}

fn ask() -> Result<All> {
    All::ask().map_err(|e| Error::system("asking about the sockets of this machine (sock_diag)", e))
}

fn is_socket(group: &Group) -> bool {
    use std::os::unix::fs::FileTypeExt;
    group.first().meta.file_type().is_socket()
}

/// Why a description that is open only in a queue cannot be restored: no process has it that could set it up.
pub(in super::super) fn refuse_in_flight(
    seen: &Seen,
    description: &Description,
    ours: BorrowedFd<'_>,
) -> std::result::Result<(), No> {
    let settled = matches!(
        description,
        Description::Regular(_)
            | Description::Deleted(_)
            | Description::Memfd(_)
            | Description::Directory(_)
            | Description::Device(_)
            | Description::Pipe(_)
            | Description::Eventfd(_)
            | Description::Signalfd(_)
            | Description::Pidfd(_)
            | Description::Namespace(_)
            | Description::Proc(_)
            | Description::Unix(_)
    );
    let owned = owner(ours).is_ok_and(|o| o.1 != 0) || seen.flags & libc::O_ASYNC != 0;
    if settled && seen.locks.is_empty() && !owned {
        return Ok(());
    }
    let why = format!("is a {} that no process has open", description.kind());
    Err(No::new(why, "wait until the job has received it"))
}

impl<'a> Sockets<'a> {
    /// Finds the sockets among the descriptions.
    pub(in super::super) fn of(groups: &[Group], mut queues: Option<Queues>, external: &'a [Key]) -> Result<Self> {
        let descriptors = |g: &Group| g.members.iter().map(|s| (s.pid, s.fd)).collect();
        let sockets = groups.iter().filter(|g| is_socket(g) && !g.is_covered(covered::TCP));
        let own: HashMap<u64, Vec<_>> = sockets.map(|g| (g.first().meta.ino(), descriptors(g))).collect();
        let asked = queues.as_mut().map(|q| std::mem::take(&mut q.all));
        let all = match asked {
            Some(all) => all,
            None if own.is_empty() => All::default(),
            None => ask()?,
        };
        Ok(Self { all, external, own, queues })
    }

    /// Whether there are any.
    pub(in super::super) fn is_some(&self) -> bool {
        !self.own.is_empty()
    }

    /// What stood against looking into queues.
    pub(in super::super) fn take_refusals(&mut self) -> Vec<Refusal> {
        self.queues.as_mut().map(|q| std::mem::take(&mut q.refusals)).unwrap_or_default()
    }

    /// The refusal of what is open only in a queue, at the socket that it lies in; none for anything else.
    pub(in super::super) fn refuse_queued(&self, seen: &Seen, no: &No) -> Option<Refusal> {
        let (pid, fd) = self.queues.as_ref()?.socket_with((seen.pid, seen.fd))?;
        let why = format!("is a Unix socket that holds a message with a descriptor which {}", no.why);
        Some(No::new(why, "wait until the job has received it").at_number(pid, fd))
    }

    /// Sockets of the job that a process outside has open too. Looks at every process that we may look at.
    pub(in super::super) fn shared_with_others(
        &self,
        holders: &[Holder<'_>],
        is_part: bool,
        restored: impl Fn(i32, i32) -> bool,
    ) -> Vec<Refusal> {
        let own = self.own.iter().flat_map(|(inode, all)| all.iter().map(|(pid, fd)| (*pid, *fd, *inode)));
        outside::shared_with_others(
            &own.filter(|(pid, fd, _)| restored(*pid, *fd)).collect::<Vec<_>>(),
            holders,
            is_part,
        )
    }

    /// Says what a socket is, or why it cannot be restored; none if it is not of this kind. `standard`: the standard
    /// descriptor that refers to it.
    pub(in super::super) fn describe(
        &self,
        holders: &[Holder<'_>],
        group: &Group,
        standard: Option<i32>,
    ) -> std::result::Result<Option<Found>, No> {
        let seen = group.first();
        let inode = seen.meta.ino();
        let ours = survey::fetch(holders, seen.pid, seen.fd)
            .map_err(|e| No::new(format!("is a socket that cannot be examined ({e})"), "try again"))?;
        let ours = ours.as_fd();
        let domain = option(ours, SOL_SOCKET, libc::SO_DOMAIN).map_or(-1, |v| options::int(&v));
        if domain != libc::AF_UNIX {
            return Ok(None);
        }
        let Some(shown) = self.all.sockets.get(&inode) else {
            let why = "is a Unix socket of another network namespace".to_owned();
            return Err(No::new(why, "run cr in that network namespace (nsenter -n)"));
        };
        let state = self.state(seen, shown, ours, holders)?;
        if let Some(number) =
            standard.filter(|_| matches!(state, Reached::Outside(_) | Reached::Own(State::Orphaned(_))))
        {
            return Ok(Some(Found::Standard(number)));
        }
        let state = match state {
            Reached::Own(state) => state,
            Reached::Outside(other) => {
                let todo = "checkpoint both together, have the job close it before the checkpoint, or name that socket with \
                            --external to have it connected anew by a restore";
                let why = format!("is a Unix socket ({}) connected to {other}", own_end(shown));
                return Err(No::new(why, todo));
            }
        };
        let filter = filters::read(ours)?;
        let queue = self.queue(shown, &state)?;
        Ok(Some(Found::Own(Box::new(Unix {
            inode,
            kind: shown.kind,
            flags: seen.flags,
            owner: (seen.meta.uid(), seen.meta.gid(), seen.meta.mode() & 0o7777),
            name: name::describe(shown, holders.iter().map(|h| h.pid)),
            state,
            shutdown: shown.shutdown,
            peer: peer(ours),
            options: options::read(ours),
            filter,
            queue,
        }))))
    }

    fn state(
        &self,
        seen: &Seen,
        shown: &Shown,
        ours: BorrowedFd<'_>,
        holders: &[Holder<'_>],
    ) -> std::result::Result<Reached, No> {
        if shown.listening {
            return self.listener(shown, holders).map(Reached::Own);
        }
        let Some(peer) = shown.peer else { return Ok(Reached::Own(State::Alone)) };
        if peer != 0 {
            let other = self.all.sockets.get(&peer);
            let known = self.own.contains_key(&peer)
                // Only in a message, perhaps: the job runs, and queues are not looked into.
                || (self.queues.is_none() && outside::owner_of(peer, holders).is_none());
            if !known {
                let name = other.map_or(&[][..], |o| &o.name);
                if self.external.iter().any(|key| key.names(shown.inode, name)) {
                    return self.external(seen, shown, name, holders).map(Reached::Own);
                }
                return Ok(Reached::Outside(outside::other_end(peer, name, holders)));
            }
            let mutual = other.is_some_and(|o| o.peer == Some(shown.inode));
            if !mutual && other.is_some_and(|o| o.name.is_empty()) {
                let why = "is a datagram socket connected to one without a name that is connected elsewhere".to_owned();
                return Err(No::new(why, "have the job close it before the checkpoint"));
            }
            return Ok(Reached::Own(State::Connected(peer)));
        }
        if let Some(listener) = self.all.sockets.values().find(|l| l.waiting.contains(&shown.inode)) {
            if self.own.contains_key(&listener.inode) {
                let pid = if holders.iter().any(|h| h.pid == seen.pid) { seen.pid } else { holders[0].pid };
                return Ok(Reached::Own(State::Waiting(connector(pid))));
            }
            if self.external.iter().any(|key| key.names(shown.inode, &listener.name)) {
                return self.external(seen, shown, &listener.name, holders).map(Reached::Own);
            }
            return Ok(Reached::Outside(outside::other_end(listener.inode, &listener.name, holders)));
        }
        let peer_name = peer_name(ours).unwrap_or_default();
        if shown.kind == libc::SOCK_DGRAM && !peer_name.is_empty() {
            let why = format!("is a datagram socket connected to {}, which was closed", name::shown(&peer_name));
            return Err(No::new(why, "have the job connect it again or close it"));
        }
        Ok(Reached::Own(State::Orphaned(Orphaned { peer_name, reset: has_error(ours) })))
    }

    /// A connection to somebody who was named.
    fn external(
        &self,
        seen: &Seen,
        shown: &Shown,
        name: &[u8],
        holders: &[Holder<'_>],
    ) -> std::result::Result<State, No> {
        let refused = |what: &str, todo: &'static str| {
            Err(No::new(format!("is an external Unix socket ({}) {what}", own_end(shown)), todo))
        };
        if !matches!(name, [0 | b'/', ..]) || name == shown.name {
            let todo = "have the job close it before the checkpoint: only to a named socket can it be connected again";
            return refused("whose other end has no name of its own, or one that depends on a directory", todo);
        }
        // It may be a client, though it has a name.
        if self.all.open_to(shown.kind, name).is_none_or(|s| self.own.contains_key(&s.inode)) {
            let todo = "have the job close it before the checkpoint, or start who listens there again: only to one that \
                        listens can it be connected again";
            let what =
                format!("whose other end is called {}, where nobody outside of the job listens", name::shown(name));
            return refused(&what, todo);
        }
        if self.queues.as_ref().is_some_and(|q| q.messages.get(&shown.inode).is_some_and(|all| !all.is_empty())) {
            return refused("in which data waits that the job has not read", "try again once it has");
        }
        let pid = if holders.iter().any(|h| h.pid == seen.pid) { seen.pid } else { holders[0].pid };
        Ok(State::External(External { name: name.to_vec(), connector: connector(pid) }))
    }

    fn listener(&self, shown: &Shown, holders: &[Holder<'_>]) -> std::result::Result<State, No> {
        let is_listener = |s: &Shown| s.listening;
        let refused = |what: String, todo| {
            Err(No::new(format!("is a listening Unix socket ({}) with {what}", own_end(shown)), todo))
        };
        for client in &shown.waiting {
            let ended = "an unaccepted connection of a client that has ended";
            match (*client, self.own.contains_key(client)) {
                (0, _) => return refused(ended.to_owned(), "wait until the job has accepted it"),
                (_, true) => {}
                (inode, false) if self.queues.is_none() && outside::owner_of(inode, holders).is_none() => {}
                (inode, false) => {
                    let other = outside::other_end(inode, &[], holders);
                    return refused(
                        format!("an unaccepted connection of {other}"),
                        "wait until the job has accepted it",
                    );
                }
            }
        }
        // What was sent to an end that no process has yet cannot be looked at.
        let sent = self.all.unaccepted.iter().find(|e| !is_listener(e) && e.name == shown.name && e.unread > 0);
        if let Some(sent) = sent.filter(|_| self.queues.is_some()) {
            let what = format!("an unaccepted connection in which {} bytes wait", sent.unread);
            return refused(what, "wait until the job has accepted it");
        }
        Ok(State::Listening(Listening { backlog: shown.backlog, waiting: shown.waiting.clone() }))
    }

    fn queue(&self, shown: &Shown, state: &State) -> std::result::Result<Vec<Message>, No> {
        let Some(queues) = &self.queues else { return Ok(Vec::new()) };
        let messages = queues.messages.get(&shown.inode).cloned().unwrap_or_default();
        if shown.kind == libc::SOCK_DGRAM {
            for message in messages.iter().filter(|m| !m.from.is_empty()) {
                let sender = self.all.sockets.values().find(|s| s.kind == shown.kind && s.name == message.from);
                if sender.is_none_or(|s| !self.own.contains_key(&s.inode)) {
                    let from = name::shown(&message.from);
                    let why = format!("holds a message of {from}, which is no socket of the job");
                    return Err(No::new(why, "wait until the job has read it"));
                }
            }
        }
        debug_assert!(messages.is_empty() || !matches!(state, State::Listening(_)));
        Ok(messages)
    }
}

fn own_end(shown: &Shown) -> String {
    let named = if shown.name.is_empty() { String::new() } else { format!("{}, ", name::shown(&shown.name)) };
    format!("{named}[{}]", shown.inode)
}

/// Whom a socket leads to.
enum Reached {
    Own(State),
    /// The other end, in words.
    Outside(String),
}

/// Who is at the other end, as the kernel noted it: `SO_PEERCRED`, `SO_PEERGROUPS`.
fn peer(ours: BorrowedFd<'_>) -> Option<Peer> {
    const SO_PEERGROUPS: i32 = 59;
    let words = |name: i32| -> Option<Vec<u32>> {
        let bytes = option(ours, SOL_SOCKET, name).ok()?;
        Some(bytes.chunks_exact(4).map(|c| u32::from_ne_bytes(c.try_into().expect("four bytes"))).collect())
    };
    let noted = words(libc::SO_PEERCRED)?;
    let [pid, uid, gid] = noted[..] else { return None };
    // Nobody is noted as user -1.
    (uid != u32::MAX).then(|| Peer { pid: pid as i32, uid, gid, groups: words(SO_PEERGROUPS).unwrap_or_default() })
}

/// A process as the kernel would note it now: that a client which waits was connected by whoever has it is a guess, since
/// nobody can be asked.
fn connector(pid: i32) -> Peer {
    let effective = |status: &Status, key: &str| status.numbers(key).get(1).copied().unwrap_or(0);
    Status::read(pid, pid).map_or(Peer { pid, uid: 0, gid: 0, groups: Vec::new() }, |status| Peer {
        pid,
        uid: effective(&status, "Uid"),
        gid: effective(&status, "Gid"),
        groups: status.numbers("Groups"),
    })
}
