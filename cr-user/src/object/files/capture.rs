//! From the descriptors of a process to records, or to the reasons why there can be none.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::errno::Errno;
use nix::unistd::isatty;

use super::kept::{Kept, Past};
use super::survey::{self, Group, Seen};
use super::unix::external::Key;
use super::{
    Description, Descriptor, Files, Holder, No, Table, caller, deleted, device, directory, epoll, eventfd, fifo, inet,
    inotify, kept, locks, lost, memfd, mqueue, namespace, net, opath, outside, pidfd, pipe, procfile, pty, regular,
    settings, signalfd, stdio, terminal, timerfd, unix, unsupported,
};
use crate::error::{Error, Refusal, Result};
use crate::procfs;
use crate::sys::fd::same_table;
use crate::track::iters::covered;

/// A file whose bytes must go into the image.
#[derive(Debug)]
pub struct ContentSource {
    /// Its content space.
    pub space: u64,
    /// The file, open for reading through a description of ours.
    pub file: File,
    /// Its size in bytes.
    pub len: u64,
}

/// What may lead out of the job.
#[derive(Clone, Copy, Debug)]
pub struct Beyond<'a> {
    /// Who may be at the other end of its Unix sockets.
    pub external: &'a [Key],
    /// What is to become of its TCP connections.
    pub tcp: inet::Plan,
    /// The job is a part of another: descendants of its processes may be outside.
    pub is_part: bool,
}

/// How often is looked again at a running job before something of it is refused.
const LOOKS: usize = 2;

/// Every descriptor of the job that could not be restored. The job may be running: what it closes meanwhile is left out, and
/// nothing is changed.
///
/// # Errors
/// [`Error::NoSuchJob`], [`Error::NotAllowed`].
pub fn refusals(holders: &[Holder<'_>], beyond: &Beyond<'_>) -> Result<Vec<Refusal>> {
    let mut refusals = refusals_now(holders, beyond)?;
    // What changed under our eyes may have looked odd: what is so is so again.
    for _ in 0..LOOKS {
        if refusals.is_empty() {
            break;
        }
        let again = refusals_now(holders, beyond)?;
        let is_same = |a: &Refusal, b: &Refusal| (a.pid, &a.place, &a.why) == (b.pid, &b.place, &b.why);
        refusals.retain(|refusal| again.iter().any(|other| is_same(refusal, other)));
    }
    Ok(refusals)
}

fn refusals_now(holders: &[Holder<'_>], beyond: &Beyond<'_>) -> Result<Vec<Refusal>> {
    let groups = survey::look(holders, &mut Past::default())?;
    let mut look = Look::new(holders, &groups, None, beyond, Kept::default())?;
    look.pipes.may_be_queued = look.sockets.is_some();
    look.at_all(&mut |_, _| 0);
    look.refusals.extend(look.pipes.shared_with_others(holders));
    look.refusals.extend(look.fifos.shared_with_others(holders));
    look.refusals.extend(mqueue::shared_with_others(holders, &groups, &look.files.queues));
    look.refusals.extend(look.ptys.shared_with_others(holders, &groups));
    look.refusals.extend(look.sockets_of_others());
    look.refusals.extend(outside::shared(holders, &groups));
    let still_there = |r: &Refusal| {
        let seen = groups.iter().flat_map(|g| &g.members).find(|s| s.pid == r.pid && place(s) == r.place);
        seen.is_none_or(|s| procfs::link(s.pid, &format!("fd/{}", s.fd)).is_ok_and(|l| l == s.link))
    };
    let mut refusals = other_tables(holders.iter().map(|h| h.pid))?;
    refusals.extend(look.refusals.into_iter().filter(still_there));
    Ok(refusals)
}

/// Captures the descriptors of a frozen job. `space_of` gives the content space of a file by device and inode. Each space has
/// one source.
///
/// `judge` says which of the refusals are to be heeded: what the others are about is left out of the record.
///
/// What is queued in TCP connections is not in the record yet: [`inet::Connections`] reads it.
///
/// What is as it was according to `past` is not asked for again ([`kept`]); [`Past::learn`] must be called afterwards.
///
/// That every thread of a process has the same table is not looked for: see [`other_tables`].
///
/// That no process outside has a pipe of the job open, or another object without a name, is not looked for again: [`refusals`] did.
///
/// # Errors
/// [`Error::Refused`] with everything that could not be restored, [`Error::System`] when a pipe cannot be read.
pub fn capture(
    holders: &[Holder<'_>],
    beyond: &Beyond<'_>,
    space_of: &mut dyn FnMut(u64, u64) -> u64,
    judge: &mut dyn FnMut(Vec<Refusal>) -> Vec<Refusal>,
    past: &mut Past,
) -> Result<Captured> {
    let short = capture_with(holders, beyond, space_of, judge, past)?;
    if crate::object::is_audited("descriptors") {
        let (full, _, queues) = capture_with(holders, beyond, space_of, judge, &mut Past::default())?;
        kept::audit(&short.0, &full, &queues.but(&short.2))?;
    }
    Ok(short)
}

/// The record, files whose bytes must go into the image, and connections whose queues are to be read.
pub type Captured = (Files, Vec<ContentSource>, inet::Connections);

fn capture_with(
    holders: &[Holder<'_>],
    beyond: &Beyond<'_>,
    space_of: &mut dyn FnMut(u64, u64) -> u64,
    judge: &mut dyn FnMut(Vec<Refusal>) -> Vec<Refusal>,
    past: &mut Past,
) -> Result<Captured> {
    let mut groups = survey::look(holders, past)?;
    let kept = past.keep(&mut groups, beyond.tcp.goes_on());
    let queues = unix::capture::look_into_queues(holders, &mut groups)?;
    let mut look = Look::new(holders, &groups, Some(queues), beyond, kept)?;
    if look.kept.connections().any(|kept| look.networks.has_other_end(kept)) {
        // Who was outside came into the job.
        past.clear();
        return capture_with(holders, beyond, space_of, judge, past);
    }
    look.at_all(space_of);
    look.refusals.extend(look.sockets.take_refusals());
    let refusals = judge(std::mem::take(&mut look.refusals));
    if !refusals.is_empty() {
        return Err(Error::Refused(refusals));
    }
    look.resolve_rights();
    look.files.pipes = look.pipes.capture(holders, &look.kept)?;
    look.files.fifos = look.fifos.capture(holders)?;
    look.files.ptys = look.ptys.all;
    look.files.caller = caller::describe(holders, &groups, &look.files);
    look.files.tables.iter_mut().for_each(|t| t.rows.sort_unstable_by_key(|d| d.fd));
    let (files, described, kept) = (look.files, look.described, look.kept);
    let captured = (files, look.sources, look.networks.into_connections());
    past.note(groups, described, kept);
    Ok(captured)
}

/// A look at the job, and what was found.
struct Look<'a> {
    holders: &'a [Holder<'a>],
    groups: &'a [Group],
    pipes: pipe::Pipes,
    fifos: fifo::Fifos,
    ptys: pty::Ptys,
    sockets: unix::capture::Sockets<'a>,
    networks: inet::capture::Sockets,
    others: net::Tables,
    /// The description of each group.
    described: Vec<u32>,
    /// Epoll sets: their descriptions by index, and their descriptors.
    sets: Vec<(usize, &'a Group)>,
    /// Those that are kept, with the kernel's names of what they watch.
    kept_sets: Vec<(usize, &'a Group, Vec<u64>)>,
    kept: Kept,
    is_part: bool,
    files: Files,
    sources: Vec<ContentSource>,
    refusals: Vec<Refusal>,
}

/// What one open file description is.
enum Kind {
    /// It has one record.
    One(Description),
    /// It is from outside; this standard descriptor stands for it.
    Standard(i32),
}

impl<'a> Look<'a> {
    fn new(
        holders: &'a [Holder<'a>],
        groups: &'a [Group],
        queues: Option<unix::capture::Queues>,
        beyond: &Beyond<'a>,
        kept: Kept,
    ) -> Result<Self> {
        let table = |h: &Holder<'_>| Table {
            pids: std::iter::once(h.pid).chain(h.sharers.iter().copied()).collect(),
            rows: Vec::new(),
        };
        let tables = holders.iter().map(table).collect();
        let descriptions = Vec::with_capacity(groups.len());
        let files = Files { descriptions, tables, tcp: beyond.tcp.policy, ..Files::default() };
        Ok(Self {
            holders,
            groups,
            pipes: pipe::Pipes::of(groups),
            fifos: fifo::Fifos::default(),
            networks: inet::capture::Sockets::of(holders, groups, queues.is_some(), beyond.tcp)?,
            others: net::Tables::new(queues.is_some()),
            ptys: pty::Ptys::of(groups),
            sockets: unix::capture::Sockets::of(groups, queues, beyond.external)?,
            described: Vec::with_capacity(groups.len()),
            sets: Vec::new(),
            kept_sets: Vec::new(),
            kept,
            is_part: beyond.is_part,
            files,
            sources: Vec::new(),
            refusals: Vec::new(),
        })
    }

    fn at_all(&mut self, space_of: &mut dyn FnMut(u64, u64) -> u64) {
        self.describe_all(space_of);
        self.find_locks();
        self.find_settings();
        self.find_lost_places();
    }

    fn describe_all(&mut self, space_of: &mut dyn FnMut(u64, u64) -> u64) {
        for group in self.groups {
            // Of several, the first stands for the group.
            self.described.push(self.files.descriptions.len() as u32);
            if let Some((description, others)) = self.kept.take(group) {
                if matches!(description, Description::Epoll(_)) {
                    self.kept_sets.push((self.files.descriptions.len(), group, others));
                }
                self.add(description, &group.members);
                continue;
            }
            match self.kind(group, space_of) {
                Ok(Kind::One(description)) => {
                    if let Err(no) = self.check_in_flight(group, &description) {
                        self.refuse(group, &no);
                    } else if matches!(description, Description::Epoll(_)) {
                        self.sets.push((self.files.descriptions.len(), group));
                    }
                    self.add(description, &group.members);
                }
                Ok(Kind::Standard(number)) => {
                    for (record, members) in stdio::split(group, number) {
                        self.add(Description::Stdio(record), members);
                    }
                }
                Err(no) => self.refuse(group, &no),
            }
        }
        for (set, group, names) in std::mem::take(&mut self.kept_sets) {
            let of = |name: &u64| self.kept.place(*name).map(|group| self.described[group]);
            let watched = names.iter().map(of).collect::<Option<Vec<_>>>();
            if !watched.is_some_and(|watched| epoll::link_again(&mut self.files, set, group, &watched)) {
                self.sets.push((set, group));
            }
        }
        self.refusals.extend(epoll::link(self.holders, self.groups, &self.sets, &mut self.files));
    }

    fn refuse(&mut self, group: &Group, no: &No) {
        let at = |seen: &Seen| self.sockets.refuse_queued(seen, no).unwrap_or_else(|| no.at(seen));
        self.refusals.extend(group.members.iter().map(at));
    }

    fn add<'s>(&mut self, description: Description, members: impl IntoIterator<Item = &'s Seen>) {
        let index = self.files.descriptions.len() as u32;
        self.files.descriptions.push(description);
        for seen in members {
            let row = Descriptor { fd: seen.fd, cloexec: seen.cloexec, description: index };
            // What only a message has is ours, and in no table.
            if let Some(table) = self.files.tables.iter_mut().find(|t| t.pids[0] == seen.pid) {
                table.rows.push(row);
            }
        }
    }

    /// The table of kinds: the first that fits describes it.
    fn kind(&mut self, group: &Group, space_of: &mut dyn FnMut(u64, u64) -> u64) -> std::result::Result<Kind, No> {
        let seen = group.first();
        if opath::is_path_only(seen) {
            return opath::describe(seen).map(Description::PathOnly).map(Kind::One);
        }
        if let Some(no) = unsupported::refuse(seen) {
            return Err(no);
        }
        let kind = seen.meta.file_type();
        let mut space = || space_of(seen.meta.dev(), seen.meta.ino());
        if let Some(description) = self.nameless(seen) {
            return description.map(Kind::One);
        }
        let description = if memfd::is_memfd(seen) {
            let (record, source) = memfd::describe(seen, space())?;
            self.add_source(source);
            Description::Memfd(record)
        } else if seen.filesystem == mqueue::MQUEUE && kind.is_file() {
            Description::Queue(mqueue::describe(self.holders, seen, &mut self.files.queues)?)
        } else if kind.is_file() {
            let named = Some(seen).filter(|s| !deleted::is_nameless(s)).and_then(regular::describe);
            if let Some(record) = named {
                Description::Regular(record)
            } else {
                let (record, source) = deleted::describe(seen, space())?;
                self.add_source(source);
                Description::Deleted(record)
            }
        } else if kind.is_dir() {
            Description::Directory(directory::describe(seen, &mut self.files.lost)?)
        } else if kind.is_fifo() && seen.filesystem == pipe::PIPEFS {
            match self.pipes.describe(self.holders, group)? {
                pipe::Found::Own(end) => Description::Pipe(end),
                pipe::Found::Standard(number) => return Ok(Kind::Standard(number)),
            }
        } else if kind.is_fifo() {
            Description::Fifo(self.fifos.describe(self.holders, group, self.groups)?)
        } else if kind.is_socket() {
            let standard = self.standard_socket(seen);
            match (self.networks.describe(self.holders, group)?, standard) {
                // One that leads out is as good as what `cr restore` has.
                (Some(inet::capture::Found::Own(socket)), standard) if standard.is_none() || !socket.leads_out() => {
                    return Ok(Kind::One(Description::Inet(socket)));
                }
                (Some(inet::capture::Found::Outside(no)), None) => return Err(no),
                _ => {}
            }
            let number = match self.sockets.describe(self.holders, group, standard)? {
                Some(unix::capture::Found::Own(socket)) => return Ok(Kind::One(Description::Unix(socket))),
                Some(unix::capture::Found::Standard(number)) => number,
                None => match self.others.describe(self.holders, group, standard)? {
                    net::Found::Own(socket) => return Ok(Kind::One(Description::Net(socket))),
                    net::Found::Standard(number) => number,
                },
            };
            stdio::no_unread_input(self.get(seen)?.as_fd(), "a socket")?;
            return Ok(Kind::Standard(number));
        } else if let Some(device) = device::describe(seen) {
            Description::Device(device)
        } else if let Some(end) = self.ptys.describe(self.holders, group, self.groups)? {
            Description::Pty(end)
        } else if isatty(self.get(seen)?).unwrap_or(false) {
            match stdio::standing_for(|n| group.members.iter().any(|s| s.fd == n), seen.writable()) {
                Some(number) => return Ok(Kind::Standard(number)),
                None => Description::Terminal(terminal::describe(seen)),
            }
        } else {
            return Err(unsupported::device(seen));
        };
        Ok(Kind::One(description))
    }

    /// Whether what only a message has can be made without a process that has it.
    fn check_in_flight(&self, group: &Group, description: &Description) -> std::result::Result<(), No> {
        let seen = group.first();
        if self.files.tables.iter().any(|t| t.pids[0] == seen.pid) {
            return Ok(());
        }
        unix::capture::refuse_in_flight(seen, description, self.get(seen)?.as_fd())
    }

    /// Messages know descriptors by group; from here on by description.
    fn resolve_rights(&mut self) {
        for description in &mut self.files.descriptions {
            if let Description::Unix(socket) = description {
                let rights = socket.queue.iter_mut().flat_map(|m| &mut m.rights);
                rights.for_each(|right| *right = self.described[*right as usize]);
            }
        }
    }

    /// Sockets that are restored and that others have too.
    fn sockets_of_others(&self) -> Vec<Refusal> {
        let restored = |pid: i32, fd: i32| {
            let index = self.files.description_of(pid, fd);
            index.is_some_and(|i| {
                let description = &self.files.descriptions[i as usize];
                matches!(description, Description::Unix(_) | Description::Inet(_) | Description::Net(_))
            })
        };
        self.sockets.shared_with_others(self.holders, self.is_part, restored)
    }

    fn find_locks(&mut self) {
        for seen in self.groups.iter().flat_map(|g| &g.members).filter(|s| !s.locks.is_empty()) {
            let Some(description) = self.files.description_of(seen.pid, seen.fd) else { continue };
            let sharers = self.files.table_of(seen.pid).map_or(&[][..], |t| &t.pids);
            match locks::describe(seen, sharers, description) {
                Ok(found) => {
                    for lock in found {
                        if !self.files.locks.iter().any(|known| known.is_same(&lock)) {
                            self.files.locks.push(lock);
                        }
                    }
                }
                Err(no) => self.refusals.push(no.at(seen)),
            }
        }
    }

    /// Finds processes whose working directory was removed.
    fn find_lost_places(&mut self) {
        for pid in self.files.tables.iter().flat_map(|t| t.pids.clone()) {
            let path = procfs::path(pid, "cwd");
            let meta = std::fs::metadata(&path).ok().filter(lost::is_lost);
            let Some(meta) = meta else { continue };
            if let Ok(link) = std::fs::read_link(&path) {
                let index = lost::index_in(&mut self.files.lost, &link, &meta);
                self.files.lost_places.push((pid, index));
            }
        }
    }

    fn find_settings(&mut self) {
        // Where anything is covered, there was never an owner.
        for group in self.groups.iter().filter(|g| g.listed.is_none() || g.is_covered(covered::NOTHING)) {
            let seen = group.first();
            let Some(description) = self.files.description_of(seen.pid, seen.fd) else { continue };
            // What comes from outside has the settings of whoever restores it.
            if matches!(self.files.descriptions[description as usize], Description::Stdio(_)) {
                continue;
            }
            let Ok(ours) = self.get(seen) else { continue };
            match settings::describe(ours.as_fd(), description, seen.flags, self.holders) {
                Ok(found) => self.files.settings.extend(found),
                Err(no) => self.refusals.extend(group.members.iter().map(|seen| no.at(seen))),
            }
        }
    }

    /// Kernel objects that are no files, and files that are not on a disk.
    fn nameless(&self, seen: &Seen) -> Option<std::result::Result<Description, No>> {
        Some(match seen.link.to_str()? {
            "anon_inode:[eventfd]" => eventfd::describe(seen).map(Description::Eventfd),
            timerfd::LINK => timerfd::describe(self.holders, seen).map(Description::Timerfd),
            "anon_inode:[signalfd]" => signalfd::describe(seen).map(Description::Signalfd),
            "anon_inode:[eventpoll]" => epoll::describe(self.holders, seen).map(Description::Epoll),
            "anon_inode:inotify" => inotify::describe(self.holders, seen).map(Description::Inotify),
            _ if pidfd::is_pidfd(seen) => pidfd::describe(self.holders, seen).map(Description::Pidfd),
            _ if seen.filesystem == namespace::NSFS => {
                namespace::describe(self.holders, seen).map(Description::Namespace)
            }
            _ if seen.filesystem == procfile::PROC => procfile::describe(self.holders, seen).map(Description::Proc),
            _ => return None,
        })
    }

    fn add_source(&mut self, source: ContentSource) {
        if self.sources.iter().all(|s| s.space != source.space) {
            self.sources.push(source);
        }
    }

    /// The standard descriptor that is on the same socket.
    fn standard_socket(&self, seen: &Seen) -> Option<i32> {
        let is_same = |s: &Seen| s.meta.file_type().is_socket() && s.meta.ino() == seen.meta.ino();
        let all = self.groups.iter().filter(|g| is_same(g.first())).flat_map(|g| &g.members);
        stdio::standing_for(|n| all.clone().any(|s| s.fd == n), true)
    }

    fn get(&self, seen: &Seen) -> std::result::Result<OwnedFd, No> {
        let failed = |e: Errno| No::new(format!("cannot be examined ({e})"), "run cr as root or as the job's owner");
        survey::fetch(self.holders, seen.pid, seen.fd).map_err(failed)
    }
}

fn place(seen: &Seen) -> String {
    format!("fd {}", seen.fd)
}

/// Whether a thread is ending: field 9 of proc(5)'s `stat`, `PF_EXITING` of `include/linux/sched.h`.
fn is_ending(tid: i32) -> bool {
    const PF_EXITING: u64 = 4;
    procfs::stat(tid)
        .map_or(true, |s| s.get(6).and_then(|f| f.parse::<u64>().ok()).is_some_and(|f| f & PF_EXITING != 0))
}

/// Threads that have a table of descriptors of their own, which would not be seen.
///
/// # Errors
/// When the first of the processes is gone.
pub fn other_tables(pids: impl Iterator<Item = i32>) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    for (nth, pid) in pids.enumerate() {
        let tids = match procfs::threads(pid) {
            Ok(tids) => tids,
            Err(_) if nth > 0 => continue,
            Err(_) => return Err(Error::NoSuchJob { pid }),
        };
        for tid in tids.into_iter().filter(|tid| *tid != pid) {
            match same_table(procfs::voice(pid), tid) {
                Ok(true) | Err(Errno::ESRCH) => {}
                // A thread that is just ending has no table any more: it is gone before the job stands still.
                Ok(false) if is_ending(tid) => {}
                Ok(false) => refusals.push(Refusal {
                    pid,
                    place: format!("thread {tid}"),
                    why: "has a table of descriptors of its own (unshare(CLONE_FILES))".to_owned(),
                    todo: "have the job's threads share one table".to_owned(),
                }),
                Err(e) => return Err(Error::system(format!("comparing the descriptor tables of pid {pid}"), e)),
            }
        }
    }
    Ok(refusals)
}
