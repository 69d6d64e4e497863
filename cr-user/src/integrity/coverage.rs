//! Every page of every mapping has one source, and every page that the chain holds is of a mapping or an object.
//!
//! | mapping | source of a page |
//! |---|---|
//! | private | what the chain says of the process's space; where it says "absent", what stands behind the mapping: zeroes, the file, the object |
//! | shared, of a stored object | what the chain says of the object's space; where it says "absent", zeroes |
//! | shared, of a file that is not stored | the file |
//! | the kernel's pages, rings of Linux AIO | the kernel, the record |
//!
//! Since mappings do not overlap (a record in which they do is not read) and a chain gives each page of a space one meaning, that is one source for each. A checkpoint names
//! as absent what was unmapped since its parent, so whatever still has content is mapped. Spaces of processes and objects that have
//! ended stay in older images, and are no longer spoken of.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::files::Description;
use crate::object::memory::backing::{Backing, Object};
use crate::object::spaces::Spaces;
use crate::ranges::RangeSet;
use crate::recorded::Records;
use crate::store::{Chain, Resolved, Source};
use crate::sys::PAGE;

/// What does not fit, in words that complete "PATH is damaged: …".
pub(super) fn check(chain: &Chain, records: &Records) -> Result<(), String> {
    let mut room = BTreeMap::new();
    for of in &records.mappings {
        let pages = of.all.iter().filter(|m| m.has_own_content()).map(|m| m.start / PAGE..m.end / PAGE);
        room.insert(Spaces::of_process(of.pid), RangeSet::from_unsorted(pages.collect()));
    }
    for (space, size) in objects(records)? {
        room.insert(space, RangeSet::from(0..size.div_ceil(PAGE)));
    }
    let spoken_of: BTreeSet<u64> = chain.newest().space_ids().collect();
    if let Some(space) = room.keys().find(|space| !spoken_of.contains(space)) {
        return Err(format!("it says nothing of the pages of {}, which its records have", name(*space)));
    }
    if let Some(space) = spoken_of.iter().find(|space| !room.contains_key(space)) {
        return Err(format!("it has pages of {}, of which its records do not speak", name(*space)));
    }
    for (space, room) in &room {
        let content = content(chain, *space);
        if let Some(stray) = content.difference(room).iter().next() {
            let place = place(*space, stray.start);
            return Err(format!(
                "the chain holds {} pages from {place} on, where nothing is mapped",
                stray.end - stray.start
            ));
        }
        if let Some(both) = content.intersection(&records.omitted.pages_of(*space)).iter().next() {
            return Err(format!(
                "it says that page {} was left out, and the chain holds it",
                place(*space, both.start)
            ));
        }
    }
    check_omitted(records)
}

/// Pages of a space that have content, stored or zero.
fn content(chain: &Chain, space: u64) -> RangeSet {
    let runs = chain.resolve(space).filter(|run| run.source != Source::Absent);
    RangeSet::from_unsorted(runs.map(|Resolved { first_page, pages, .. }| first_page..first_page + pages).collect())
}

/// Spaces of objects, with the bytes that each has.
fn objects(records: &Records) -> Result<BTreeMap<u64, u64>, String> {
    let mapped = records.mappings.iter().flat_map(|of| &of.all).filter_map(|mapping| match &mapping.backing {
        Backing::Object(Object { space, size, .. }) => Some((*space, *size)),
        _ => None,
    });
    let opened = records.files.descriptions.iter().filter_map(|description| match description {
        Description::Deleted(file) => Some((file.space, file.size)),
        Description::Memfd(file) => Some((file.space, file.size)),
        _ => None,
    });
    let segments = records.ipc.segments.iter().map(|segment| (segment.space, segment.size));
    let mut sizes = BTreeMap::new();
    for (space, size) in mapped.chain(opened).chain(segments) {
        if !Spaces::is_object(space) {
            return Err(format!("it has an object whose pages are said to be those of {}", name(space)));
        }
        if size > i64::MAX as u64 {
            return Err(format!("{} is said to have {size} bytes", name(space)));
        }
        let entry: &mut u64 = sizes.entry(space).or_insert(size);
        *entry = size.max(*entry);
    }
    Ok(sizes)
}

/// What is said to be left out was mapped, and there.
fn check_omitted(records: &Records) -> Result<(), String> {
    for part in &records.omitted.memory {
        let (pid, start, end) = (part.pid, part.start, part.end);
        let of = records.mappings.iter().find(|of| of.pid == pid).map_or(&[][..], |of| &of.all);
        let mapping = of.iter().find(|m| m.start <= start && start < end && end <= m.end);
        let is_there = mapping.is_some_and(|m| {
            let (space, first) = match &m.backing {
                Backing::Object(object) if m.shared => (object.space, m.offset / PAGE),
                _ => (Spaces::of_process(pid), m.start / PAGE),
            };
            (part.space, part.first_page) == (space, first + (start - m.start) / PAGE)
                && part.pages <= (end - start) / PAGE
        });
        if !is_there {
            return Err(format!("it is said to leave out {start:#x}-{end:#x} of pid {pid}, where no such memory is"));
        }
    }
    Ok(())
}

fn name(space: u64) -> String {
    if Spaces::is_object(space) { format!("the object {space}") } else { format!("the memory of pid {space}") }
}

/// Where a page is.
fn place(space: u64, page: u64) -> String {
    format!("{:#x} of {}", page.saturating_mul(PAGE), name(space))
}
