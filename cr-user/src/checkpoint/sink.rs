//! Where copied pages go: into slots of the image under construction, each page once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::image::{self, Content, Extent, ImageWriter, Space};
use crate::ranges::RangeSet;
use crate::store::{Chain, Source};

const PAGE: usize = image::PAGE_SIZE;

/// An image under construction and what it holds of each page so far.
#[derive(Debug)]
pub struct Sink {
    writer: ImageWriter,
    /// By content space, by first page.
    pages: HashMap<u64, BTreeMap<u64, Run>>,
    /// The address space that each was copied from by `fork`, as far as is known: pages that are still the same as there
    /// are stored once.
    forked_from: HashMap<u64, u64>,
    /// Slots that several spaces have: they are not written again.
    shared: RangeSet,
    /// The older images.
    older: Option<Arc<Prior>>,
}

/// Whole pages and the checksum of each.
#[derive(Clone, Copy, Debug)]
pub struct Summed<'a> {
    /// The pages.
    pub bytes: &'a [u8],
    /// Their checksums.
    pub sums: &'a [u64],
}

impl Summed<'_> {
    fn part(&self, pages: Range<usize>) -> Self {
        Self { bytes: &self.bytes[pages.start * PAGE..pages.end * PAGE], sums: &self.sums[pages] }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    pages: u64,
    content: Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Slot(u64),
    Zero,
    /// As in the older images.
    Unchanged,
    /// In an older image, as a page of the space that this one was copied from.
    Borrowed {
        back: u32,
        slot: u64,
    },
}

impl Held {
    fn after(self, pages: u64) -> Self {
        match self {
            Self::Slot(slot) => Self::Slot(slot + pages),
            Self::Borrowed { back, slot } => Self::Borrowed { back, slot: slot + pages },
            other => other,
        }
    }
}

impl Sink {
    /// A sink into `writer`, for a delta on the `older` images.
    pub fn new(writer: ImageWriter, older: Option<Arc<Prior>>) -> Self {
        Self { writer, pages: HashMap::new(), forked_from: HashMap::new(), shared: RangeSet::new(), older }
    }

    /// Says which address space was copied from which, if that is known.
    pub fn relate(&mut self, child: u64, parent: u64) {
        self.forked_from.insert(child, parent);
    }

    /// Gives the image back, to be finished.
    pub fn into_writer(self) -> ImageWriter {
        self.writer
    }

    /// Takes in the pages of `ranges`, whose bytes follow each other in `pages`. A page taken in before is replaced. With
    /// `prior`, a page that is the same as in the older images takes no room.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn absorb(
        &mut self,
        space: u64,
        ranges: &[Range<u64>],
        pages: Summed<'_>,
        prior: Option<&Prior>,
    ) -> Result<()> {
        let mut at = 0;
        for range in ranges {
            let count = (range.end - range.start) as usize;
            self.absorb_range(space, range.start, pages.part(at..at + count), prior)?;
            at += count;
        }
        Ok(())
    }

    fn absorb_range(&mut self, space: u64, first: u64, all: Summed<'_>, prior: Option<&Prior>) -> Result<()> {
        let mut cursor = prior.map(|p| p.cursor(space, first));
        let kind = |n: usize, page: &[u8], cursor: &mut Option<Cursor<'_>>| {
            let (number, sum) = (first + n as u64, all.sums[n]);
            let same = cursor.as_mut().is_some_and(|c| c.is_same(number, sum, page));
            match (same, image::is_zero_page(page)) {
                (true, _) => Some(Held::Unchanged),
                (false, true) => Some(Held::Zero),
                (false, false) => self.with_parent(space, number, sum),
            }
        };
        let mut runs: Vec<(Range<usize>, Option<Held>)> = Vec::new();
        for (n, page) in all.bytes.chunks_exact(PAGE).enumerate() {
            let this = kind(n, page, &mut cursor);
            match runs.last_mut() {
                Some((run, held)) if held.map(|h| h.after(run.len() as u64)) == this => run.end = n + 1,
                _ => runs.push((n..n + 1, this)),
            }
        }
        for (run, held) in runs {
            let (page, count) = (first + run.start as u64, run.len() as u64);
            match held {
                Some(held) => {
                    self.forget(space, page..page + count);
                    if let Held::Slot(slot) = held {
                        self.shared.insert(slot..slot + count);
                    }
                    self.hold(space, page, Run { pages: count, content: held });
                }
                None => self.store(space, page, all.part(run))?,
            }
        }
        Ok(())
    }

    /// Where the same page is stored for the address space that this one was copied from. Checksums of 64 bits decide.
    fn with_parent(&self, space: u64, page: u64, sum: u64) -> Option<Held> {
        let parent = *self.forked_from.get(&space)?;
        let taken = self.pages.get(&parent).and_then(|map| map.range(..=page).next_back());
        match taken.filter(|(first, run)| page < *first + run.pages) {
            Some((first, run)) => match run.content.after(page - first) {
                Held::Slot(slot) => (self.writer.checksum(slot) == sum).then_some(Held::Slot(slot)),
                held @ Held::Borrowed { back, slot } => {
                    let older = self.older.as_ref()?;
                    (older.chain.images().get(back as usize - 1)?.checksum(slot) == sum).then_some(held)
                }
                Held::Unchanged => self.in_older(parent, page, sum),
                Held::Zero => None,
            },
            None => self.in_older(parent, page, sum),
        }
    }

    fn in_older(&self, parent: u64, page: u64, sum: u64) -> Option<Held> {
        let older = self.older.as_ref()?;
        let (image, slot) = older.cursor(parent, page).stored(page)?;
        let same = older.chain.images()[image].checksum(slot) == sum;
        same.then_some(Held::Borrowed { back: image as u32 + 1, slot })
    }

    /// Writes pages, into the slots that they have already where they have any.
    fn store(&mut self, space: u64, first: u64, pages: Summed<'_>) -> Result<()> {
        let end = first + pages.sums.len() as u64;
        let old = self.forget(space, first..end);
        let mut at = first;
        let slots: Vec<_> = old
            .into_iter()
            .filter_map(|(page, run)| match run.content {
                Held::Slot(slot) if self.is_own(slot..slot + run.pages) => Some((page..page + run.pages, Some(slot))),
                _ => None,
            })
            .collect();
        for (range, slot) in slots.into_iter().chain([(end..end, None)]) {
            self.store_piece(space, at..range.start, None, pages, first)?;
            self.store_piece(space, range.clone(), slot, pages, first)?;
            at = range.end;
        }
        Ok(())
    }

    fn store_piece(
        &mut self,
        space: u64,
        range: Range<u64>,
        slot: Option<u64>,
        all: Summed<'_>,
        first: u64,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let pages = range.end - range.start;
        let slot = slot.unwrap_or_else(|| self.writer.allocate(pages));
        let part = all.part((range.start - first) as usize..(range.end - first) as usize);
        self.writer.write_summed(slot, part.bytes, part.sums)?;
        self.hold(space, range.start, Run { pages, content: Held::Slot(slot) });
        Ok(())
    }

    fn is_own(&self, slots: Range<u64>) -> bool {
        self.shared.intersection(&RangeSet::from(slots)).is_empty()
    }

    fn hold(&mut self, space: u64, first: u64, run: Run) {
        self.pages.entry(space).or_default().insert(first, run);
    }

    /// Takes a range out, and returns what it held.
    fn forget(&mut self, space: u64, range: Range<u64>) -> Vec<(u64, Run)> {
        let map = self.pages.entry(space).or_default();
        let from = map.range(..=range.start).next_back().map_or(range.start, |(first, _)| *first);
        let touched: Vec<(u64, Run)> = map
            .range(from..range.end)
            .map(|(first, run)| (*first, *run))
            .filter(|(first, run)| first + run.pages > range.start)
            .collect();
        let mut out = Vec::with_capacity(touched.len());
        for (first, run) in touched {
            map.remove(&first);
            let end = first + run.pages;
            let (inner, inner_end) = (first.max(range.start), end.min(range.end));
            if first < inner {
                map.insert(first, Run { pages: inner - first, ..run });
            }
            if inner_end < end {
                map.insert(inner_end, Run { pages: end - inner_end, content: run.content.after(inner_end - first) });
            }
            out.push((inner, Run { pages: inner_end - inner, content: run.content.after(inner - first) }));
        }
        out
    }

    /// Pages of the space that were taken in.
    pub fn held(&self, space: u64) -> RangeSet {
        self.pages.get(&space).into_iter().flatten().map(|(first, run)| *first..first + run.pages).collect()
    }

    /// Pages of the space that were taken in, compared, and found as they are in the older images.
    pub fn unchanged(&self, space: u64) -> RangeSet {
        let runs = self.pages.get(&space).into_iter().flatten();
        runs.filter(|(_, run)| run.content == Held::Unchanged).map(|(first, run)| *first..first + run.pages).collect()
    }

    /// What the image says of the space: of pages taken in only those in `content` (which exist now), and that those in
    /// `gone` are no more. Pages taken in that are as in the older images are not mentioned.
    pub fn space(&self, space: u64, content: &RangeSet, gone: &RangeSet) -> Space {
        let mut extents: Vec<Extent> = gone
            .iter()
            .map(|r| Extent { first_page: r.start, pages: r.end - r.start, content: Content::Absent })
            .collect();
        for (first, run) in self.pages.get(&space).into_iter().flatten() {
            let whole = RangeSet::from(*first..first + run.pages);
            for part in whole.intersection(content).iter() {
                let content = match run.content.after(part.start - first) {
                    Held::Slot(slot) => Content::Stored { slot },
                    Held::Zero => Content::Zero,
                    Held::Borrowed { back, slot } => Content::Borrowed { back, slot },
                    Held::Unchanged => continue,
                };
                extents.push(Extent { first_page: part.start, pages: part.end - part.start, content });
            }
        }
        Space::from_unsorted(space, extents)
    }
}

/// What the older images hold, for comparing.
#[derive(Debug)]
pub struct Prior {
    chain: Chain,
    runs: HashMap<u64, Vec<(Range<u64>, Source)>>,
}

impl Prior {
    /// Prepares comparison with `chain`.
    pub fn new(chain: Chain) -> Self {
        let runs = chain
            .space_ids()
            .into_iter()
            .map(|space| {
                let runs = chain.resolve(space).map(|r| (r.first_page..r.first_page + r.pages, r.source)).collect();
                (space, runs)
            })
            .collect();
        Self { chain, runs }
    }

    fn cursor(&self, space: u64, page: u64) -> Cursor<'_> {
        let runs = self.runs.get(&space).map_or(&[][..], Vec::as_slice);
        let at = runs.partition_point(|(range, _)| range.end <= page);
        Cursor { prior: self, runs: &runs[at..] }
    }
}

/// A place in the older images, moving forward.
#[derive(Clone, Debug)]
struct Cursor<'p> {
    prior: &'p Prior,
    runs: &'p [(Range<u64>, Source)],
}

impl Cursor<'_> {
    /// Where this page, at which the cursor stands, is stored: image and slot.
    fn stored(&self, page: u64) -> Option<(usize, u64)> {
        let (range, source) = self.runs.first()?;
        match source.advanced(page.checked_sub(range.start)?) {
            Source::Stored { image, offset } => Some((image, offset / PAGE as u64 - 1)),
            Source::Zero | Source::Absent => None,
        }
    }

    /// Whether the older images hold exactly this page. Checksums of 64 bits decide: the pages themselves are not read.
    fn is_same(&mut self, page: u64, sum: u64, bytes: &[u8]) -> bool {
        while self.runs.first().is_some_and(|(range, _)| range.end <= page) {
            self.runs = &self.runs[1..];
        }
        match self.runs.first() {
            Some((range, source)) if range.start <= page => match source.advanced(page - range.start) {
                Source::Stored { image, offset } => {
                    let slot = offset / PAGE as u64 - 1;
                    self.prior.chain.images()[image].checksum(slot) == sum
                }
                Source::Zero => image::is_zero_page(bytes),
                Source::Absent => false,
            },
            _ => false,
        }
    }
}
