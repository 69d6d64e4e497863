//! A checkpoint together with all that it builds on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Error, Finder, Resolve, Resolved, Result, Source, Store};
use crate::image::{self, ArchivedExtent, Content, Image};

/// The images that make up one checkpoint, newest first, each validated.
///
/// What a page holds is what the newest image that names it says; a page that none names is absent. An image names
/// pages by space and number only: whoever takes a delta must name, as absent or with new contents, the pages of
/// ranges that were unmapped or mapped anew since the parent.
#[derive(Debug)]
pub struct Chain {
    images: Vec<Image>,
}

impl Chain {
    /// Opens checkpoint `id`, or the newest one, and its parents up to the full checkpoint at the root.
    ///
    /// Every image is validated but for its pages; see [`verify_pages`](Self::verify_pages).
    pub fn open(store: &Store, id: Option<u64>) -> Result<Self> {
        if let Some(id) = id {
            return Self::open_one(store, id);
        }
        let newest = store.newest_id()?.ok_or_else(|| Error::Empty { dir: store.dir().to_owned() })?;
        match Self::open_one(store, newest) {
            // Pruned meanwhile, as there is a newer one.
            Err(Error::NoCheckpoint { .. }) if store.newest_id()? > Some(newest) => Self::open(store, None),
            opened => opened,
        }
    }

    fn open_one(store: &Store, newest: u64) -> Result<Self> {
        let mut images = vec![store.open_image(newest)?];
        while let Some(child) = images.last()
            && let Some(parent) = child.parent()
        {
            let (dir, child) = (store.dir().to_owned(), child.id());
            let image = match store.open_image(parent.id) {
                // Pruned meanwhile, and before its parents.
                Err(Error::NoCheckpoint { .. }) if store.has_lost(newest) => {
                    Err(Error::NoCheckpoint { dir, id: newest })
                }
                Err(Error::NoCheckpoint { id: parent, .. }) => Err(Error::MissingParent { dir, child, parent }),
                Ok(image) if image.as_parent() != parent => Err(Error::OtherParent { dir, child, parent: parent.id }),
                other => other,
            };
            images.push(image?);
        }
        check_borrowed(&images)?;
        Ok(Self { images })
    }

    /// All images, newest first; [`Source::Stored`] counts in this order.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The checkpoint itself, whose records describe the job.
    pub fn newest(&self) -> &Image {
        &self.images[0]
    }

    /// The chain of its parent; none of a full checkpoint.
    pub(super) fn into_parent(mut self) -> Option<Self> {
        self.images.remove(0);
        Some(self).filter(|parent| !parent.images.is_empty())
    }

    /// Ids of all spaces that any image speaks of, ascending. The newest image's records say which still exist.
    pub fn space_ids(&self) -> BTreeSet<u64> {
        self.images.iter().flat_map(Image::space_ids).collect()
    }

    /// Where the contents of one page are. Of many pages, ask a [`finder`](Self::finder).
    pub fn lookup(&self, space: u64, page: u64) -> Source {
        let contents = self.images.iter().enumerate().find_map(|(image, reader)| {
            let content = reader.lookup(space, page)?;
            Some(Source::new(image, content))
        });
        contents.unwrap_or(Source::Absent)
    }

    /// All runs of pages of a space that any image names, ascending and as long as can be. Pages between them are
    /// absent, as are those in runs that say so.
    pub fn resolve(&self, space: u64) -> Resolve<'_> {
        Resolve::new(self.images.iter().map(|image| image.extents(space)))
    }

    /// What finds pages of a space in no order.
    pub fn finder(&self, space: u64) -> Finder {
        Finder::new(self.resolve(space))
    }

    /// Ranges of pages of a space that have contents, stored or zero: first page and how many, ascending, joined.
    pub fn content_pages(&self, space: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut runs = self.resolve(space).filter(|run| run.source != Source::Absent).peekable();
        std::iter::from_fn(move || {
            let Resolved { first_page, mut pages, .. } = runs.next()?;
            while let Some(next) = runs.next_if(|next| next.first_page == first_page + pages) {
                pages += next.pages;
            }
            Some((first_page, pages))
        })
    }

    /// Checks the pages that this checkpoint consists of (not those that newer images replaced) against their
    /// checksums, with up to `threads` threads.
    pub fn verify_pages(&self, threads: usize) -> Result<()> {
        Ok(image::verify_runs(&self.images, self.stored_runs(), threads)?)
    }

    /// Where the bytes of the pages are that this checkpoint consists of: of each image (0 being the newest) the ranges of its file, in
    /// any order.
    pub(crate) fn places(&self) -> BTreeMap<usize, Vec<Range<u64>>> {
        let mut places: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for image::Run { image, slot, pages } in self.stored_runs() {
            places.entry(image).or_default().extend(self.images[image].places(slot, pages));
        }
        places
    }

    /// Whether a page that this checkpoint consists of is among those slots, by number of the image, ascending.
    pub(super) fn needs(&self, absent: &BTreeMap<u64, Vec<Range<u64>>>) -> bool {
        let lacks = |&image::Run { image, slot, pages }: &image::Run| {
            let ranges = absent.get(&self.images[image].id()).map_or(&[][..], Vec::as_slice);
            let next = ranges.partition_point(|range| range.end <= slot);
            ranges.get(next).is_some_and(|range| range.start < slot + pages)
        };
        !absent.is_empty() && self.stored_runs().iter().any(lacks)
    }

    fn stored_runs(&self) -> Vec<image::Run> {
        let mut runs = Vec::new();
        for space in self.space_ids() {
            for run in self.resolve(space) {
                if let Source::Stored { image, offset } = run.source {
                    let slot = (offset - image::HEADER_BYTES) / image::PAGE_SIZE as u64;
                    runs.push(image::Run { image, slot, pages: run.pages });
                }
            }
        }
        runs
    }
}

/// Every page that an image borrows must be in the image that it names.
fn check_borrowed(images: &[Image]) -> Result<()> {
    for (at, image) in images.iter().enumerate() {
        for space in image.space_ids() {
            for extent in image.extents(space).iter().map(ArchivedExtent::native) {
                let Content::Borrowed { back, slot } = extent.content else { continue };
                let lender = images.get(at + back as usize);
                let has = |lender: &Image| slot.checked_add(extent.pages).is_some_and(|end| end <= lender.slots());
                if !lender.is_some_and(has) {
                    let what = format!(
                        "page {:#x} of space {space} is said to be in slot {slot} of the image {back} before it",
                        extent.first_page
                    );
                    return Err(image::Error::damaged(image.path(), what).into());
                }
            }
        }
    }
    Ok(())
}
