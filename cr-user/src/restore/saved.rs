//! What a chain says of the job, read and checked before anything is made.

use crate::error::{Error, Result};
use crate::object::clocks::{self, Clocks};
use crate::object::credentials::{self, Credentials};
use crate::object::files::{self, FilePolicy, Files, RollbackPlan};
use crate::object::memory::backing::Backing;
use crate::object::memory::{self, Mappings};
use crate::object::process::{self, Process};
use crate::object::records::get;
use crate::object::scheduling::{self, Scheduling};
use crate::object::signals::{self, Signals};
use crate::object::threads::{self, Threads};
use crate::object::timers::{self, Timers};
use crate::store::Chain;

/// The records of the newest image of a chain, for its one process.
#[derive(Debug)]
pub struct Saved {
    /// The process itself.
    pub process: Process,
    /// Its threads, the main one first.
    pub threads: Threads,
    /// Its mappings.
    pub mappings: Mappings,
    /// Its signals.
    pub signals: Signals,
    /// Its timers.
    pub timers: Timers,
    /// Its credentials.
    pub credentials: Credentials,
    /// Its open files.
    pub files: Files,
    /// Its clocks.
    pub clocks: Clocks,
    /// How it is scheduled.
    pub scheduling: Scheduling,
}

impl Saved {
    /// Reads the records.
    ///
    /// # Errors
    /// When one is missing or damaged.
    pub fn read(chain: &Chain) -> Result<Self> {
        let image = chain.newest();
        Ok(Self {
            process: only(get(image, process::KIND)?, image.id())?,
            threads: only(get(image, threads::KIND)?, image.id())?,
            mappings: only(get(image, memory::KIND)?, image.id())?,
            signals: only(get(image, signals::KIND)?, image.id())?,
            timers: only(get(image, timers::KIND)?, image.id())?,
            credentials: only(get(image, credentials::KIND)?, image.id())?,
            files: get(image, files::KIND)?,
            clocks: only(get(image, clocks::KIND)?, image.id())?,
            scheduling: only(get(image, scheduling::KIND)?, image.id())?,
        })
    }

    /// Whether the image holds the bytes of files or memory objects that others could see.
    pub fn has_stored_files(&self) -> bool {
        self.mappings.all.iter().any(|m| matches!(m.backing, Backing::Object(_)))
            || self.files.descriptions.iter().any(|d| d.space().is_some())
    }

    /// Holds everything that the job needs against what is here. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NotHere`] for the first thing that is missing or different.
    pub fn check(&self, policy: FilePolicy) -> Result<RollbackPlan> {
        threads::check(&self.threads)?;
        process::check(&self.process)?;
        memory::mapping::check(&self.mappings.all)?;
        files::check(&self.files, policy)
    }
}

fn only<T>(mut all: Vec<T>, id: u64) -> Result<T> {
    match (all.pop(), all.len()) {
        (Some(one), 0) => Ok(one),
        (_, more) => Err(Error::NotHere {
            what: format!("checkpoint {id}"),
            why: format!("it is of {} processes, and this version of cr restores one", more + 1),
            todo: "use the version of cr that took it".to_owned(),
        }),
    }
}
