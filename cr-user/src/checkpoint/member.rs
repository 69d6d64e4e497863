//! One process of the job under our eyes: its memory, what watches it, and what is owed of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;

use crate::checkpoint::narrow::{Noted, Question, Scope, Settled, Why};
use crate::checkpoint::shown::Shown;
use crate::checkpoint::told::Kept;
use crate::error::{Error, Result};
use crate::family::{Relative, Sharing};
use crate::fault;
use crate::object::files::Holder;
use crate::object::memory::read::Memory;
use crate::object::spaces::Spaces;
use crate::procfs;
use crate::ranges::RangeSet;
use crate::remote::freeze::Stopped;
use crate::remote::{Gadgets, Puppet};
use crate::sys::fd;
use crate::track::hints::AddressSpaceId;
use crate::track::{Heat, Oracle, oracle};

/// A living process of the job.
#[derive(Debug)]
pub struct Member {
    /// Its pid.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    pidfd: OwnedFd,
    /// Another thread that speaks for it since its main thread has ended, and its pidfd.
    voice: Option<(i32, OwnedFd)>,
    /// What it shares with its parent.
    pub sharing: Sharing,
    /// Its memory.
    pub memory: Memory,
    /// What watches its address space; none when nothing can, or nothing does yet.
    pub oracle: Option<Oracle>,
    /// What was found out about it.
    pub known: Known,
    /// The program that it was executing when it was last looked at.
    seen_program: (String, String),
    /// Pages whose written-bit was taken, and that no durable checkpoint holds yet.
    pub debt: RangeSet,
    /// Of the debt, pages that pre-copy took but did not copy.
    pub late: RangeSet,
    /// What the last frozen window left of its page tables.
    pub settled: Settled,
    /// The address space of which everything was noted since a moment at which the process stood still. A fault that was under way when
    /// the programs began to follow it was not noted.
    pub noted_from: Option<AddressSpaceId>,
    /// Why its page tables were asked about everything by the last frozen window; none: they were asked about some.
    pub wide: Option<Why>,
    /// What was noted of written pages was wrong once: it is not relied on any more.
    pub distrusts_notes: bool,
    /// Which pages are written all the time.
    pub heat: Heat,
    /// No oracle can be had: that was said.
    pub hopeless: bool,
}

impl Member {
    /// Takes a process under our eyes. Nothing of it is stopped or changed. `in_job`: its parent is of the job too.
    ///
    /// # Errors
    /// When it is gone, or may not be examined.
    pub fn open(relative: &Relative, in_job: bool) -> Result<Self> {
        let pid = relative.pid;
        let pidfd = fd::pidfd_open(pid).map_err(|_| Error::NoSuchJob { pid })?;
        let memory = Memory::open(pid).map_err(|_| Error::NotAllowed {
            pid,
            why: format!("it belongs to another user{}", owner(pid)),
            todo: "run cr as root, or as the job's owner".to_owned(),
        })?;
        let mut member = Self {
            pid,
            ppid: relative.ppid,
            pidfd,
            voice: None,
            sharing: Sharing::default(),
            memory,
            oracle: None,
            known: Known::default(),
            seen_program: Default::default(),
            debt: RangeSet::new(),
            late: RangeSet::new(),
            settled: Settled::default(),
            noted_from: None,
            wide: Some(Why::First),
            distrusts_notes: false,
            heat: Heat::default(),
            hopeless: false,
        };
        member.relate(relative.ppid, in_job)?;
        member.look_at_program();
        Ok(member)
    }

    /// Looks again at who its parent is, and what it shares with that.
    ///
    /// # Errors
    /// When one of the two is gone.
    pub fn relate(&mut self, ppid: i32, in_job: bool) -> Result<()> {
        self.ppid = ppid;
        let voice = procfs::voice(self.pid);
        if voice == self.pid {
            self.voice = None;
        } else if self.voice.as_ref().is_none_or(|(tid, _)| *tid != voice) {
            let failed = |e| match e {
                Errno::EINVAL => Error::NotAllowed {
                    pid: self.pid,
                    why: "its main thread has ended before others, which this kernel has no pidfds for".to_owned(),
                    todo: "use Linux 6.9 or later".to_owned(),
                },
                e => Error::system(format!("opening a pidfd of thread {voice}"), e),
            };
            self.voice = Some((voice, fd::pidfd_open_with(voice, fd::PIDFD_THREAD).map_err(failed)?));
        }
        self.sharing = if in_job {
            let failed = |e| Error::system(format!("comparing pid {} with its parent", self.pid), e);
            Sharing::between(self.pid, ppid).map_err(failed)?
        } else {
            Sharing::default()
        };
        Ok(())
    }

    /// Becomes readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// A pidfd by which its descriptors can be fetched.
    pub fn table_of(&self) -> BorrowedFd<'_> {
        self.voice.as_ref().map_or(&self.pidfd, |(_, pidfd)| pidfd).as_fd()
    }

    /// The content space of its address space.
    pub fn space(&self) -> u64 {
        Spaces::of_process(self.pid)
    }

    /// Whether its address space is its own, and not that of its parent.
    pub fn has_own_memory(&self) -> bool {
        !self.sharing.memory
    }

    /// Whether the process has ended, or is about to: what it had may be gone already.
    pub fn is_ending(&self) -> bool {
        self.has_ended() || procfs::is_ending(self.pid)
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    /// What changes whenever the process executes another program: where the kernel put its stack and its code.
    fn program(&self) -> (String, String) {
        let read = |tid: i32| {
            let stat = procfs::stat(tid).unwrap_or_default();
            let field = |n: usize| stat.get(n - 3).cloned().unwrap_or_default();
            (field(26), field(28))
        };
        match read(procfs::voice(self.pid)) {
            // The main thread has ended, and has none any more.
            (code, stack) if stack == "0" => procfs::find_voice(self.pid).map_or((code, stack), read),
            program => program,
        }
    }

    /// Whether the process executes another program than when it was last looked at.
    pub fn has_changed_program(&self) -> bool {
        self.program() != self.seen_program
    }

    /// Notes which program it executes now. What was found out about another one is forgotten.
    pub fn look_at_program(&mut self) {
        let program = self.program();
        if self.seen_program != program {
            self.known = Known::default();
            self.seen_program = program;
        }
    }

    /// When the process has called `execve`, the address space that was watched is gone, and all that it held with it. Says
    /// whether that is so.
    pub fn forget_lost_program(&mut self) -> bool {
        let lost = self.oracle.as_ref().is_some_and(|o| !o.is_alive());
        if lost {
            self.oracle = None;
            self.settled = Settled::default();
            self.noted_from = None;
            self.heat = Heat::default();
            self.known = Known::default();
            self.hopeless = false;
        }
        lost
    }

    /// Looks for the instructions in advance, while the process runs.
    ///
    /// # Errors
    /// When there are none.
    pub fn find_gadgets(&mut self) -> Result<()> {
        self.known.gadgets(self.pid).map(drop)
    }

    /// Makes the oracle in the stopped process. Why there is none is told back: every page is then dirty every time, which
    /// is slow, and still right.
    ///
    /// # Errors
    /// When the process dies, or a test wanted it.
    pub fn open_oracle(&mut self, stopped: &Stopped) -> Result<Option<String>> {
        if oracle::is_anothers(self.pid) {
            self.hopeless = true;
            return Ok(Some("another controller tracks the job's memory: everything was read".to_owned()));
        }
        let gadgets = self.known.gadgets(self.pid)?;
        let mut puppet = Puppet::begin(self.pid, &stopped.tids(), gadgets)?;
        let opened = Oracle::open(&mut puppet, self.pid, self.table_of());
        puppet.end()?;
        match opened {
            Ok(oracle) => self.oracle = Some(oracle),
            Err(Error::Injected(e)) => return Err(e.into()),
            Err(e) => {
                self.hopeless = true;
                return Ok(Some(format!("no tracking of written pages ({e}): everything was read")));
            }
        }
        fault::point("attach.frozen")?;
        Ok(None)
    }

    /// What its page tables must be asked about, standing still.
    pub fn scope(&self, noted: Option<&Noted>) -> Scope {
        if self.distrusts_notes {
            return Scope::Everything(Why::Wrong);
        }
        self.settled.scope(noted)
    }

    /// What its page tables are worth being asked about while it runs; none: everything.
    pub fn hint(&self, noted: Option<&Noted>) -> Option<Question> {
        self.settled.hint(noted.filter(|_| !self.distrusts_notes))
    }

    /// After a checkpoint is durable: what it holds is owed no longer.
    pub fn settle(&mut self) {
        self.debt = RangeSet::new();
        self.late = RangeSet::new();
    }
}

/// The tables of descriptors of processes: each with the process that stands for it.
pub fn holders(members: &[Member]) -> Vec<Holder<'_>> {
    let mut holders: Vec<Holder<'_>> = Vec::new();
    for member in members {
        let parent = member.sharing.files.then_some(member.ppid);
        let shared = holders.iter_mut().find(|h| parent.is_some_and(|p| h.pid == p || h.sharers.contains(&p)));
        if let Some(holder) = shared {
            holder.sharers.push(member.pid);
        } else {
            let (pid, pidfd) = (member.pid, member.table_of());
            holders.push(Holder { pid, pidfd, sharers: Vec::new(), listed: None });
        }
    }
    holders
}

/// What was found out about a process, and need not be again.
#[derive(Debug, Default)]
pub struct Known {
    gadgets: Option<Gadgets>,
    /// What it told about itself.
    pub told: Option<Kept>,
    /// What `/proc` showed of it.
    pub shown: Option<Shown>,
}

impl Known {
    /// Instructions of process `pid`, of which this is known, that can be borrowed, wherever they stand now.
    ///
    /// # Errors
    /// When there are none.
    pub fn gadgets(&mut self, pid: i32) -> Result<Gadgets> {
        let found = match self.gadgets.filter(|g| g.still_there(pid)) {
            Some(gadgets) => gadgets,
            None => {
                Gadgets::find(pid).map_err(|e| Error::system(format!("looking through the code of pid {pid}"), e))?
            }
        };
        Ok(*self.gadgets.insert(found))
    }
}

/// The name of a process's user, in brackets.
fn owner(pid: i32) -> String {
    let user = std::fs::metadata(format!("/proc/{pid}")).map(|m| nix::unistd::Uid::from_raw(m.uid()));
    user.map_or(String::new(), |uid| match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => format!(" ({})", user.name),
        _ => format!(" ({uid})"),
    })
}
