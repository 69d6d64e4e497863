//! Which processes belong to a job, and what of theirs they share.

use std::collections::HashSet;
use std::fs;
use std::io;

use nix::errno::Errno;

use crate::procfs::{self, voice};
use crate::sys::fd::{self, Shared};

/// How the processes of a job are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// The process that was named: the job's root.
    pub root: i32,
    /// Whoever gets the job's orphans, and has no other children: ourselves, where we started the job and are its
    /// subreaper.
    pub reaper: Option<i32>,
    /// Only these, of whom the root is the first.
    pub only: Option<Only>,
}

/// Some of the processes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Only {
    /// Their pids.
    pub pids: Vec<i32>,
    /// Without their descendants.
    pub single: bool,
}

/// A process of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relative {
    /// Its pid.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// It has ended, and its parent has not noticed.
    pub zombie: bool,
}

impl Family {
    /// Every process of the job, the root first and parents before their children.
    ///
    /// These are the root's descendants; orphans that its reaper got; and, where the root leads its session and nobody is known
    /// to get the orphans, whoever else is in that session. Processes that end meanwhile may be left out.
    ///
    /// # Errors
    /// When the root is gone.
    pub fn members(&self) -> io::Result<Vec<Relative>> {
        self.members_among(&mut Vec::new)
    }

    /// As [`members`](Self::members), with the orphans among those of whom somebody else knows that they are of the job, and
    /// live: whoever followed its forks, and says so each time that it is asked.
    ///
    /// # Errors
    /// When the root is gone.
    pub fn members_among(&self, living: &mut dyn FnMut() -> Vec<i32>) -> io::Result<Vec<Relative>> {
        let root = relative(self.root)?;
        if let Some(only) = &self.only {
            return Ok(Found { known: HashSet::from([root.pid]), all: vec![root] }.only(only));
        }
        let leads = procfs::stat(self.root)?.get(SESSION).is_some_and(|sid| *sid == self.root.to_string());
        let mut found = Found { known: HashSet::from([root.pid]), all: vec![root] };
        found.descend(0);
        let orphans = match self.reaper {
            Some(reaper) => procfs::children(reaper).unwrap_or_default(),
            None if leads => session(self.root),
            None => Vec::new(),
        };
        for orphan in orphans {
            let from = found.all.len();
            found.add(orphan);
            found.descend(from);
        }
        let strays = living().into_iter().filter(|pid| !found.known.contains(pid));
        let strays: Vec<Relative> = strays.filter_map(|pid| relative(pid).ok()).filter(|r| !r.zombie).collect();
        // Asked again: a pid may have become that of a stranger while it was looked at.
        let still = if strays.is_empty() { Vec::new() } else { living() };
        for stray in strays.iter().filter(|r| still.contains(&r.pid)) {
            let from = found.all.len();
            found.add(stray.pid);
            found.descend(from);
        }
        Ok(found.in_order())
    }
}

impl Relative {
    /// A process as it is now, and the thread that speaks for it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn look(pid: i32) -> io::Result<Self> {
        relative(pid)
    }
}

/// Index of the session among the fields of [`procfs::stat`].
const SESSION: usize = 3;

struct Found {
    known: HashSet<i32>,
    all: Vec<Relative>,
}

impl Found {
    /// Those that were chosen. Who has ended is its parent's concern, and stays with that one.
    fn only(mut self, only: &Only) -> Vec<Relative> {
        for pid in &only.pids {
            self.add(*pid);
        }
        if only.single {
            let parents: Vec<i32> = self.all.iter().filter(|r| !r.zombie).map(|r| r.pid).collect();
            let children = parents.into_iter().flat_map(|pid| procfs::children(pid).unwrap_or_default());
            let ended = children.filter(|child| relative(*child).is_ok_and(|r| r.zombie)).collect::<Vec<_>>();
            for pid in ended {
                self.add(pid);
            }
        } else {
            self.descend(0);
        }
        self.in_order()
    }

    /// Parents before their children, of whom some may have been found first.
    fn in_order(mut self) -> Vec<Relative> {
        let position = |pid: i32, all: &[Relative]| all.iter().position(|r| r.pid == pid);
        let mut at = 0;
        while at < self.all.len() {
            match position(self.all[at].ppid, &self.all) {
                Some(parent) if parent > at => {
                    let early = self.all.remove(at);
                    self.all.insert(parent, early);
                }
                _ => at += 1,
            }
        }
        self.all
    }

    /// Adds the descendants of everybody from number `next` on.
    fn descend(&mut self, mut next: usize) {
        while let Some(parent) = self.all.get(next) {
            if !parent.zombie {
                procfs::children(parent.pid).unwrap_or_default().into_iter().for_each(|child| self.add(child));
            }
            next += 1;
        }
    }

    fn add(&mut self, pid: i32) {
        if !self.known.contains(&pid)
            && let Ok(relative) = relative(pid)
        {
            self.known.insert(pid);
            self.all.push(relative);
        }
    }
}

fn relative(pid: i32) -> io::Result<Relative> {
    let stat = procfs::stat(pid)?;
    let ppid = stat.get(1).and_then(|v| v.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    // The main thread may have ended before others.
    let head_ended = stat.first().is_some_and(|state| matches!(state.as_str(), "Z" | "X"));
    Ok(Relative { pid, ppid, zombie: head_ended && procfs::find_voice(pid).is_none() })
}

/// The processes of a session.
fn session(sid: i32) -> Vec<i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let sid = sid.to_string();
    pids.filter(|pid| procfs::stat(*pid).is_ok_and(|stat| stat.get(SESSION) == Some(&sid))).collect()
}

/// What a process shares with its parent as threads of one process do.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Sharing {
    /// The address space (`CLONE_VM`).
    pub memory: bool,
    /// The table of descriptors (`CLONE_FILES`).
    pub files: bool,
    /// Directories and umask (`CLONE_FS`).
    pub directories: bool,
    /// Signal handlers (`CLONE_SIGHAND`).
    pub handlers: bool,
}

impl Sharing {
    /// What `pid` shares with `parent`.
    ///
    /// # Errors
    /// When either is gone.
    pub fn between(pid: i32, parent: i32) -> nix::Result<Self> {
        Ok(Self {
            memory: fd::shares(voice(pid), voice(parent), Shared::Memory)?,
            files: fd::shares(voice(pid), voice(parent), Shared::Files)?,
            directories: fd::shares(voice(pid), voice(parent), Shared::Directories)?,
            handlers: fd::shares(voice(pid), voice(parent), Shared::Handlers)?,
        })
    }

    /// Whether it is anything at all.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// The flags of `clone(2)` that make it so.
    pub fn clone_flags(self) -> u64 {
        let flag = |wanted: bool, flag: i32| if wanted { flag as u64 } else { 0 };
        flag(self.memory, libc::CLONE_VM)
            | flag(self.files, libc::CLONE_FILES)
            | flag(self.directories, libc::CLONE_FS)
            | flag(self.handlers, libc::CLONE_SIGHAND)
    }
}

/// Two processes of which neither is the other's parent, and that share something all the same.
///
/// # Errors
/// When one is gone.
pub fn strange_sharing(members: &[Relative]) -> nix::Result<Option<(i32, i32, Shared)>> {
    use std::cmp::Ordering;
    for what in [Shared::Memory, Shared::Files, Shared::Directories, Shared::Handlers] {
        // The kernel orders them: equal ones come to stand together.
        let mut sorted: Vec<&Relative> = Vec::new();
        for member in members.iter().filter(|m| !m.zombie) {
            let (mut low, mut high) = (0, sorted.len());
            while low < high {
                let middle = low.midpoint(high);
                match fd::compare(voice(member.pid), voice(sorted[middle].pid), what) {
                    Ok(Ordering::Greater) => low = middle + 1,
                    // Those that are just ending have nothing left, all of them the same.
                    Ok(Ordering::Equal) if is_ending(member.pid) || is_ending(sorted[middle].pid) => high = middle,
                    Ok(Ordering::Equal) => {
                        let other = sorted[middle];
                        let related = |a: &Relative, b: &Relative| a.ppid == b.pid && !b.zombie;
                        if !related(member, other) && !related(other, member) && !chain(members, member, other, what)? {
                            return Ok(Some((other.pid, member.pid, what)));
                        }
                        low = middle;
                        high = middle;
                    }
                    Ok(Ordering::Less) | Err(Errno::ESRCH) => high = middle,
                    Err(e) => return Err(e),
                }
            }
            sorted.insert(low, member);
        }
    }
    Ok(None)
}

fn is_ending(pid: i32) -> bool {
    procfs::link(pid, "exe").is_err()
}

/// Whether a line of parents that all share it leads from one to the other, or both to one.
fn chain(members: &[Relative], a: &Relative, b: &Relative, what: Shared) -> nix::Result<bool> {
    let top = |mut of: i32| -> nix::Result<i32> {
        while let Some(parent) = members.iter().find(|m| m.pid == of).map(|m| m.ppid)
            && members.iter().any(|m| m.pid == parent && !m.zombie)
            && fd::shares(voice(of), voice(parent), what)?
        {
            of = parent;
        }
        Ok(of)
    };
    Ok(top(a.pid)? == top(b.pid)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_with_parents_first() {
        let mut child =
            std::process::Command::new("sh").args(["-c", "sleep 60 & sh -c 'sleep 60; :' ; :"]).spawn().unwrap();
        let root = child.id() as i32;
        let family = Family { root, reaper: None, only: None };
        let complete = || family.members().is_ok_and(|m| m.len() == 4);
        for _ in 0..500 {
            if complete() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let members = family.members().unwrap();
        assert_eq!(members.len(), 4, "{members:?}");
        assert_eq!(members[0].pid, root);
        for (at, member) in members.iter().enumerate().skip(1) {
            assert!(members[..at].iter().any(|m| m.pid == member.ppid), "{members:?}");
        }
        assert_eq!(strange_sharing(&members).unwrap(), None);
        let only = |pids: Vec<i32>, single| {
            let family = Family { root: pids[0], reaper: None, only: Some(Only { pids, single }) };
            family.members().unwrap().iter().map(|m| m.pid).collect::<Vec<_>>()
        };
        let shell = members.iter().find(|m| members.iter().any(|c| c.ppid == m.pid && m.pid != root)).unwrap().pid;
        let below = members.iter().find(|m| m.ppid == shell).unwrap().pid;
        assert_eq!(only(vec![shell], false), [shell, below]);
        assert_eq!(only(vec![shell], true), [shell]);
        assert_eq!(only(vec![root, below], true), [root, below]);
        for member in members.iter().rev() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(member.pid), nix::sys::signal::Signal::SIGKILL);
        }
        child.wait().unwrap();
    }
}
