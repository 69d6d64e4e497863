//! Looks at all page tables, to see that the narrow questions leave nothing out; and at the mappings, where they are remembered.
//!
//! Every so many checkpoints a look at a running process compares what was written with what was noted. `CR_AUDIT=pages` makes each
//! checkpoint look at everything in the frozen window besides, and fail where that makes a difference: for tests. `CR_AUDIT=state` does
//! so with the mappings.

use std::fs::File;

use crate::checkpoint::gone;
use crate::checkpoint::look;
use crate::checkpoint::member::Member;
use crate::checkpoint::narrow::Scope;
use crate::checkpoint::place::Place;
use crate::checkpoint::watch::Watch;
use crate::error::{Error, Result};
use crate::object::is_audited;
use crate::object::memory::mapping::Mapping;
use crate::procfs::{self, Vma};
use crate::ranges::RangeSet;
use crate::sys::PAGE;
use crate::track::oracle;

/// A running process is audited before each checkpoint whose number since the last one is this.
pub const EVERY: u32 = 16;

/// Whether each frozen window is audited.
pub fn is_strict() -> bool {
    is_audited("pages")
}

/// Pages of a running process that were written, and of which nothing was noted: there must be none. Nothing is said where the
/// frozen window would ask about everything anyway.
///
/// # Errors
/// When the process is gone.
pub fn missed(member: &Member, watch: &mut Watch) -> Result<Option<RangeSet>> {
    let narrow = |noted| match member.scope(Some(&noted)) {
        Scope::Only(question) => Some(question.asked),
        Scope::Everything(_) => None,
    };
    if member.oracle.is_none() || watch.noted(member.pid).and_then(narrow).is_none() {
        return Ok(None);
    }
    let pagemap = oracle::pagemap_of(member.pid)?;
    let vmas = procfs::maps(member.pid).map_err(|_| gone(member.pid, "an audit of its pages"))?;
    let mut written = Vec::new();
    for place in vmas.iter().filter_map(Place::of_vma).filter(|p| member.settled.mappings.covers(&p.pages())) {
        written.extend(look::written_now(member, &pagemap, &place)?);
    }
    // A fault is noted before the page is written: what was seen above is noted by now.
    watch.gather_ahead();
    let asked = watch.noted(member.pid).and_then(narrow);
    Ok(asked.map(|asked| RangeSet::from_unsorted(written).difference(&asked)))
}

/// With `CR_AUDIT=state`: the mappings that are remembered of a process that stands still, against those that it has.
///
/// # Errors
/// When there is a difference.
pub fn compare_mappings(pid: i32, remembered: &[Vma]) -> Result<()> {
    if !is_audited("state") {
        return Ok(());
    }
    let now = procfs::smaps(pid).map_err(|_| gone(pid, "an audit of its mappings"))?;
    let differs = (0..now.len().max(remembered.len())).find(|index| now.get(*index) != remembered.get(*index));
    let Some(index) = differs else { return Ok(()) };
    let what = format!("{:x?} are remembered, and there are {:x?}", remembered.get(index), now.get(index));
    let why = std::io::Error::other("its mappings changed unnoticed (CR_AUDIT)");
    Err(Error::system(format!("auditing the mappings of pid {pid}: {what}"), why))
}

/// After a narrow look at a process that stands still: a look at everything. `own` and the guards of the mappings are what the
/// narrow one made of it.
///
/// # Errors
/// When there is a difference.
pub fn compare(member: &Member, pagemap: &File, mappings: &[Mapping], own: &RangeSet) -> Result<()> {
    let differs = |what: &str, at: u64| {
        let why = std::io::Error::other("the narrow look differs from a look at everything (CR_AUDIT)");
        Err(Error::system(format!("auditing the pages of pid {}: {what} at page {at:#x}", member.pid), why))
    };
    for mapping in mappings.iter().filter(|m| m.has_own_content()) {
        let (place, pages) = (Place::of(mapping), Place::of(mapping).pages());
        let full = look::backing(member, pagemap, &place, pages.clone())?;
        let narrow: RangeSet = own.within(pages.clone()).collect();
        let odd = narrow.difference(&full.own).union(&full.own.difference(&narrow));
        if let Some(range) = odd.iter().next() {
            return differs("its own pages", range.start);
        }
        let guards: RangeSet = mapping.guards.iter().map(|(at, len)| at / PAGE..(at + len) / PAGE).collect();
        let odd = guards.difference(&full.guards).union(&full.guards.difference(&guards));
        if let Some(range) = odd.iter().next() {
            return differs("guards", range.start);
        }
        // What was written is protected by now, but for what is written all the time.
        let left = RangeSet::from_unsorted(look::written_now(member, pagemap, &place)?).difference(member.heat.hot());
        if let Some(range) = left.iter().next() {
            return differs("written pages", range.start);
        }
    }
    Ok(())
}
