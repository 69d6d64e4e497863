//! What narrows the questions about page tables: what the last frozen window left behind, and what was noted since.
//!
//! A frozen window ends with every page of the watched mappings protected, but for those that are left unprotected on purpose.
//! A page can then change, come or go only by a write fault, by a call that the eBPF programs see taking the address space's lock,
//! or together with its mapping. So where all of these were noted, the next window asks about what was noted, and nothing else:
//! the page tables still decide what was written. Wherever that cannot be shown, they are asked about everything.

use std::fmt;
use std::ops::Range;

use crate::object::memory::mapping::Mapping;
use crate::ranges::RangeSet;
use crate::sys::PAGE;
use crate::track::hints::{AddressSpaceId, Followed, WrittenRecord};

/// What the programs noted of an address space since the last frozen window.
#[derive(Clone, Debug)]
pub struct Noted {
    /// Which one.
    pub space: AddressSpaceId,
    /// Who took its lock; none where this kernel does not tell.
    pub followed: Option<Followed>,
    /// What was written.
    pub record: WrittenRecord,
}

impl Noted {
    /// Pages that had a write fault, as far as they were recorded.
    pub fn written(&self) -> RangeSet {
        pages(&self.record.pages)
    }
}

/// What page tables are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything, and why.
    Everything(Why),
    /// Some pages.
    Only(Question),
}

/// Which page tables are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Pages that may have been written, in whole page tables.
    pub asked: RangeSet,
    /// Those of them that may have come or gone, in whole page tables.
    pub renewed: RangeSet,
}

impl Scope {
    /// Why it is everything, if it is.
    pub fn why_everything(&self) -> Option<Why> {
        match self {
            Self::Everything(why) => Some(*why),
            Self::Only(_) => None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything(why) => write!(f, "everything: {why}"),
            Self::Only(Question { asked, renewed }) => {
                write!(f, "{} pages in {} pieces, {} may be new", asked.count(), asked.runs(), renewed.count())
            }
        }
    }
}

/// Why page tables are asked about everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Why {
    /// Nothing is followed.
    #[error("no eBPF programs follow the job")]
    Alone,
    /// Nothing is known yet.
    #[error("it is the first look at this program")]
    First,
    /// Who takes locks does not show.
    #[error("this kernel does not show all writes")]
    Blind,
    /// Faults were lost.
    #[error("the record of written pages was full")]
    Full,
    /// A system call of the job's own, with this number.
    #[error("system call {0} of the job may have written anywhere")]
    Call(u64),
    /// A system call of another process, with this number.
    #[error("system call {0} of another process may have written to the job's memory")]
    Other(u64),
    /// An audit found a page that was not noted.
    #[error("what was noted of written pages was wrong once")]
    Wrong,
}

impl Why {
    /// Whether it is so for every job at first, or for every single checkpoint.
    pub fn is_usual(self) -> bool {
        matches!(self, Self::Alone | Self::First)
    }
}

/// What the last frozen window left of an address space.
#[derive(Debug, Default)]
pub struct Settled {
    /// Of which address space; none: nothing is known.
    space: Option<AddressSpaceId>,
    /// Who had taken its lock before its pages were looked at.
    followed: Followed,
    /// Mappings in which every page was looked at, and protected.
    pub mappings: RangeSet,
    /// The process's own pages in them.
    pub own: RangeSet,
    /// Guard pages in them.
    pub guards: RangeSet,
    /// Pages that were left unprotected.
    unprotected: RangeSet,
    /// Where pages may vanish at any time.
    volatile: RangeSet,
}

impl Settled {
    /// What the last frozen window leaves. `mappings`, `own`, `guards`: what was found. `unprotected`: what is written all the time.
    pub fn new(noted: &Noted, before: &Self, unprotected: &RangeSet) -> Self {
        let Some(followed) = noted.followed else { return Self::default() };
        let volatile = before.volatile.union(&pages(&noted.record.volatile));
        Self { space: Some(noted.space), followed, unprotected: unprotected.clone(), volatile, ..Self::default() }
    }

    /// What the page tables of a process that stands still must be asked about.
    pub fn scope(&self, noted: Option<&Noted>) -> Scope {
        let Some(noted) = noted else { return Scope::Everything(Why::Alone) };
        let Some(followed) = noted.followed else { return Scope::Everything(Why::Blind) };
        if self.space != Some(noted.space) {
            return Scope::Everything(Why::First);
        }
        if noted.record.lost > 0 {
            return Scope::Everything(Why::Full);
        }
        let before = &self.followed;
        if followed.local != before.local {
            return Scope::Everything(Why::Call(followed.call));
        }
        if followed.taken != before.taken || before.taken > before.given {
            return Scope::Everything(Why::Other(followed.call));
        }
        Scope::Only(self.asked(&noted.record))
    }

    /// What is worth asking about while the process runs: what else was written, the frozen window finds.
    pub fn hint(&self, noted: Option<&Noted>) -> Option<Question> {
        let noted = noted.filter(|n| self.space == Some(n.space) && n.record.lost == 0)?;
        Some(self.asked(&noted.record))
    }

    /// A page comes by a write fault; it goes by what is noted besides, and otherwise only with its mapping. (A thread of the kernel
    /// that joins unprotected pages to a huge one may fill gaps with zeroes, which is what they held.)
    fn asked(&self, record: &WrittenRecord) -> Question {
        let (written, touched) = (pages(&record.pages), pages(&record.touched).union(&self.volatile));
        let new = written.difference(&self.own).union(&touched);
        let asked = written.union(&touched).union(&self.unprotected);
        Question { asked: tables(&asked), renewed: tables(&new) }
    }

    /// Whether a mapping is just as it was left. `watched`: mappings that are under tracking now.
    pub fn covers(&self, mapping: &Mapping, watched: &RangeSet) -> bool {
        let pages = mapping.start / PAGE..mapping.end / PAGE;
        // A page-table entry of hugetlb covers more than is asked about.
        if mapping.page_size > PAGE || !self.mappings.covers(&pages) {
            return false;
        }
        if mapping.is_anonymous() {
            return watched.covers(&pages);
        }
        // Whoever cuts a file short takes even private copies of its pages, and no lock. Where there are none and none can be
        // made, what comes all the same is noted, whichever mapping it comes in.
        mapping.prot & libc::PROT_WRITE == 0 && self.own.within(pages).next().is_none()
    }

    /// The mapping of these pages was put under tracking: it is not the one that was looked at.
    pub fn forget(&mut self, pages: Range<u64>) {
        if self.mappings.within(pages.clone()).next().is_some() {
            self.mappings = self.mappings.difference(&RangeSet::from(pages));
        }
    }
}

/// All pages of the page tables that these pages are in.
pub fn tables(pages: &RangeSet) -> RangeSet {
    const TABLE: u64 = 512;
    pages.iter().map(|r| r.start / TABLE * TABLE..r.end.next_multiple_of(TABLE)).collect()
}

fn pages(bytes: &[Range<u64>]) -> RangeSet {
    bytes.iter().map(|r| r.start / PAGE..r.end.div_ceil(PAGE)).collect()
}
