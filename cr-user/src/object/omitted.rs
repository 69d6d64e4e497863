//! What a partial checkpoint leaves out of the job. An image that leaves nothing out has no such record.
//!
//! Memory that is left out is absent in the image, as memory is that never was touched: this record tells the two apart.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, Refusal, Result};
use crate::image::{Image, RecordKind};
use crate::object::records::{self, Sound, are_pages};
use crate::ranges::RangeSet;
use crate::sys::PAGE;

/// The record of what is left out.
pub const KIND: RecordKind = RecordKind { id: 40, version: 1, name: "omitted" };

/// Everything that is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Omitted {
    /// Memory whose content is not in the chain.
    pub memory: Vec<Memory>,
    /// Living processes of the job that were not taken.
    pub processes: Vec<Process>,
    /// What the processes that were taken have to do with those that were not: they cannot be restored without them.
    pub missing: Vec<Missing>,
}

/// A part of one mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Memory {
    /// The process.
    pub pid: i32,
    /// First byte.
    pub start: u64,
    /// Past the last byte.
    pub end: u64,
    /// How many of its pages had content.
    pub pages: u64,
    /// Why it is left out.
    pub reason: Reason,
    /// The content space that lacks the pages.
    pub space: u64,
    /// The number of the first page there.
    pub first_page: u64,
}

/// Why memory is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// `--skip-memory` named it.
    SkipMemory,
    /// The job had said `MADV_DONTDUMP` of it, and `--honour-dontdump` was given.
    DontDump,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its name.
    pub name: String,
}

/// Something of a process that leads to one that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Missing {
    /// The process.
    pub pid: i32,
    /// Where: `fd 4`, `0x7f12…`, `the process`.
    #[serde(rename = "where")]
    pub place: String,
    /// What it is, and whom it leads to.
    pub why: String,
}

impl From<Refusal> for Missing {
    fn from(Refusal { pid, place, why, .. }: Refusal) -> Self {
        Self { pid, place, why }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}: {} {}", self.pid, self.place, self.why)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SkipMemory => "--skip-memory",
            Self::DontDump => "MADV_DONTDUMP",
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, start, end, pages, reason, .. } = self;
        let unit = if *pages == 1 { "page" } else { "pages" };
        write!(f, "{pages} {unit} of pid {pid} at {start:#x}-{end:#x} ({reason})")
    }
}

impl Omitted {
    /// What an image leaves out.
    ///
    /// # Errors
    /// When its record is not valid.
    pub fn of_image(image: &Image) -> Result<Self> {
        match image.record_version(KIND.id) {
            Some(_) => records::get(image, KIND),
            None => Ok(Self::default()),
        }
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.processes.is_empty() && self.missing.is_empty()
    }

    /// What is left out, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let memory = self.memory.iter().map(ToString::to_string);
        memory.chain(self.processes.iter().map(ToString::to_string)).collect()
    }

    /// Pages of a content space that are left out.
    pub fn pages_of(&self, space: u64) -> RangeSet {
        let parts = self.memory.iter().filter(|m| m.space == space);
        RangeSet::from_unsorted(parts.map(|m| m.first_page..m.first_page + (m.end - m.start) / PAGE).collect())
    }

    /// Refuses to restore what cannot stand alone, and (unless `accept_missing`) what lacks memory.
    ///
    /// # Errors
    /// [`Error::NotHere`] that names it.
    pub fn check(&self, id: u64, accept_missing: bool) -> Result<()> {
        let refuse = |why: String, todo: &str| {
            Err(Error::NotHere { what: format!("checkpoint {id}"), why, todo: todo.to_owned() })
        };
        if !self.missing.is_empty() {
            let why = format!("it is of a part of a job that cannot stand alone: {}", first_of(&self.missing));
            let todo = "restore a checkpoint of the whole job, or take one with --only of all that belong together";
            return refuse(why, todo);
        }
        if !self.memory.is_empty() && !accept_missing {
            let why = format!("it leaves out memory of the job: {}", first_of(&self.memory));
            let todo = "add --accept-missing to have zeroes there (where a file is mapped: what is in the file), or \
                        restore another checkpoint with --id";
            return refuse(why, todo);
        }
        Ok(())
    }
}

/// The first few in words.
fn first_of(all: &[impl fmt::Display]) -> String {
    const MOST: usize = 8;
    let mut words: Vec<String> = all.iter().take(MOST).map(ToString::to_string).collect();
    if all.len() > MOST {
        words.push(format!("and {} more", all.len() - MOST));
    }
    words.join("; ")
}

impl Sound for Omitted {
    fn fault(&self) -> Option<String> {
        let wrong = self.memory.iter().find(|m| !are_pages(m.start, m.end) || m.first_page > 1 << 52);
        wrong.map(|m| format!("it leaves out {:#x}-{:#x}, which is not whole pages", m.start, m.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(space: u64, first_page: u64, pages: u64) -> Memory {
        let (start, end) = (first_page * PAGE, (first_page + pages) * PAGE);
        Memory { pid: 7, start, end, pages, reason: Reason::SkipMemory, space, first_page }
    }

    #[test]
    fn memory_that_is_left_out_must_be_accepted() {
        let omitted = Omitted { memory: vec![memory(7, 16, 2)], ..Omitted::default() };
        let error = omitted.check(3, false).unwrap_err();
        assert_eq!(error.exit_code(), 123);
        let said = error.to_string();
        assert!(said.contains("checkpoint 3") && said.contains("2 pages of pid 7 at 0x10000-0x12000"), "{said}");
        omitted.check(3, true).unwrap();
        assert_eq!(omitted.pages_of(7), RangeSet::from(16..18));
        assert!(omitted.pages_of(8).is_empty());
    }

    #[test]
    fn what_leads_to_others_is_never_accepted() {
        let missing = Missing { pid: 12, place: "fd 4".into(), why: "is a pipe".into() };
        let omitted = Omitted { missing: vec![missing; 10], ..Omitted::default() };
        let said = omitted.check(1, true).unwrap_err().to_string();
        assert!(said.contains("pid 12: fd 4 is a pipe; ") && said.contains("and 2 more"), "{said}");
    }
}
