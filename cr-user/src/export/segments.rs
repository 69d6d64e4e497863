//! Which memory is in a core file: the mappings, parted into what has its content in the file and what has not.

use crate::object::memory::advice;
use crate::object::memory::backing::{Backing, Object, ObjectKind};
use crate::object::memory::mapping::{Mapping, Mappings};
use crate::object::omitted::Omitted;
use crate::ranges::RangeSet;
use crate::store::Chain;
use crate::sys::PAGE;

/// A part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// First byte.
    pub(super) start: u64,
    /// Past the last byte.
    pub(super) end: u64,
    /// `PROT_*`.
    pub(super) prot: i32,
    /// Whether what is written to it goes to what stands behind it.
    pub(super) shared: bool,
    /// What of it is in the core file.
    pub(super) content: Content,
}

/// Where the content of a segment comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It is not in the core file.
    None,
    /// The process's own pages.
    Own,
    /// An object's pages, and over them (unless it is shared) the process's own.
    Object {
        /// The content space.
        space: u64,
        /// The page there with which the segment begins.
        first_page: u64,
    },
}

impl Segment {
    pub(super) fn len(&self) -> u64 {
        self.end - self.start
    }

    pub(super) fn pages(&self) -> u64 {
        self.len() / PAGE
    }
}

/// A file that a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) name: String,
}

/// The segments of a process, ascending. `own` is the space of its own pages.
pub(super) fn of(chain: &Chain, mappings: &Mappings, own: u64, omitted: &Omitted) -> Vec<Segment> {
    let held: RangeSet = chain.content_pages(own).map(|(first, pages)| first..first + pages).collect();
    let left_out = omitted.pages_of(own);
    mappings.all.iter().flat_map(|mapping| of_mapping(mapping, &held, &left_out, omitted)).collect()
}

fn of_mapping(mapping: &Mapping, held: &RangeSet, left_out: &RangeSet, omitted: &Omitted) -> Vec<Segment> {
    let pages = mapping.start / PAGE..mapping.end / PAGE;
    let own: RangeSet = held.within(pages.clone()).collect();
    let (content, mut inside) = match &mapping.backing {
        _ if mapping.has(advice::DONT_DUMP) => (Content::None, RangeSet::new()),
        Backing::Kernel(_) | Backing::Aio(_) => (Content::None, RangeSet::new()),
        // Never touched.
        Backing::Anonymous if own.is_empty() => (Content::None, RangeSet::new()),
        Backing::Anonymous => (Content::Own, RangeSet::from(pages.clone())),
        Backing::File(_) => (Content::Own, own.clone()),
        Backing::Object(Object { space, .. }) => {
            let first_page = mapping.offset / PAGE;
            let missing = omitted.pages_of(*space);
            let missing = missing.within(first_page..first_page + mapping.len() / PAGE);
            let missing: RangeSet =
                missing.map(|r| r.start - first_page + pages.start..r.end - first_page + pages.start).collect();
            let missing = if mapping.shared { missing } else { missing.difference(&own) };
            (Content::Object { space: *space, first_page }, RangeSet::from(pages.clone()).difference(&missing))
        }
    };
    inside = inside.difference(left_out);
    let segment = |range: std::ops::Range<u64>, content| Segment {
        start: range.start * PAGE,
        end: range.end * PAGE,
        prot: mapping.prot,
        shared: mapping.shared,
        content,
    };
    let with = inside.iter().map(|range| {
        let content = match content {
            Content::Object { space, first_page } => {
                Content::Object { space, first_page: first_page + range.start - pages.start }
            }
            other => other,
        };
        segment(range, content)
    });
    let without = inside.gaps(pages.clone()).into_iter().map(|range| segment(range, Content::None));
    let mut segments: Vec<Segment> = with.chain(without).collect();
    segments.sort_unstable_by_key(|segment| segment.start);
    segments
}

/// The files that mappings show, ascending. Objects without a name, or with one that leads elsewhere by now, are not among them: what
/// they hold is in the core file.
pub(super) fn files(mappings: &Mappings) -> Vec<Mapped> {
    let name = |mapping: &Mapping| match &mapping.backing {
        Backing::File(stamp) | Backing::Object(Object { kind: ObjectKind::Written(stamp), .. }) => {
            Some(stamp.path.clone())
        }
        _ => None,
    };
    let named = mappings.all.iter().filter_map(|mapping| Some((mapping, name(mapping)?)));
    named.map(|(m, name)| Mapped { start: m.start, end: m.end, offset: m.offset, name }).collect()
}
