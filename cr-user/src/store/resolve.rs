//! Lays the extents of a chain's images over each other, newest on top.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::image::{ArchivedExtent, Content, Extent, Image, PAGE_SIZE};

/// Where the contents of a page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In a file.
    Stored {
        /// Position in [`Chain::images`](super::Chain::images), 0 being the newest.
        image: usize,
        /// Byte offset in that image's file, a multiple of 4096: of an image whose pages are in blocks, where the page would be if
        /// they were not. The pages of a run follow each other.
        offset: u64,
    },
    /// All bytes are zero.
    Zero,
    /// There is no page: anonymous memory reads as zero, a private file mapping as the file's bytes.
    Absent,
}

/// A run of pages of one space with one kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Page number within the space.
    pub first_page: u64,
    /// How many pages.
    pub pages: u64,
    /// Where the first page is.
    pub source: Source,
}

/// The runs of one space, ascending. Takes O(e log i) time in all for e extents in i images, and memory for i of them.
#[derive(Debug)]
pub struct Resolve<'c> {
    /// By image, newest first: the extent that comes next or is under way, and those after it.
    fronts: Vec<Front<'c>>,
    /// Extents that come next, by first page.
    starts: BinaryHeap<Reverse<(u64, usize)>>,
    /// Images whose extent is under way (or over, which is noticed when it comes to the top), the newest on top.
    open: BinaryHeap<Reverse<usize>>,
    /// All pages before this one have been told.
    position: u64,
    /// The run that is told once the next one turns out not to continue it.
    last: Option<Resolved>,
}

#[derive(Debug)]
struct Front<'c> {
    extent: Extent,
    rest: std::slice::Iter<'c, ArchivedExtent>,
}

impl<'c> Resolve<'c> {
    /// `images`: the extents of the space in each image, newest first.
    pub(super) fn new(images: impl Iterator<Item = &'c [ArchivedExtent]>) -> Self {
        let nothing = Extent { first_page: 0, pages: 0, content: Content::Absent };
        let fronts = images.map(|extents| Front { extent: nothing, rest: extents.iter() }).collect::<Vec<_>>();
        let mut this = Self { starts: BinaryHeap::new(), open: BinaryHeap::new(), position: 0, last: None, fronts };
        for image in 0..this.fronts.len() {
            this.advance(image);
        }
        this
    }

    /// The next run, perhaps not as long as can be.
    fn next_piece(&mut self) -> Option<Resolved> {
        loop {
            while let Some(&Reverse((first_page, image))) = self.starts.peek()
                && first_page <= self.position
            {
                self.starts.pop();
                self.open.push(Reverse(image));
            }
            let next_start = self.starts.peek().map(|Reverse((first_page, _))| *first_page);
            let Some(&Reverse(image)) = self.open.peek() else {
                self.position = next_start?;
                continue;
            };
            let extent = self.fronts[image].extent;
            if extent.end_page() <= self.position {
                self.open.pop();
                self.advance(image);
                continue;
            }
            let first_page = self.position;
            self.position = next_start.map_or(extent.end_page(), |start| start.min(extent.end_page()));
            let source = Source::new(image, extent.content_at(first_page));
            return Some(Resolved { first_page, pages: self.position - first_page, source });
        }
    }

    /// Goes on to the image's next extent, if there is one.
    fn advance(&mut self, image: usize) {
        let front = &mut self.fronts[image];
        if let Some(extent) = front.rest.next() {
            front.extent = extent.native();
            self.starts.push(Reverse((front.extent.first_page, image)));
        }
    }
}

impl Iterator for Resolve<'_> {
    type Item = Resolved;

    fn next(&mut self) -> Option<Resolved> {
        while let Some(piece) = self.next_piece() {
            if let Some(last) = &mut self.last
                && last.first_page + last.pages == piece.first_page
                && last.source.advanced(last.pages) == piece.source
            {
                last.pages += piece.pages;
            } else if let Some(told) = self.last.replace(piece) {
                return Some(told);
            }
        }
        self.last.take()
    }
}

impl Source {
    pub(super) fn new(image: usize, content: Content) -> Self {
        match content {
            Content::Stored { slot } => Self::Stored { image, offset: Image::slot_offset(slot) },
            Content::Zero => Self::Zero,
            Content::Absent => Self::Absent,
            Content::Borrowed { back, slot } => {
                Self::Stored { image: image + back as usize, offset: Image::slot_offset(slot) }
            }
        }
    }

    /// The source of the page that is `pages` further on in a run.
    #[must_use]
    pub fn advanced(self, pages: u64) -> Self {
        match self {
            Self::Stored { image, offset } => Self::Stored { image, offset: offset + pages * PAGE_SIZE as u64 },
            other => other,
        }
    }
}
