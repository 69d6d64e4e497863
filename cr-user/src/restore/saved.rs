//! What a chain says of the job, read and checked before anything is made.

use crate::error::{Error, Result};
use crate::object::cgroups::{self, Cgroups};
use crate::object::clocks::{self, Clocks};
use crate::object::credentials::{self, Credentials};
use crate::object::files::{self, FilePolicy, Files, RollbackPlan, inet};
use crate::object::ipc::{self, Ipc};
use crate::object::lineage::{self, Ancestry, Plan};
use crate::object::memory::backing::Backing;
use crate::object::memory::{self, Mapping, Mappings};
use crate::object::omitted::Omitted;
use crate::object::process::{self, Process};
use crate::object::records::get;
use crate::object::scheduling::{self, Scheduling};
use crate::object::seccomp::{self, Seccomp};
use crate::object::signals::{self, Signals};
use crate::object::threads::{self, Threads};
use crate::object::timers::{self, Timers};
use crate::object::zombies::{self, Zombie};
use crate::store::Chain;

/// The records of the newest image of a chain.
#[derive(Debug)]
pub struct Saved {
    /// The living processes, the root first and parents before their children.
    pub living: Vec<Living>,
    /// Processes that had ended.
    pub zombies: Vec<Zombie>,
    /// Open files.
    pub files: Files,
    /// Seccomp of all threads.
    pub seccomp: Seccomp,
    /// System V objects.
    pub ipc: Ipc,
    /// Control groups of all processes.
    pub cgroups: Cgroups,
    /// In which order the processes are made.
    pub plan: Plan,
    /// Every process, dead or alive.
    pub ancestry: Vec<Ancestry>,
    /// What the checkpoint leaves out.
    pub omitted: Omitted,
}

/// The records of one living process.
#[derive(Debug)]
pub struct Living {
    /// The process itself.
    pub process: Process,
    /// Its threads, the main one first.
    pub threads: Threads,
    /// Its mappings; none if its address space is its parent's.
    pub mappings: Vec<Mapping>,
    /// Its signals.
    pub signals: Signals,
    /// Its timers.
    pub timers: Timers,
    /// Its credentials.
    pub credentials: Credentials,
    /// Its clocks.
    pub clocks: Clocks,
    /// How it is scheduled.
    pub scheduling: Scheduling,
}

impl Living {
    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }
}

impl Saved {
    /// Reads the records.
    ///
    /// # Errors
    /// When one is missing or damaged.
    pub fn read(chain: &Chain, omitted: Omitted) -> Result<Self> {
        let image = chain.newest();
        let id = image.id();
        let processes: Vec<Process> = get(image, process::KIND)?;
        let mut all_threads = ByPid::new(id, threads::KIND.name, get(image, threads::KIND)?, |r: &Threads| r.pid);
        let mut mappings = ByPid::new(id, memory::KIND.name, get(image, memory::KIND)?, |r: &Mappings| r.pid);
        let mut signals = ByPid::new(id, signals::KIND.name, get(image, signals::KIND)?, |r: &Signals| r.pid);
        let mut timers = ByPid::new(id, timers::KIND.name, get(image, timers::KIND)?, |r: &Timers| r.pid);
        let mut credentials =
            ByPid::new(id, credentials::KIND.name, get(image, credentials::KIND)?, |r: &Credentials| r.pid);
        let mut clocks = ByPid::new(id, clocks::KIND.name, get(image, clocks::KIND)?, |r: &Clocks| r.pid);
        let mut scheduling =
            ByPid::new(id, scheduling::KIND.name, get(image, scheduling::KIND)?, |r: &Scheduling| r.pid);
        let zombies: Vec<Zombie> = get(image, zombies::KIND)?;
        let ancestry = Ancestry::of_saved(&processes, &zombies);
        let mut living = Vec::new();
        for process in processes {
            let pid = process.pid;
            let threads = all_threads.take(pid)?;
            let first = threads.all.first().map(|t| t.tid);
            if first.is_none_or(|tid| tid != pid && threads.head.is_none()) {
                return Err(incomplete(id, threads::KIND.name, pid));
            }
            living.push(Living {
                threads,
                mappings: if process.sharing.memory { Vec::new() } else { mappings.take(pid)?.all },
                signals: signals.take(pid)?,
                timers: timers.take(pid)?,
                credentials: credentials.take(pid)?,
                clocks: clocks.take(pid)?,
                scheduling: scheduling.take(pid)?,
                process,
            });
        }
        if living.is_empty() {
            return Err(incomplete(id, process::KIND.name, 0));
        }
        let plan = lineage::plan(&ancestry).map_err(lineage::Lost::into_error)?;
        Ok(Self {
            living,
            zombies,
            files: files::stored::read(chain.images())?,
            ipc: get(image, ipc::KIND)?,
            seccomp: get(image, seccomp::KIND)?,
            cgroups: get(image, cgroups::KIND)?,
            plan,
            ancestry,
            omitted,
        })
    }

    /// The job's root.
    pub fn root(&self) -> &Living {
        &self.living[0]
    }

    /// A living process.
    pub fn find(&self, pid: i32) -> Option<&Living> {
        self.living.iter().find(|l| l.pid() == pid)
    }

    /// The process whose address space a process has: itself, or one from which it descends.
    pub fn owner_of_memory(&self, mut pid: i32) -> i32 {
        while let Some(living) = self.find(pid).filter(|l| l.process.sharing.memory) {
            pid = living.process.ppid;
        }
        pid
    }

    /// Every mapping of every process.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> + Clone {
        self.living.iter().flat_map(|l| &l.mappings)
    }

    /// Whether the image holds the bytes of files or memory objects that others could see.
    pub fn has_stored_files(&self) -> bool {
        self.mappings().any(|m| matches!(m.backing, Backing::Object(_)))
            || self.files.descriptions.iter().any(|d| d.space().is_some())
            || !self.ipc.is_empty()
    }

    /// Holds everything that the job needs against what is here. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NotHere`] for the first thing that is missing or different.
    pub fn check(&self, policy: FilePolicy, tcp: inet::Policy) -> Result<RollbackPlan> {
        for living in &self.living {
            threads::check(&living.threads)?;
            process::check(&living.process)?;
        }
        self.seccomp.check()?;
        self.cgroups.check()?;
        self.ipc.check()?;
        self.zombies.iter().try_for_each(|z| process::pid_is_free(z.pid))?;
        memory::mapping::check(self.mappings())?;
        files::check(&self.files, policy, tcp)
    }
}

/// Records of which each process has one.
struct ByPid<T> {
    image: u64,
    name: &'static str,
    all: Vec<T>,
    pid: fn(&T) -> i32,
}

impl<T> ByPid<T> {
    fn new(image: u64, name: &'static str, all: Vec<T>, pid: fn(&T) -> i32) -> Self {
        Self { image, name, all, pid }
    }

    fn take(&mut self, pid: i32) -> Result<T> {
        let at = self.all.iter().position(|r| (self.pid)(r) == pid);
        at.map(|at| self.all.remove(at)).ok_or_else(|| incomplete(self.image, self.name, pid))
    }
}

fn incomplete(image: u64, record: &str, pid: i32) -> Error {
    Error::NotHere {
        what: format!("checkpoint {image}"),
        why: format!("its record `{record}` has nothing of pid {pid}"),
        todo: "run `cr verify`, and restore an older checkpoint with --id".to_owned(),
    }
}
