//! Where copied pages go: into slots of the image under construction, each page once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::prior::{Cursor, Prior};
use crate::checkpoint::twins::Twins;
use crate::error::Result;
use crate::image::{self, Content, Extent, ImageWriter, Space};
use crate::ranges::RangeSet;

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
    /// Pages of this image that are the same; slots in which there are several are not written again.
    twins: Twins,
    /// The older images.
    older: Option<Arc<Prior>>,
}

/// Whole pages and the digest of each, whose lower half is its checksum.
#[derive(Clone, Copy, Debug)]
pub struct Summed<'a> {
    /// The pages.
    pub bytes: &'a [u8],
    /// Their digests.
    pub sums: &'a [u128],
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
    /// A sink into `writer`, for a delta on the `older` images, by a checkpoint that uses up to `memory_limit` bytes for pages on their
    /// way.
    pub fn new(writer: ImageWriter, older: Option<Arc<Prior>>, memory_limit: u64) -> Self {
        let twins = Twins::within(memory_limit);
        Self { writer, pages: HashMap::new(), forked_from: HashMap::new(), twins, older }
    }

    /// From now on the job waits for what is taken in, or no longer: meanwhile nothing is compressed.
    pub fn hurry(&self, hurried: bool) {
        self.writer.hurry(hurried);
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
            let (number, sum) = (first + n as u64, all.sums[n] as u64);
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
                        self.twins.share(slot..slot + count);
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
                    (older.images().get(back as usize - 1)?.checksum(slot) == sum).then_some(held)
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
        let same = older.images()[image].checksum(slot) == sum;
        same.then_some(Held::Borrowed { back: image as u32 + 1, slot })
    }

    /// Writes pages, into the slots that they have already where they have any.
    fn store(&mut self, space: u64, first: u64, pages: Summed<'_>) -> Result<()> {
        let end = first + pages.sums.len() as u64;
        let old = self.forget(space, first..end);
        let rewrites = self.writer.rewrites();
        let part = |pages: &Range<u64>, first: u64| (pages.start - first) as usize..(pages.end - first) as usize;
        let mut rewritten = RangeSet::new();
        // Before any page is found to be the same as what is in one of these slots.
        for (page, run) in old.into_iter().filter(|_| rewrites) {
            if let Held::Slot(slot) = run.content
                && !self.twins.is_shared(slot..slot + run.pages)
            {
                let range = page..page + run.pages;
                self.write(space, page, slot, pages.part(part(&range, first)))?;
                rewritten.insert(range);
            }
        }
        for range in RangeSet::from(first..end).difference(&rewritten).iter() {
            self.store_new(space, range.start, pages.part(part(&range, first)))?;
        }
        Ok(())
    }

    /// Writes pages into new slots, those of them that are not in some slot already.
    fn store_new(&mut self, space: u64, first: u64, all: Summed<'_>) -> Result<()> {
        /// Pages that follow each other here and in the file.
        struct Piece {
            pages: Range<usize>,
            slot: u64,
            /// They are there already.
            twins: bool,
        }
        let mut pieces: Vec<Piece> = Vec::new();
        // From here on slots are not written yet.
        let mut fresh = None;
        for (n, digest) in all.sums.iter().enumerate() {
            let is_there =
                |slot: &u64| fresh.is_some_and(|f| *slot >= f) || self.writer.checksum(*slot) == *digest as u64;
            let twin = self.twins.find(*digest).filter(is_there);
            let slot = twin.unwrap_or_else(|| self.writer.allocate(1));
            if twin.is_some() {
                self.twins.share(slot..slot + 1);
            } else {
                fresh = fresh.or(Some(slot));
                self.twins.note(*digest, slot);
            }
            match pieces.last_mut() {
                Some(last) if last.twins == twin.is_some() && last.slot + last.pages.len() as u64 == slot => {
                    last.pages.end += 1;
                }
                _ => pieces.push(Piece { pages: n..n + 1, slot, twins: twin.is_some() }),
            }
        }
        for Piece { pages, slot, twins } in pieces {
            let (page, count) = (first + pages.start as u64, pages.len() as u64);
            if twins {
                self.hold(space, page, Run { pages: count, content: Held::Slot(slot) });
            } else {
                self.write(space, page, slot, all.part(pages))?;
            }
        }
        Ok(())
    }

    fn write(&mut self, space: u64, first: u64, slot: u64, pages: Summed<'_>) -> Result<()> {
        let sums: Vec<u64> = pages.sums.iter().map(|digest| *digest as u64).collect();
        self.writer.write_summed(slot, pages.bytes, &sums)?;
        self.hold(space, first, Run { pages: sums.len() as u64, content: Held::Slot(slot) });
        Ok(())
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

#[cfg(test)]
mod tests;
