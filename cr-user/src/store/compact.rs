//! One full image made of a chain: of the newest checkpoint and of all that it builds on.
//!
//! It is published as a checkpoint of its own, with the next number, and says of which one it was made ([`Compacted`]). Nothing else in
//! the store changes; [pruning](super::prune) removes what nobody needs any more.
//!
//! [`Compaction`] is made for somebody who has other things to do in between: it copies a few pages at a time, under the name
//! `compacted.tmp`, and while it does checkpoints may be published. It keeps account of where each page that it has copied came from,
//! by image and slot, and the index is made in the end, from a look at the chain as it is then. So what a newer checkpoint has replaced
//! is only copied besides ([`Compaction::catch_up`]), and no page can come from elsewhere than the chain says.
//!
//! Every page is compared with the checksum that its image has of it, also where the file system shares it instead of copying it: what
//! is damaged is refused, and never gets a new checksum.
//!
//! What it does *not* do: it does not know what records mean. Which spaces the newest checkpoint still needs, and a record that only
//! makes sense together with older ones, are for the caller to know ([`crate::compact`]).

mod places;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;

use memmap2::{Advice, MmapMut};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rkyv::rancor;

use self::places::{Part, Places};
use super::{Chain, Error, Result, Source, StoreWriter};
use crate::fault;
use crate::image::{
    self, Compression, Content, Extent, Finished, HeaderInfo, Image, ImageWriter, IndexInfo, PAGE_SIZE, RecordKind,
    Space,
};
use crate::ranges::RangeSet;

/// The record of an image that was made of others.
pub const KIND: RecordKind = RecordKind { id: 41, version: 1, name: "compacted" };

/// Name of the image until it is published.
pub const UNFINISHED: &str = "compacted.tmp";

/// Most pages that are read at a time: 1 MiB.
const CHUNK: u64 = 256;
/// Shorter runs are copied even where they could be shared: a file of many small shared pieces is slow to read.
const SHARED_LEAST: u64 = 16;
/// After so many pages (32 MiB) they are made durable, so that there is little left to do in the end, at once.
const SYNCED: u64 = 8192;
/// Bytes of our own memory for each run of pages: its place, its turn, its extent.
const RUN_BYTES: u64 = 160;
/// Bytes of our own memory for each page: its checksum.
const PAGE_BYTES: u64 = 8;
/// Bytes that are needed in any case: for pages on their way.
const FIXED_BYTES: u64 = 3 << 20;

/// Of what an image was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Compacted {
    /// Number of the checkpoint that it is the same as.
    pub from: u64,
    /// How many images that was made up of.
    pub images: u32,
}

/// What was done with pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Copied.
    pub copied_pages: u64,
    /// Shared with the older images, by the file system.
    pub shared_pages: u64,
}

/// A full image in the making. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
pub struct Compaction {
    image: ImageWriter,
    chain: Chain,
    spaces: BTreeSet<u64>,
    places: Places,
    todo: VecDeque<Part>,
    /// The older images, open for reading, by number.
    files: HashMap<u64, File>,
    buffer: MmapMut,
    can_share: bool,
    unsynced: u64,
    figures: Figures,
    memory_limit: u64,
}

impl Compaction {
    /// Begins with an image of `chain`, as far as it concerns `spaces`. The writer must not have another one under way.
    ///
    /// # Errors
    /// When the file cannot be made, or keeping account of the pages would take more than `memory_limit` bytes.
    pub fn begin(writer: &StoreWriter, chain: Chain, spaces: BTreeSet<u64>, memory_limit: u64) -> Result<Self> {
        check_memory(writer, &chain, &spaces, memory_limit)?;
        let (store, path) = (writer.store(), writer.store().dir().join(UNFINISHED));
        // One that was given up and could not be removed.
        if path.try_exists().map_err(|source| Error::io(&path, "look at", source))? {
            store.disk().remove(&path).map_err(|source| Error::io(&path, "remove", source))?;
        }
        let bytes = CHUNK as usize * PAGE_SIZE;
        let buffer = MmapMut::map_anon(bytes).map_err(|source| Error::io(&path, "get memory for", source))?;
        // A child that is made while the disk reads this must not be given the pages.
        let _ = buffer.advise(Advice::DontFork);
        // It gets its number when it is published.
        let info = HeaderInfo { id: 0, job: store.job() };
        // As the oldest one, which has most of the pages.
        let compression = chain.images().last().map_or(Compression::None, Image::compression);
        let image = ImageWriter::create_as_on(store.disk(), &path, info, &store.form(compression)?)?;
        let places = Places::new(image.rewrites());
        let mut this = Self {
            image,
            chain,
            spaces,
            places,
            todo: VecDeque::new(),
            files: HashMap::new(),
            buffer,
            can_share: true,
            unsynced: 0,
            figures: Figures::default(),
            memory_limit,
        };
        this.plan();
        Ok(this)
    }

    /// The checkpoint that the image will be the same as.
    pub fn from(&self) -> &Image {
        self.chain.newest()
    }

    /// The chain as it was last looked at.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The content spaces that the image speaks of.
    pub fn spaces(&self) -> &BTreeSet<u64> {
        &self.spaces
    }

    /// Pages that are still to be copied.
    pub fn left(&self) -> u64 {
        self.todo.iter().map(|part| part.pages).sum()
    }

    /// What was done until now.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Copies up to `most` pages, and says how many; 0 once all are copied.
    ///
    /// # Errors
    /// When a page is damaged, or cannot be read or written. This compaction is of no use then.
    pub fn step(&mut self, most: u64) -> Result<u64> {
        let mut done = 0;
        while done < most
            && let Some(next) = self.todo.front_mut()
        {
            let part = next.take(CHUNK.min(most - done));
            if next.pages == 0 {
                self.todo.pop_front();
            }
            fault::point("compact.copy")?;
            self.copy(part)?;
            done += part.pages;
            self.unsynced += part.pages;
            if self.unsynced >= SYNCED {
                self.image.sync_pages()?;
                self.unsynced = 0;
            }
        }
        Ok(done)
    }

    /// Takes up a newer chain. What was copied of pages that it still has is not copied again.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn catch_up(&mut self, writer: &StoreWriter, chain: Chain, spaces: BTreeSet<u64>) -> Result<()> {
        check_memory(writer, &chain, &spaces, self.memory_limit)?;
        self.chain = chain;
        self.spaces = spaces;
        self.files.retain(|id, _| self.chain.images().iter().any(|image| image.id() == *id));
        self.plan();
        Ok(())
    }

    /// Completes the image: durable, and ready to be published. All pages must have been copied. Records are those of the newest
    /// checkpoint, but for `replaced` ones.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn finish(self, writer: &StoreWriter, replaced: Vec<(RecordKind, Vec<u8>)>) -> Result<Finished> {
        assert!(self.todo.is_empty(), "not all pages have been copied");
        let summary = self.chain.newest().summary();
        for (id, version, archive) in self.chain.newest().records() {
            if id != KIND.id && !replaced.iter().any(|(kind, _)| kind.id == id) {
                self.image.record(RecordKind { id, version, name: "copied" }, archive.to_vec())?;
            }
        }
        let compacted = Compacted { from: summary.id, images: self.chain.images().len() as u32 };
        let archive = rkyv::to_bytes::<rancor::Error>(&compacted).expect("two numbers").into_vec();
        for (kind, archive) in replaced.into_iter().chain([(KIND, archive)]) {
            self.image.record(kind, archive)?;
        }
        let info = IndexInfo {
            parent: None,
            taken_at: summary.taken_at,
            dirty_pages: summary.statistics.dirty_pages,
            frozen_ns: summary.statistics.frozen_ns,
            total_ns: summary.statistics.total_ns,
            widened: summary.widened,
            spaces: self.spaces.iter().map(|space| self.space(*space)).collect(),
        };
        let finished = self.image.finish_as(writer.next_id()?, info)?;
        fault::point("compact.publish")?;
        Ok(finished)
    }

    /// Finds places for all pages of the chain, and what of them is to be copied.
    fn plan(&mut self) {
        let mut needed: BTreeMap<u64, Vec<std::ops::Range<u64>>> = BTreeMap::new();
        for (image, slot, pages) in stored_runs(&self.chain, &self.spaces) {
            needed.entry(image).or_default().push(slot..slot + pages);
        }
        let needed = needed.into_iter().map(|(image, slots)| (image, RangeSet::from_unsorted(slots))).collect();
        // What was to be copied and is not needed any more has no content yet: its room is taken by others like any other.
        let pending = std::mem::take(&mut self.todo);
        self.places.forget(pending.into_iter());
        self.places.keep(&needed);
        // In the order in which a restore reads them.
        for (image, slot, pages) in stored_runs(&self.chain, &self.spaces) {
            let (mut slot, end) = (slot, slot + pages);
            while slot < end {
                let (pages, own) = self.places.next(image, slot, end - slot);
                if own.is_some() {
                    slot += pages;
                    continue;
                }
                let part = self.places.add(image, slot, pages, |pages| self.image.allocate(pages));
                slot += part.pages;
                if !self.todo.back_mut().is_some_and(|last| last.join(&part)) {
                    self.todo.push_back(part);
                }
            }
        }
    }

    fn copy(&mut self, part: Part) -> Result<()> {
        let image = self.chain.images().iter().find(|image| image.id() == part.image).expect("of this chain");
        let file = match self.files.entry(part.image) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(none) => none.insert(image.open_file()?),
        };
        let bytes = &mut self.buffer[..part.pages as usize * PAGE_SIZE];
        let offset = Image::slot_offset(part.slot);
        image.read_pages_from(file, part.slot, bytes)?;
        let sums = image::page_checksums(bytes);
        if let Some((slot, _)) = (part.slot..).zip(&sums).find(|(slot, sum)| image.checksum(*slot) != **sum) {
            return Err(image.damaged_page(slot).into());
        }
        if self.can_share && part.pages >= SHARED_LEAST && !image.is_packed() {
            if self.image.share(part.own, file, offset, &sums)? {
                self.figures.shared_pages += part.pages;
                return Ok(());
            }
            self.can_share = false;
        }
        self.image.write_summed(part.own, bytes, &sums)?;
        self.figures.copied_pages += part.pages;
        // The job's own files shall stay in the page cache, not ours.
        let _ = posix_fadvise(
            file.as_fd(),
            offset.cast_signed(),
            bytes.len() as i64,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        );
        Ok(())
    }

    /// What the image says of a space.
    fn space(&self, space: u64) -> Space {
        let mut extents = Vec::new();
        for run in self.chain.resolve(space) {
            let mut first_page = run.first_page;
            match run.source {
                // A full image need not say so.
                Source::Absent => (),
                Source::Zero => extents.push(Extent { first_page, pages: run.pages, content: Content::Zero }),
                Source::Stored { image, offset } => {
                    let (image, mut slot) = (self.chain.images()[image].id(), slot_at(offset));
                    let end = slot + run.pages;
                    while slot < end {
                        let (pages, own) = self.places.next(image, slot, end - slot);
                        let own = own.expect("every page that is needed has been copied");
                        extents.push(Extent { first_page, pages, content: Content::Stored { slot: own } });
                        (first_page, slot) = (first_page + pages, slot + pages);
                    }
                }
            }
        }
        Space::from_unsorted(space, extents)
    }
}

impl StoreWriter {
    /// Publishes a compacted image, as [`publish`](Self::publish) does any.
    ///
    /// # Errors
    /// Those of [`publish`](Self::publish): the image is not in the store then.
    pub fn publish_compacted(&self, finished: Finished) -> Result<image::Parent> {
        let published = self.publish(finished)?;
        fault::point("compact.published")?;
        Ok(published)
    }
}

impl Compacted {
    /// Of what an image was made; none if it was taken of the job itself, or the record makes no sense.
    pub fn of_image(image: &Image) -> Option<Self> {
        image.record_version(KIND.id)?;
        rkyv::from_bytes::<Self, rancor::Error>(image.record(KIND).ok()?).ok()
    }
}

/// Runs of pages of the spaces that are stored, in the order of spaces and pages: number of the image, first slot, how many.
fn stored_runs<'c>(chain: &'c Chain, spaces: &'c BTreeSet<u64>) -> impl Iterator<Item = (u64, u64, u64)> + 'c {
    spaces.iter().flat_map(|space| chain.resolve(*space)).filter_map(|run| match run.source {
        Source::Stored { image, offset } => Some((chain.images()[image].id(), slot_at(offset), run.pages)),
        Source::Zero | Source::Absent => None,
    })
}

/// How many pages of these spaces a chain stores, those that several spaces have counted for each.
pub fn stored_pages(chain: &Chain, spaces: &BTreeSet<u64>) -> u64 {
    stored_runs(chain, spaces).map(|(_, _, pages)| pages).sum()
}

fn slot_at(offset: u64) -> u64 {
    (offset - image::HEADER_BYTES) / PAGE_SIZE as u64
}

fn check_memory(writer: &StoreWriter, chain: &Chain, spaces: &BTreeSet<u64>, limit: u64) -> Result<()> {
    let (runs, pages) = stored_runs(chain, spaces).fold((0, 0), |(runs, all), (_, _, pages)| (runs + 1, all + pages));
    let needed = FIXED_BYTES + runs * RUN_BYTES + pages * PAGE_BYTES;
    if needed <= limit.max(2 * FIXED_BYTES) {
        return Ok(());
    }
    let dir = writer.store().dir().to_owned();
    Err(Error::CompactionTooLarge { dir, id: chain.newest().id(), runs, needed })
}
