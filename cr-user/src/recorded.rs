//! All records of an image, read and validated one by one. What they say together is for [`crate::integrity`] to judge.

use serde::Serialize;

use crate::error::Result;
use crate::object::cgroups::{self, Cgroups};
use crate::object::clocks::{self, Clocks};
use crate::object::credentials::{self, Credentials};
use crate::object::files::{self, Files};
use crate::object::ipc::{self, Ipc};
use crate::object::memory::{self, Mappings};
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
use crate::store::compact::Compacted;

/// What the newest image of a chain says of the job, but for its memory. Fields are named as the records are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Records {
    /// Living processes, the root first and parents before their children.
    pub process: Vec<Process>,
    /// Threads, by process.
    pub threads: Vec<Threads>,
    /// Mappings, by process that has an address space of its own.
    pub mappings: Vec<Mappings>,
    /// Signals, by process.
    pub signals: Vec<Signals>,
    /// Timers, by process.
    pub timers: Vec<Timers>,
    /// Credentials, by process.
    pub credentials: Vec<Credentials>,
    /// Open files, with those descriptions that older images hold.
    pub files: Files,
    /// Scheduling, by process.
    pub scheduling: Vec<Scheduling>,
    /// Clocks, by process.
    pub clocks: Vec<Clocks>,
    /// System V objects.
    pub ipc: Ipc,
    /// Seccomp of all threads.
    pub seccomp: Seccomp,
    /// Processes that had ended.
    pub zombies: Vec<Zombie>,
    /// Control groups.
    pub cgroups: Cgroups,
    /// What the checkpoint leaves out.
    pub omitted: Omitted,
    /// Of which other checkpoint it was made; none: it was taken of the job itself.
    pub compacted: Option<Compacted>,
}

impl Records {
    /// Reads them.
    ///
    /// # Errors
    /// When one is missing or not valid.
    pub fn read(chain: &Chain) -> Result<Self> {
        let image = chain.newest();
        Ok(Self {
            process: get(image, process::KIND)?,
            threads: get(image, threads::KIND)?,
            mappings: get(image, memory::KIND)?,
            signals: get(image, signals::KIND)?,
            timers: get(image, timers::KIND)?,
            credentials: get(image, credentials::KIND)?,
            files: files::stored::read(chain.images())?,
            scheduling: get(image, scheduling::KIND)?,
            clocks: get(image, clocks::KIND)?,
            ipc: get(image, ipc::KIND)?,
            seccomp: get(image, seccomp::KIND)?,
            zombies: get(image, zombies::KIND)?,
            cgroups: get(image, cgroups::KIND)?,
            omitted: Omitted::of_image(image)?,
            compacted: Compacted::of_image(image),
        })
    }
}
