//! What a chain says of the job, read and checked before anything is made.

use crate::error::{Error, Result};
use crate::object::cgroups::Cgroups;
use crate::object::clocks::{self, Clocks};
use crate::object::credentials::{self, Credentials};
use crate::object::files::{self, FilePolicy, Files, RollbackPlan, inet};
use crate::object::ipc::Ipc;
use crate::object::lineage::{self, Ancestry, Plan};
use crate::object::memory::backing::Backing;
use crate::object::memory::{self, Mapping, Mappings};
use crate::object::omitted::Omitted;
use crate::object::process::{self, Process};
use crate::object::scheduling::{self, Scheduling};
use crate::object::seccomp::Seccomp;
use crate::object::signals::{self, Signals};
use crate::object::threads::{self, Threads};
use crate::object::timers::{self, Timers};
use crate::object::zombies::Zombie;
use crate::recorded::Records;

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
    /// Sorts records, which fit together ([`integrity`](crate::integrity)), by process.
    ///
    /// # Errors
    /// When a process lacks one all the same, or cannot get into its session again.
    pub fn new(records: Records) -> Result<Self> {
        let Records { process, zombies, files, seccomp, ipc, cgroups, omitted, .. } = records;
        let mut threads = ByPid::new(threads::KIND.name, records.threads, |r: &Threads| r.pid);
        let mut mappings = ByPid::new(memory::KIND.name, records.mappings, |r: &Mappings| r.pid);
        let mut signals = ByPid::new(signals::KIND.name, records.signals, |r: &Signals| r.pid);
        let mut timers = ByPid::new(timers::KIND.name, records.timers, |r: &Timers| r.pid);
        let mut credentials = ByPid::new(credentials::KIND.name, records.credentials, |r: &Credentials| r.pid);
        let mut clocks = ByPid::new(clocks::KIND.name, records.clocks, |r: &Clocks| r.pid);
        let mut scheduling = ByPid::new(scheduling::KIND.name, records.scheduling, |r: &Scheduling| r.pid);
        let ancestry = Ancestry::of_saved(&process, &zombies);
        let mut living = Vec::new();
        for process in process {
            let pid = process.pid;
            living.push(Living {
                threads: threads.take(pid)?,
                mappings: if process.sharing.memory { Vec::new() } else { mappings.take(pid)?.all },
                signals: signals.take(pid)?,
                timers: timers.take(pid)?,
                credentials: credentials.take(pid)?,
                clocks: clocks.take(pid)?,
                scheduling: scheduling.take(pid)?,
                process,
            });
        }
        let plan = lineage::plan(&ancestry).map_err(lineage::Lost::into_error)?;
        Ok(Self { living, zombies, files, seccomp, ipc, cgroups, plan, ancestry, omitted })
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
    name: &'static str,
    all: Vec<T>,
    pid: fn(&T) -> i32,
}

impl<T> ByPid<T> {
    fn new(name: &'static str, all: Vec<T>, pid: fn(&T) -> i32) -> Self {
        Self { name, all, pid }
    }

    fn take(&mut self, pid: i32) -> Result<T> {
        let at = self.all.iter().position(|r| (self.pid)(r) == pid);
        at.map(|at| self.all.remove(at)).ok_or_else(|| Error::NotHere {
            what: "the checkpoint".to_owned(),
            why: format!("its record `{}` has nothing of pid {pid}", self.name),
            todo: "run `cr verify`, and restore an older checkpoint with --id".to_owned(),
        })
    }
}
