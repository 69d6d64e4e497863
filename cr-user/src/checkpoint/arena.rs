//! Bounded memory of ours for copied pages. Kept between checkpoints, because backing fresh memory costs more than copying.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};

use crate::checkpoint::parallel::{Crew, quietly};
use crate::checkpoint::prior::Prior;
use crate::checkpoint::sink::{Sink, Summed};
use crate::checkpoint::twins::Twins;
use crate::error::{Error, Result};
use crate::image::page_digests;
use crate::ranges::RangeSet;
use crate::sys::PAGE;

/// Bytes of a chunk: one read fills at most one.
pub const CHUNK: u64 = 8 << 20;
/// Pages of a chunk.
pub const CHUNK_PAGES: u64 = CHUNK / PAGE;

/// What the controller takes by itself beyond what every program does: the eBPF programs' types and tables.
const BASE: u64 = 16 << 20;
/// Bytes that a run of pages takes in all sets and tables together, about.
const PER_RANGE: u64 = 160;
/// Warm chunks beyond what is expected: the expectation is a little old, and the last chunk of each kind is half full.
const SPARE: usize = 3;
/// A thread reads no less at a time, where it is one of several.
const LEAST: u64 = 256 << 10;
/// More threads than this copy no faster: they wait for the same memory.
const MOST_HELPERS: usize = 15;
/// Writing may take this long at low priority, or a quarter of the time between two checkpoints if that is less.
const PATIENCE: Duration = Duration::from_secs(2);

/// Chunks of memory, some filled.
#[derive(Debug, Default)]
pub struct Arena {
    free: Vec<MmapMut>,
    /// Oldest first.
    filled: VecDeque<(Piece, MmapMut)>,
    /// Most chunks there may be.
    limit: usize,
    /// Who reads.
    crew: Crew,
    /// When this was last made ready, and how long after the time before.
    began: Option<Instant>,
    rhythm: Option<Duration>,
}

/// Pages in a chunk: their bytes follow each other from its beginning.
#[derive(Debug)]
pub struct Piece {
    /// What of which content space.
    pub parts: Vec<Part>,
    /// They may be the same as in the older images.
    pub compare: bool,
}

/// Pages of one content space.
#[derive(Debug)]
pub struct Part {
    /// The space.
    pub space: u64,
    /// Their numbers.
    pub ranges: Vec<Range<u64>>,
}

impl Part {
    /// How many pages.
    pub fn pages(&self) -> usize {
        self.ranges.iter().map(|r| r.end - r.start).sum::<u64>() as usize
    }

    /// Bytes of them.
    pub fn len(&self) -> usize {
        self.pages() * PAGE as usize
    }
}

impl Piece {
    fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Puts parts together so that each piece fills a chunk as far as it can.
    fn pack(parts: impl IntoIterator<Item = Part>, size: usize, compare: bool) -> Vec<Self> {
        let mut pieces: Vec<Self> = Vec::new();
        for part in parts {
            match pieces.last_mut() {
                Some(last) if last.len() + part.len() <= size => last.parts.push(part),
                _ => pieces.push(Self { parts: vec![part], compare }),
            }
        }
        pieces
    }

    /// Cuts pages of content spaces into pieces, as many as there are CPUs at least if that is worthwhile. No part has more than
    /// `max_ranges` ranges.
    pub fn cut<'p>(
        spaces: impl IntoIterator<Item = (u64, &'p RangeSet)>,
        max_ranges: usize,
        compare: bool,
    ) -> Vec<Self> {
        let spaces: Vec<_> = spaces.into_iter().collect();
        let bytes = spaces.iter().map(|(_, pages)| pages.count()).sum::<u64>() * PAGE;
        let share = bytes.div_ceil(cpus() as u64).next_multiple_of(PAGE);
        let size = share.clamp(LEAST, CHUNK);
        let parts = spaces.into_iter().flat_map(|(space, pages)| {
            cut(pages.iter(), max_ranges, size / PAGE).into_iter().map(move |ranges| Part { space, ranges })
        });
        Self::pack(parts, size as usize, compare)
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Arena {
    /// Makes ready for a frozen window in which about `expected` bytes are copied: warm chunks, but no more than `limit`
    /// bytes less what the bookkeeping of `ranges` ranges of pages takes, and none that is not needed.
    ///
    /// # Errors
    /// When the machine has no memory for them.
    pub fn prepare(&mut self, expected: u64, limit: u64, ranges: usize) -> Result<()> {
        self.free.extend(self.filled.drain(..).map(|(_, chunk)| chunk));
        let bookkeeping = BASE + Twins::room(limit) + ranges as u64 * PER_RANGE;
        self.limit = (limit.saturating_sub(bookkeeping) / CHUNK).max(2) as usize;
        let warm = (expected.div_ceil(CHUNK) as usize + SPARE).min(self.limit);
        self.free.truncate(warm);
        let shares = (expected / LEAST) as usize;
        self.crew.grow((cpus() - 1).min(MOST_HELPERS).min(shares));
        let now = Instant::now();
        self.rhythm = self.began.replace(now).map(|before| now - before);
        while self.free.len() < warm {
            self.free.push(new_chunk()?);
        }
        Ok(())
    }

    /// Fills a chunk for each piece by `read`, part by part, on every core: the job's threads stand still. When the limit is reached, the
    /// oldest chunks are written out first.
    ///
    /// # Errors
    /// Those of `read`, and of writing.
    pub fn fill(
        &mut self,
        pieces: Vec<Piece>,
        sink: &mut Sink,
        prior: Option<&Prior>,
        read: impl Fn(&Part, &mut [u8]) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        let read = Arc::new(read);
        let mut pieces = VecDeque::from(pieces);
        while !pieces.is_empty() {
            // A few at a time: before the limit is reached all of them fit, and after it little is written between reads.
            sink.hurry(true);
            while self.filled.len() + cpus().min(pieces.len()) > self.limit && !self.filled.is_empty() {
                self.drain_one(sink, prior)?;
            }
            sink.hurry(false);
            let room = (self.limit - self.filled.len()).max(1).min(pieces.len());
            let mut batch = Vec::with_capacity(room);
            for piece in pieces.drain(..room) {
                batch.push((piece, self.free.pop().map_or_else(new_chunk, Ok)?));
            }
            let read = Arc::clone(&read);
            let filled = self.crew.each(batch, move |(piece, mut chunk): (Piece, MmapMut)| {
                read_parts(&piece, &mut chunk, &*read).map(|()| (piece, chunk))
            });
            for one in filled {
                self.filled.push_back(one?);
            }
        }
        Ok(())
    }

    /// Writes out what the chunks hold while the job runs: quietly for some time, and should that not be enough because the machine is
    /// busy, then as fast as it goes, so that it is done before the next checkpoint.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn drain_behind(&mut self, sink: &mut Sink, prior: Option<&Prior>) -> Result<()> {
        if self.filled.is_empty() {
            return Ok(());
        }
        let patience = self.rhythm.map_or(PATIENCE, |rhythm| (rhythm / 4).min(PATIENCE));
        let until = Instant::now() + patience;
        quietly(|| {
            while !self.filled.is_empty() && Instant::now() < until {
                self.drain_one(sink, prior)?;
            }
            Ok::<_, Error>(())
        })?;
        if !self.filled.is_empty() {
            log::debug!(
                "the machine is busy: {} MiB are written at full priority",
                (self.filled.len() as u64 * CHUNK) >> 20
            );
        }
        self.drain_into(sink, prior)
    }

    /// Writes out what the chunks hold.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn drain_into(&mut self, sink: &mut Sink, prior: Option<&Prior>) -> Result<()> {
        while !self.filled.is_empty() {
            self.drain_one(sink, prior)?;
        }
        Ok(())
    }

    fn drain_one(&mut self, sink: &mut Sink, prior: Option<&Prior>) -> Result<()> {
        if let Some((piece, chunk)) = self.filled.pop_front() {
            let prior = if piece.compare { prior } else { None };
            let bytes = &chunk[..piece.len()];
            let sums = page_digests(bytes);
            let mut at = 0;
            let absorbed = piece.parts.iter().try_for_each(|part| {
                let pages = at..at + part.pages();
                at = pages.end;
                let bytes = &bytes[pages.start * PAGE as usize..pages.end * PAGE as usize];
                sink.absorb(part.space, &part.ranges, Summed { bytes, sums: &sums[pages] }, prior)
            });
            self.free.push(chunk);
            absorbed?;
        }
        Ok(())
    }

    /// Two chunks for copying while the job runs: one is filled while the other is written.
    ///
    /// # Errors
    /// When the machine has no memory for them.
    pub fn pair(&mut self) -> Result<Vec<MmapMut>> {
        while self.free.len() < 2 {
            self.free.push(new_chunk()?);
        }
        Ok(self.free.drain(..2).collect())
    }

    /// Takes chunks back.
    pub fn give_back(&mut self, chunks: impl IntoIterator<Item = MmapMut>) {
        self.free.extend(chunks);
    }
}

fn read_parts(piece: &Piece, chunk: &mut [u8], read: impl Fn(&Part, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut rest = chunk;
    for part in &piece.parts {
        let (own, others) = rest.split_at_mut(part.len());
        read(part, own)?;
        rest = others;
    }
    Ok(())
}

fn new_chunk() -> Result<MmapMut> {
    let failed = |e| Error::system("getting memory for copied pages", e);
    let chunk = MmapMut::map_anon(CHUNK as usize).map_err(failed)?;
    // Huge pages make it cheaper to back and to fill; without them it works as well.
    let _ = chunk.advise(Advice::HugePage);
    // Children that are made in the frozen window need no copy of it, and the copy of its page tables takes time.
    let _ = chunk.advise(Advice::DontFork);
    chunk.advise(Advice::PopulateWrite).map_err(failed)?;
    Ok(chunk)
}

/// Cuts ranges into groups that fit into a chunk and into one system call.
pub fn groups(ranges: impl Iterator<Item = Range<u64>>, max_ranges: usize) -> Vec<Vec<Range<u64>>> {
    cut(ranges, max_ranges, CHUNK_PAGES)
}

fn cut(ranges: impl Iterator<Item = Range<u64>>, max_ranges: usize, max_pages: u64) -> Vec<Vec<Range<u64>>> {
    let mut groups: Vec<Vec<Range<u64>>> = Vec::new();
    let mut room = 0;
    for mut range in ranges {
        while !range.is_empty() {
            if room == 0 || groups.last().is_none_or(|g| g.len() == max_ranges) {
                groups.push(Vec::new());
                room = max_pages;
            }
            let end = range.end.min(range.start + room);
            room -= end - range.start;
            groups.last_mut().expect("pushed above").push(range.start..end);
            range.start = end;
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_every_page_once_and_fit_into_chunks() {
        let scattered: RangeSet = (0..5000).map(|n| n * 3..n * 3 + 1).collect();
        let long = RangeSet::from(100_000..100_000 + 5 * CHUNK_PAGES + 7);
        let few = RangeSet::from(5..9);
        for spaces in [vec![(1, &few)], vec![(1, &scattered), (2, &few)], vec![(1, &few), (2, &long), (3, &scattered)]]
        {
            let pieces = Piece::cut(spaces.clone(), 1024, true);
            for (space, pages) in &spaces {
                let parts = pieces.iter().flat_map(|p| &p.parts).filter(|part| part.space == *space);
                let ranges: Vec<_> = parts.flat_map(|part| part.ranges.clone()).collect();
                assert_eq!(ranges.iter().map(|r| r.end - r.start).sum::<u64>(), pages.count(), "each once");
                assert_eq!(&RangeSet::from_unsorted(ranges), *pages);
            }
            assert!(pieces.iter().all(|p| p.len() as u64 <= CHUNK && p.compare));
            assert!(pieces.iter().flat_map(|p| &p.parts).all(|part| part.ranges.len() <= 1024));
        }
        assert_eq!(Piece::cut([(1, &few)], 1024, false).len(), 1, "what is little is not shared out");
    }
}
