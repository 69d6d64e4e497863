//! The bytes of a chain's pages, whichever way its images store them.

use std::ops::Range;

use super::{Chain, Result};
use crate::image::{self, BLOCK_PAGES, Image, PAGE_SIZE};

/// Gives pages of the images of a chain: in place where they lie in the file as they are, else by way of memory of its own. Whoever
/// asks for pages that follow each other, a few at a time, has each block decoded once.
#[derive(Debug)]
pub struct PageReader<'c> {
    chain: &'c Chain,
    /// Which slots of which image are in `bytes`.
    held: (usize, Range<u64>),
    bytes: Vec<u8>,
}

impl<'c> PageReader<'c> {
    /// Asked for more pages than these at once, it takes the more memory.
    pub const USUAL: u64 = 256;

    /// A reader of the images of `chain`.
    pub fn new(chain: &'c Chain) -> Self {
        Self { chain, held: (0, 0..0), bytes: Vec::new() }
    }

    /// The bytes of consecutive pages that are [stored](super::Source::Stored) in an image at this offset. Their checksums are the
    /// caller's business.
    ///
    /// # Errors
    /// When a block cannot be decoded.
    pub fn get(&mut self, image: usize, offset: u64, pages: u64) -> Result<&[u8]> {
        let slots = slots(offset, pages);
        let reader = &self.chain.images()[image];
        if !reader.is_packed() {
            return Ok(reader.page_bytes(slots.start, pages));
        }
        let (of, held) = &self.held;
        if *of != image || slots.start < held.start || slots.end > held.end {
            self.fetch(image, reader, &slots)?;
        }
        let at = (slots.start - self.held.1.start) as usize * PAGE_SIZE;
        Ok(&self.bytes[at..at + pages as usize * PAGE_SIZE])
    }

    fn fetch(&mut self, image: usize, reader: &Image, slots: &Range<u64>) -> Result<()> {
        let first = slots.start / BLOCK_PAGES * BLOCK_PAGES;
        let end = slots.end.next_multiple_of(BLOCK_PAGES).min(reader.slots());
        self.held = (image, 0..0);
        self.bytes.resize((end - first) as usize * PAGE_SIZE, 0);
        reader.read_pages(first, &mut self.bytes)?;
        self.held.1 = first..end;
        Ok(())
    }
}

/// The slots at an offset.
fn slots(offset: u64, pages: u64) -> Range<u64> {
    let first = (offset - image::HEADER_BYTES) / PAGE_SIZE as u64;
    first..first + pages
}
