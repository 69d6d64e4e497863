//! From descriptors to pairs, or to the reasons why there can be none.

use std::cmp::Ordering;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::survey::{self, Group, Seen};
use super::super::{Description, FilePath, Files, Holder, No, outside};
use super::queue::Queues;
use super::{Pty, PtyEnd, Side, State};
use crate::error::{Error, Refusal, Result as Done};
use crate::procfs;
use crate::sys::fd::readable_bytes;
use crate::sys::tty::{self, Number};
use crate::track::tty::TtyQueues;

/// The magic number of `devpts` (`linux/magic.h`).
const DEVPTS: i64 = 0x1cd1;

/// Major number of terminals of pairs, and device numbers of what is opened for a master and for one's own terminal
/// (`Documentation/admin-guide/devices.txt`).
const TERMINALS: u32 = 136;
const PTMX: (u32, u32) = (5, 2);
const TTY: (u32, u32) = (5, 0);
const OLD_MASTERS: u32 = 2;

const CLOSE: &str = "have the job close it before the checkpoint";
const AGAIN: &str = "try again";

/// The pairs of the job.
#[derive(Default)]
pub(in super::super) struct Ptys {
    masters: Vec<Master>,
    /// The records.
    pub(in super::super) all: Vec<Pty>,
    /// The pair of each record.
    keys: Vec<Key>,
}

/// A pair: the device of its file system, and its number there.
type Key = (u64, u32);

/// A master that the job has open.
struct Master {
    key: Key,
    pid: i32,
    fd: i32,
    ptmx: PathBuf,
    path: PathBuf,
}

impl Ptys {
    /// The masters among all descriptions of the job.
    pub(in super::super) fn of(groups: &[Group]) -> Self {
        let masters = groups.iter().map(Group::first).filter(|s| device(s) == PTMX && s.flags & libc::O_PATH == 0);
        Self { masters: masters.filter_map(Master::of).collect(), ..Self::default() }
    }

    /// The record of a description; none if it is not of a pair of the job. `groups` are all of the job.
    pub(in super::super) fn describe(
        &mut self,
        holders: &[Holder<'_>],
        group: &Group,
        groups: &[Group],
    ) -> Result<Option<PtyEnd>, No> {
        let seen = group.first();
        let end = |pty: usize, side: Side, hung_up: bool| {
            Ok(Some(PtyEnd { pty: pty as u32, side, hung_up, flags: seen.flags }))
        };
        match device(seen) {
            PTMX => {
                let master = self.masters.iter().position(|m| (m.pid, m.fd) == (seen.pid, seen.fd));
                let master =
                    master.ok_or_else(|| No::new("is the master of a terminal without number".into(), CLOSE))?;
                end(self.pair(holders, master, groups)?, Side::Master, false)
            }
            (OLD_MASTERS, _) => {
                let why = format!("is the master of a terminal of the old kind ({})", seen.link.display());
                Err(No::new(why, "have the job use posix_openpt() instead"))
            }
            (TERMINALS, number) => {
                let hung_up = is_hung_up(get(holders, seen)?.as_fd());
                match self.masters.iter().position(|m| m.key == (seen.meta.dev(), number)) {
                    Some(master) => end(self.pair(holders, master, groups)?, Side::Terminal, hung_up),
                    None if hung_up => end(self.dead(seen, number), Side::Terminal, true),
                    None => Ok(None),
                }
            }
            TTY => {
                let ours = get(holders, seen)?;
                if is_hung_up(ours.as_fd()) {
                    return Err(No::new("is /dev/tty of a terminal that was hung up".into(), CLOSE));
                }
                let device = tty::number(ours.as_fd(), Number::Device).unwrap_or(0) as u64;
                let (major, number) = ((device >> 8 & 0xfff) as u32, (device & 0xff | device >> 12 & 0xf_ff00) as u32);
                let candidates = self.masters.iter().enumerate();
                let mut found = candidates.filter(|(_, m)| major == TERMINALS && m.key.1 == number).map(|(at, _)| at);
                let Some(master) = found.next() else { return Ok(None) };
                if found.next().is_some() {
                    return Err(No::new(format!("is /dev/tty, and there are two terminals {number}"), CLOSE));
                }
                let pty = self.pair(holders, master, groups)?;
                if self.all[pty].state.as_ref().is_none_or(|s| s.session == 0) {
                    return Err(No::new("is /dev/tty of a terminal that controls no session any more".into(), CLOSE));
                }
                end(pty, Side::Controlling, false)
            }
            _ => Ok(None),
        }
    }

    fn pair(&mut self, holders: &[Holder<'_>], master: usize, groups: &[Group]) -> Result<usize, No> {
        let master = &self.masters[master];
        if let Some(known) = self.keys.iter().position(|k| *k == master.key) {
            return Ok(known);
        }
        let state = Some(master.state(holders, groups)?);
        self.keys.push(master.key);
        self.all.push(Pty {
            ptmx: FilePath::from(&*master.ptmx),
            path: FilePath::from(&*master.path),
            number: master.key.1,
            state,
        });
        Ok(self.all.len() - 1)
    }

    /// The pair of a terminal whose master nobody has open any more.
    fn dead(&mut self, seen: &Seen, number: u32) -> usize {
        let key = (seen.meta.dev(), number);
        let known = self.keys.iter().position(|k| *k == key);
        known.unwrap_or_else(|| {
            let folder = seen.link.parent().unwrap_or(Path::new("/dev/pts"));
            let ptmx = folder.parent().unwrap_or(Path::new("/dev")).join("ptmx");
            self.keys.push(key);
            self.all.push(Pty {
                ptmx: FilePath::from(&*ptmx),
                path: FilePath::from(&*folder.join(number.to_string())),
                number,
                state: None,
            });
            self.all.len() - 1
        })
    }

    /// Pairs of the job of which a process outside has an end open. Looks at every process that we may look at.
    pub(in super::super) fn shared_with_others(&self, holders: &[Holder<'_>], groups: &[Group]) -> Vec<Refusal> {
        const TODO: &str = "checkpoint both together, or have one of them close it";
        let mut refusals = Vec::new();
        let place = |path: &Path| fs::metadata(path).map_or((0, 0), |m| (m.dev(), m.ino()));
        let places: Vec<(u64, u64)> = self.masters.iter().map(|m| place(&m.path)).collect();
        let at_master = |master: &Master, why: String| No::new(why, TODO).at_number(master.pid, master.fd);
        for user in outside::users(holders, &places) {
            let master = &self.masters[user.of];
            let why = format!("is the master of {}, which {user} has open", master.path.display());
            refusals.push(at_master(master, why));
        }
        if self.masters.is_empty() {
            return refusals;
        }
        for pid in procfs::processes().filter(|pid| !survey::is_of_job(*pid, holders)) {
            for fd in procfs::descriptors(pid).unwrap_or_default() {
                let Ok(link) = procfs::link(pid, &format!("fd/{fd}")) else { continue };
                let same =
                    |m: &&Master| m.ptmx == link && survey::compare((m.pid, m.fd), (pid, fd)) == Ok(Ordering::Equal);
                if let Some(master) = self.masters.iter().find(same) {
                    let other = procfs::who(pid);
                    let why =
                        format!("is the master of {}, which {other} has open too, as fd {fd}", master.path.display());
                    let ours = groups.iter().find(|g| (g.first().pid, g.first().fd) == (master.pid, master.fd));
                    let members = ours.map_or(&[][..], |g| &g.members);
                    refusals.extend(members.iter().map(|seen| No::new(why.clone(), TODO).at(seen)));
                }
            }
        }
        refusals
    }
}

impl Master {
    fn of(seen: &Seen) -> Option<Self> {
        let number: u32 = seen.info().ok()?.get("tty-index:")?.parse().ok()?;
        let folder = seen.link.parent()?;
        // Whatever is not in the file system of the terminals has that beside it (`devpts_mntget` of the kernel).
        let folder = if seen.filesystem == DEVPTS { folder.to_owned() } else { folder.join("pts") };
        let dev = if seen.filesystem == DEVPTS { seen.meta.dev() } else { fs::metadata(&folder).ok()?.dev() };
        Some(Self {
            key: (dev, number),
            pid: seen.pid,
            fd: seen.fd,
            ptmx: seen.link.clone(),
            path: folder.join(number.to_string()),
        })
    }

    fn state(&self, holders: &[Holder<'_>], groups: &[Group]) -> Result<State, No> {
        let path = self.path.display();
        let failed = |e: Errno| No::new(format!("is the master of {path}, which cannot be examined ({e})"), AGAIN);
        let ours = survey::fetch(holders, self.pid, self.fd).map_err(failed)?;
        let ours = ours.as_fd();
        let terminals = groups.iter().map(Group::first).filter(|s| {
            device(s).0 == TERMINALS && (s.meta.dev(), device(s).1) == self.key && s.flags & libc::O_PATH == 0
        });
        let terminals: Vec<OwnedFd> = terminals.filter_map(|s| get(holders, s).ok()).collect();
        let terminal = terminals.iter().map(AsFd::as_fd).find(|fd| !is_hung_up(*fd));
        let is_set = |what: Number| tty::number(ours, what).map(|n| n != 0).map_err(failed);
        let settings = tty::settings(ours).map_err(failed)?;
        if settings.line != 0 || tty::number(ours, Number::Discipline) != Ok(0) {
            let why = format!("is the master of {path}, whose line discipline is {}", settings.line);
            return Err(No::new(why, "have the job set it back to N_TTY"));
        }
        if tty::are_settings_locked(ours).map_err(failed)? {
            let why = format!("is the master of {path}, whose settings are locked (TIOCSLCKTRMIOS)");
            return Err(No::new(why, "have the job unlock them"));
        }
        let left = polled(ours).contains(PollFlags::POLLHUP);
        let meta = fs::metadata(&self.path).map_err(|e| {
            No::new(format!("is the master of {path}, which cannot be found ({e})"), "restore the mount of devpts")
        })?;
        let (session, foreground, without) = self.control(ours, holders)?;
        Ok(State {
            settings,
            size: tty::size(ours).map_err(failed)?,
            locked: is_set(Number::Locked)?,
            packets: is_set(Number::Packets)?,
            exclusive: [
                is_set(Number::Exclusive)?,
                terminal.is_some_and(|t| tty::number(t, Number::Exclusive) == Ok(1)),
            ],
            left: left && terminal.is_none(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            session,
            foreground,
            without,
            queues: Queues::default(),
        })
    }

    /// The session that it controls, the group in the foreground, and who of the session is without it.
    fn control(&self, ours: BorrowedFd<'_>, holders: &[Holder<'_>]) -> Result<(i32, i32, Vec<i32>), No> {
        let path = self.path.display();
        let Ok(session) = tty::number(ours, Number::Session) else { return Ok((0, 0, Vec::new())) };
        let pids = || holders.iter().flat_map(|h| std::iter::once(h.pid).chain(h.sharers.iter().copied()));
        if pids().all(|pid| pid != session) {
            let leader = procfs::who(session);
            let why = format!("is the master of {path}, which controls the session of {leader}, not of the job");
            return Err(No::new(why, "checkpoint both together"));
        }
        let foreground = tty::number(ours, Number::Foreground).unwrap_or(0);
        let stats: Vec<(i32, Vec<String>)> = pids().filter_map(|pid| Some((pid, procfs::stat(pid).ok()?))).collect();
        // Fields of proc(5)'s `stat`, of which the first that is there is the third.
        let field = |stat: &[String], n: usize| stat.get(n - 3).and_then(|v| v.parse::<i32>().ok()).unwrap_or(0);
        if foreground != 0 && stats.iter().all(|(_, s)| field(s, 5) != foreground) {
            let why =
                format!("is the master of {path}, where the group in the foreground, {foreground}, has just ended");
            return Err(No::new(why, "try again once a shell has taken the terminal back"));
        }
        let without = stats.iter().filter(|(_, s)| field(s, 6) == session && field(s, 7) == 0).map(|(pid, _)| *pid);
        Ok((session, foreground, without.collect()))
    }
}

/// A process that has the master of a pair open, and its number there; none when the master was closed.
pub fn master(files: &Files, pty: usize) -> Option<(i32, i32)> {
    end(files, pty, Side::Master)
}

fn end(files: &Files, pty: usize, side: Side) -> Option<(i32, i32)> {
    let is_it =
        |d: &Description| matches!(d, Description::Pty(e) if e.pty as usize == pty && e.side == side && !e.hung_up);
    let index = files.descriptions.iter().position(is_it)?;
    files.holders(index).first().copied()
}

/// Notes what is queued in a pair whose master process `at.0` has as `at.1`.
///
/// # Errors
/// [`Error::Refused`] when it cannot be put back.
pub fn set_queues(files: &mut Files, pty: usize, at: (i32, i32), told: &TtyQueues) -> Done<()> {
    let live = end(files, pty, Side::Terminal).is_some();
    let pair = &mut files.ptys[pty];
    let Some(state) = &mut pair.state else { return Ok(()) };
    let queues = Queues::of(told, &state.settings, state.packets, live || state.left);
    state.queues = queues.map_err(|no| refused(&pair.path, at, &no))?;
    Ok(())
}

/// Where nobody can read what is queued: refuses a pair in which something is.
///
/// # Errors
/// [`Error::Refused`].
pub fn refuse_unread(files: &Files, pty: usize, at: (i32, i32), holders: &[Holder<'_>]) -> Done<()> {
    const WITHOUT: &str = "wait until the job has read it, or run cr as root on a kernel with eBPF, which can read it";
    let refuse = |why: String| Err(refused(&files.ptys[pty].path, at, &No::new(why, WITHOUT)));
    let fetched = |(pid, fd): (i32, i32)| {
        survey::fetch(holders, pid, fd).map_err(|e| Error::system(format!("fetching fd {fd} of pid {pid}"), e))
    };
    // Asking also brings forward what is still on its way.
    let ours = fetched(at)?;
    let state = polled(ours.as_fd());
    let unread = readable_bytes(ours.as_fd()).unwrap_or(0);
    if unread > 0 || state.contains(PollFlags::POLLPRI) {
        return refuse(format!("with {unread} bytes of output that have not been read"));
    }
    let Some(terminal) = end(files, pty, Side::Terminal) else { return Ok(()) };
    let theirs = fetched(terminal)?;
    let state = polled(theirs.as_fd());
    let unread = readable_bytes(theirs.as_fd()).unwrap_or(0);
    if unread > 0 || state.contains(PollFlags::POLLIN) {
        return refuse(format!("with {unread} bytes of input that have not been read"));
    }
    if !state.contains(PollFlags::POLLOUT) {
        return refuse("whose output is stopped (Ctrl-S)".to_owned());
    }
    Ok(())
}

fn refused(path: &FilePath, (pid, fd): (i32, i32), no: &No) -> Error {
    let why = format!("is the master of {path}, {}", no.why);
    Error::Refused(vec![No::new(why, no.todo).at_number(pid, fd)])
}

fn device(seen: &Seen) -> (u32, u32) {
    if seen.meta.mode() & libc::S_IFMT != libc::S_IFCHR {
        return (0, 0);
    }
    (libc::major(seen.meta.rdev()), libc::minor(seen.meta.rdev()))
}

/// Everything about a terminal that was hung up is answered with EIO.
fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    tty::settings(fd) == Err(Errno::EIO)
}

fn polled(fd: BorrowedFd<'_>) -> PollFlags {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN | PollFlags::POLLPRI | PollFlags::POLLOUT)];
    let _ = poll(&mut polled, PollTimeout::ZERO);
    polled[0].revents().unwrap_or(PollFlags::empty())
}

fn get(holders: &[Holder<'_>], seen: &Seen) -> Result<OwnedFd, No> {
    let failed = |e: Errno| No::new(format!("cannot be examined ({e})"), "run cr as root or as the job's owner");
    survey::fetch(holders, seen.pid, seen.fd).map_err(failed)
}
