//! Memory that a checkpoint leaves out: ranges that were named, and what the job itself had said is not to be dumped.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::object::memory::Mapping;
use crate::object::memory::advice;
use crate::object::memory::backing::Backing;
use crate::object::omitted::{Memory, Reason};
use crate::object::spaces::Spaces;
use crate::procfs::Vma;
use crate::ranges::RangeSet;
use crate::sys::PAGE;

/// A range of addresses: `START-END` in hexadecimal, as `/proc/PID/maps` has it, or `PID:START-END`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryRange {
    /// The process; none for every process of the job.
    pub pid: Option<i32>,
    /// First byte, at a page.
    pub start: u64,
    /// Past the last byte, at a page.
    pub end: u64,
}

/// What is left out of the job's memory.
#[derive(Clone, Debug, Default)]
pub struct LeaveOut {
    /// Ranges of which there must be something.
    pub asked: Vec<MemoryRange>,
    /// Ranges of which there may be nothing by now.
    pub standing: Vec<MemoryRange>,
    /// Mappings that are left out of core dumps (`MADV_DONTDUMP`).
    pub dont_dump: bool,
}

impl FromStr for MemoryRange {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("`{text}` is no range: write START-END in hexadecimal, as in /proc/PID/maps");
        let (pid, range) = match text.split_once(':') {
            Some((pid, range)) => {
                let pid = pid.parse().ok().filter(|pid| *pid > 0);
                (Some(pid.ok_or_else(|| format!("`{text}`: write PID:START-END"))?), range)
            }
            None => (None, text),
        };
        let (start, end) = range.split_once('-').ok_or_else(wrong)?;
        let address = |word: &str| {
            let digits = word.strip_prefix("0x").unwrap_or(word);
            let number = Some(digits).filter(|d| !d.starts_with('+')).and_then(|d| u64::from_str_radix(d, 16).ok());
            let number = number.ok_or_else(wrong)?;
            if number % PAGE == 0 { Ok(number) } else { Err(format!("{number:#x} is not at a page of {PAGE} bytes")) }
        };
        let (start, end) = (address(start)?, address(end)?);
        if start >= end {
            return Err(format!("{start:#x}-{end:#x} is empty: START must be below END"));
        }
        Ok(Self { pid, start, end })
    }
}

impl fmt::Display for MemoryRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.map_or(Ok(()), |pid| write!(f, "{pid}:"))?;
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

impl TryFrom<String> for MemoryRange {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<MemoryRange> for String {
    fn from(range: MemoryRange) -> Self {
        range.to_string()
    }
}

impl LeaveOut {
    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.standing.is_empty() && !self.dont_dump
    }

    /// What a controller leaves out of every checkpoint: nothing of it need be there.
    #[must_use]
    pub fn standing(mut self) -> Self {
        self.standing.append(&mut self.asked);
        self
    }

    /// Adds what is left out of one checkpoint besides.
    #[must_use]
    pub fn with(mut self, asked: &[MemoryRange], dont_dump: bool) -> Self {
        self.asked.extend(asked);
        self.dont_dump |= dont_dump;
        self
    }

    /// Addresses of one process that are left out, as page numbers; none of memory that others see too.
    pub fn pages_of(&self, pid: i32, vmas: &[Vma]) -> RangeSet {
        let private = vmas.iter().filter(|v| !v.shared);
        let parts = private.flat_map(|v| self.parts(pid, v.start..v.end, v.has("dd")));
        RangeSet::from_unsorted(parts.map(|(range, _)| range.start / PAGE..range.end / PAGE).collect())
    }

    /// The parts of one mapping that are left out.
    fn parts(&self, pid: i32, mapping: Range<u64>, dont_dump: bool) -> Vec<(Range<u64>, Reason)> {
        let named = self.asked.iter().chain(&self.standing).filter(|r| r.pid.is_none_or(|p| p == pid));
        let named: RangeSet = named.map(|r| r.start.max(mapping.start)..r.end.min(mapping.end)).collect();
        let mut parts: Vec<_> = named.iter().map(|r| (r, Reason::SkipMemory)).collect();
        if self.dont_dump && dont_dump {
            let rest = RangeSet::from(mapping).difference(&named);
            parts.extend(rest.iter().map(|r| (r, Reason::DontDump)));
        }
        parts
    }

    /// Holds the ranges against the memory that there is, by process. Says which of those that may be gone are.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] for the first that names nothing and should.
    pub fn look_for_ranges(&self, root: i32, memory: &[(i32, Vec<Vma>)]) -> Result<Vec<String>> {
        let is_there = |r: &MemoryRange| {
            let mut of = memory.iter().filter(|(pid, _)| r.pid.is_none_or(|p| p == *pid));
            of.any(|(_, vmas)| vmas.iter().any(|v| v.start < r.end && r.start < v.end))
        };
        if let Some(range) = self.asked.iter().find(|r| !is_there(r)) {
            let (why, todo) = match range.pid.filter(|pid| memory.iter().all(|(known, _)| known != pid)) {
                Some(pid) => (
                    format!(
                        "memory is to be left out of pid {pid}, which is no process of the job with memory of its own"
                    ),
                    "name a process of the job".to_owned(),
                ),
                None => (
                    format!("nothing is mapped at {range}, which is to be left out"),
                    format!("look up the ranges in /proc/{}/maps", range.pid.unwrap_or(root)),
                ),
            };
            return Err(Error::NotAllowed { pid: root, why, todo });
        }
        let gone = self.standing.iter().filter(|r| !is_there(r));
        Ok(gone.map(|r| format!("nothing is mapped at {r}, which was to be left out")).collect())
    }
}

/// What is left out of a job that stands still.
#[derive(Debug, Default)]
pub struct Plan {
    parts: Vec<Memory>,
    /// By content space.
    pages: HashMap<u64, RangeSet>,
}

impl Plan {
    /// Finds what is left out of these mappings, by process. A page of an object that several mappings show is left out if
    /// a named range covers it in one of them, or if all of them are not to be dumped.
    pub fn of(leave_out: &LeaveOut, processes: &[(i32, Vec<Mapping>)]) -> Self {
        let mut plan = Self::default();
        if leave_out.is_empty() {
            return plan;
        }
        let mut dumped: HashMap<u64, RangeSet> = HashMap::new();
        for (pid, mapping) in processes.iter().flat_map(|(pid, all)| all.iter().map(move |m| (*pid, m))) {
            let Some((space, first)) = place_of(pid, mapping) else { continue };
            let dont_dump = mapping.has(advice::DONT_DUMP);
            if !dont_dump {
                dumped.entry(space).or_default().insert(first..first + mapping.len() / PAGE);
            }
            for (range, reason) in leave_out.parts(pid, mapping.start..mapping.end, dont_dump) {
                let first_page = first + (range.start - mapping.start) / PAGE;
                plan.parts.push(Memory {
                    pid,
                    start: range.start,
                    end: range.end,
                    pages: 0,
                    reason,
                    space,
                    first_page,
                });
            }
        }
        for part in &plan.parts {
            let mut pages = RangeSet::from(part.first_page..part.first_page + (part.end - part.start) / PAGE);
            if let (Reason::DontDump, Some(dumped)) = (part.reason, dumped.get(&part.space)) {
                pages = pages.difference(dumped);
            }
            let of_space = plan.pages.entry(part.space).or_default();
            *of_space = of_space.union(&pages);
        }
        plan
    }

    /// Pages of a space that are left out.
    pub fn pages_of(&self, space: u64) -> RangeSet {
        self.pages.get(&space).cloned().unwrap_or_default()
    }

    /// What is left out, given the pages of each space that are there and were not taken.
    pub fn found(self, left_out: &HashMap<u64, RangeSet>) -> Vec<Memory> {
        let count = |part: &Memory| {
            let all = RangeSet::from(part.first_page..part.first_page + (part.end - part.start) / PAGE);
            left_out.get(&part.space).map_or(0, |pages| pages.intersection(&all).count())
        };
        let counted = self.parts.into_iter().map(|part| Memory { pages: count(&part), ..part });
        counted.filter(|part| part.pages > 0).collect()
    }
}

/// The content space that holds the pages of a mapping, and the number of the first one there.
fn place_of(pid: i32, mapping: &Mapping) -> Option<(u64, u64)> {
    match &mapping.backing {
        Backing::Object(object) if mapping.shared => Some((object.space, mapping.offset / PAGE)),
        _ if mapping.has_own_content() => Some((Spaces::of_process(pid), mapping.start / PAGE)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::memory::backing::{Object, ObjectKind};

    #[test]
    fn ranges_are_written_as_in_maps() {
        let range = |pid, start, end| Ok(MemoryRange { pid, start, end });
        assert_eq!("0x1000-0x3000".parse(), range(None, 0x1000, 0x3000));
        assert_eq!("7f0000001000-7f0000002000".parse(), range(None, 0x7f00_0000_1000, 0x7f00_0000_2000));
        assert_eq!("12:1000-2000".parse(), range(Some(12), 0x1000, 0x2000));
        for bad in
            ["", "1000", "1000-", "x-y", "-1000-2000", "1001-3000", "2000-1000", "1000-1000", ":1000-2000", "0:0-1000"]
        {
            assert!(bad.parse::<MemoryRange>().is_err(), "{bad}");
        }
        let text = serde_json::to_string(&"12:1000-2000".parse::<MemoryRange>().unwrap()).unwrap();
        assert_eq!(text, "\"12:0x1000-0x2000\"");
    }

    fn mapping(start: u64, pages: u64, object: Option<(u64, u64)>, advice: u32) -> Mapping {
        let backing = object.map_or(Backing::Anonymous, |(space, _)| {
            Backing::Object(Object { space, kind: ObjectKind::SharedAnonymous, size: 1 << 20 })
        });
        Mapping {
            start,
            end: start + pages * PAGE,
            prot: 3,
            shared: object.is_some(),
            offset: object.map_or(0, |(_, first)| first * PAGE),
            backing,
            advice,
            page_size: PAGE,
            name: None,
            guards: Vec::new(),
        }
    }

    #[test]
    fn shared_pages_are_left_out_of_the_object() {
        let space = 1 << 32;
        let maps = vec![
            (
                7,
                vec![
                    mapping(0x10000, 4, None, advice::DONT_DUMP),
                    mapping(0x20000, 8, Some((space, 2)), advice::DONT_DUMP),
                ],
            ),
            (8, vec![mapping(0x20000, 4, Some((space, 2)), 0)]),
        ];
        // The process 8 has the first four of the shared pages dumped.
        let plan = Plan::of(&LeaveOut { dont_dump: true, ..LeaveOut::default() }, &maps);
        assert_eq!(plan.pages_of(7), RangeSet::from(16..20));
        assert_eq!(plan.pages_of(space), RangeSet::from(6..10));
        assert!(plan.pages_of(8).is_empty());
        let found = plan.found(&HashMap::from([(space, RangeSet::from(7..9))]));
        assert_eq!((found.len(), found[0].pages, found[0].first_page), (1, 2, 2));

        let asked = vec!["8:0x21000-0x22000".parse().unwrap()];
        let plan = Plan::of(&LeaveOut { asked, ..LeaveOut::default() }, &maps);
        assert_eq!(plan.pages_of(space), RangeSet::from(3..4));
        assert!(plan.pages_of(7).is_empty());
    }
}
