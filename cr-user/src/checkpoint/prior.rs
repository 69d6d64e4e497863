//! What the older images of a chain hold, for comparing: by checksums, without reading their pages.

use std::collections::HashMap;
use std::ops::Range;

use crate::image::{self, Image, PAGE_SIZE};
use crate::store::{Chain, Source};

/// What the older images hold, for comparing.
#[derive(Debug)]
pub struct Prior {
    chain: Chain,
    runs: HashMap<u64, Vec<(Range<u64>, Source)>>,
}

impl Prior {
    /// The images, newest first.
    pub fn images(&self) -> &[Image] {
        self.chain.images()
    }

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

    /// A place to move forward from, at a page of a space.
    pub fn cursor(&self, space: u64, page: u64) -> Cursor<'_> {
        let runs = self.runs.get(&space).map_or(&[][..], Vec::as_slice);
        let at = runs.partition_point(|(range, _)| range.end <= page);
        Cursor { prior: self, runs: &runs[at..] }
    }
}

/// A place in the older images, moving forward.
#[derive(Clone, Debug)]
pub struct Cursor<'p> {
    prior: &'p Prior,
    runs: &'p [(Range<u64>, Source)],
}

impl Cursor<'_> {
    /// Where this page, at which the cursor stands, is stored: image and slot.
    pub fn stored(&self, page: u64) -> Option<(usize, u64)> {
        let (range, source) = self.runs.first()?;
        match source.advanced(page.checked_sub(range.start)?) {
            Source::Stored { image, offset } => Some((image, offset / PAGE_SIZE as u64 - 1)),
            Source::Zero | Source::Absent => None,
        }
    }

    /// Whether the older images hold exactly this page. Checksums of 64 bits decide: the pages themselves are not read.
    pub fn is_same(&mut self, page: u64, sum: u64, bytes: &[u8]) -> bool {
        while self.runs.first().is_some_and(|(range, _)| range.end <= page) {
            self.runs = &self.runs[1..];
        }
        match self.runs.first() {
            Some((range, source)) if range.start <= page => match source.advanced(page - range.start) {
                Source::Stored { image, offset } => {
                    let slot = offset / PAGE_SIZE as u64 - 1;
                    self.prior.chain.images()[image].checksum(slot) == sum
                }
                Source::Zero => image::is_zero_page(bytes),
                Source::Absent => false,
            },
            _ => false,
        }
    }
}
