//! The index: what a checkpoint is, and where each of its pages is.

use rkyv::{Archive, Serialize};

use super::MetadataHash;

/// The index as it is written; readers use [`ArchivedIndex`] in place.
#[derive(Debug, Archive, Serialize)]
pub struct Index {
    /// Number of the checkpoint within its store.
    pub id: u64,
    /// The job that the checkpoint is of.
    pub job: [u8; 16],
    /// The checkpoint that this one is a delta on; none makes it a full one.
    pub parent: Option<Parent>,
    /// When the job was frozen for it: nanoseconds since 1970 (UTC, `CLOCK_REALTIME`).
    pub taken_at: u64,
    /// Figures about how it was taken.
    pub statistics: Statistics,
    /// Why more was asked of the oracle than the hints said, one reason an entry.
    pub widened: Vec<String>,
    /// Where the records are; sorted by id, each id once.
    pub records: Vec<RecordEntry>,
    /// What it says about pages; sorted by id, each id once.
    pub spaces: Vec<Space>,
}

/// What the caller of [`ImageWriter::finish`](super::ImageWriter::finish) knows of the index; the writer knows the rest.
#[derive(Debug, Clone, Default)]
pub struct IndexInfo {
    /// The checkpoint that this one is a delta on; none makes it a full one.
    pub parent: Option<Parent>,
    /// When the job was frozen: nanoseconds since 1970 (UTC, `CLOCK_REALTIME`).
    pub taken_at: u64,
    /// Pages found dirty (those of a full checkpoint: all that were read).
    pub dirty_pages: u64,
    /// How long the job was frozen, in nanoseconds.
    pub frozen_ns: u64,
    /// How long the whole checkpoint took up to now, in nanoseconds.
    pub total_ns: u64,
    /// Why more was asked of the oracle than the hints said, one reason an entry.
    pub widened: Vec<String>,
    /// Pages, by address space or memory object; in any order, each id once. Extents as [`Space`] wants them.
    pub spaces: Vec<Space>,
}

/// Names one image: its number, and the hash that tells it from every other image of that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize)]
pub struct Parent {
    /// Number within the store.
    pub id: u64,
    /// The image's metadata hash.
    pub hash: MetadataHash,
}

/// Figures about how a checkpoint was taken. Page counts are of 4096 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Archive, Serialize)]
pub struct Statistics {
    /// Pages found dirty.
    pub dirty_pages: u64,
    /// Pages that the extents say are stored (counted by the writer).
    pub stored_pages: u64,
    /// Pages that the extents say are zero.
    pub zero_pages: u64,
    /// Pages that the extents say are absent.
    pub absent_pages: u64,
    /// How long the job was frozen, in nanoseconds.
    pub frozen_ns: u64,
    /// How long the whole checkpoint took, up to the writing of the index, in nanoseconds.
    pub total_ns: u64,
}

/// Where one record is.
#[derive(Debug, Clone, Copy, Archive, Serialize)]
pub struct RecordEntry {
    /// Kind of the record.
    pub id: u16,
    /// Version of its layout.
    pub version: u16,
    /// Byte offset in the file, a multiple of 16.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The pages of one address space, or of one memory object (a memfd, a shared mapping), that a checkpoint speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize)]
pub struct Space {
    /// Its number; what it stands for is the records' business.
    pub id: u64,
    /// Sorted by first page, not overlapping, none empty. [`Space::from_unsorted`] makes it so.
    pub extents: Vec<Extent>,
}

/// A run of pages of one space with one kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize)]
#[rkyv(derive(Debug))]
pub struct Extent {
    /// Page number within the space: for address spaces the address, for objects the offset, divided by 4096.
    pub first_page: u64,
    /// How many pages.
    pub pages: u64,
    /// What they hold.
    pub content: Content,
}

/// What pages hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize)]
#[rkyv(derive(Debug))]
pub enum Content {
    /// They are in the image: the first in this slot, the others in the slots that follow. Slot `n` is at byte
    /// `4096 * (n + 1)` of the file.
    Stored {
        /// Slot of the first page.
        slot: u64,
    },
    /// All bytes are known to be zero.
    Zero,
    /// There is no page: anonymous memory reads as zero, a private file mapping as the file's bytes.
    Absent,
    /// They are in an older image of the chain, where another space may have them too: a child of `fork` has its parent's
    /// pages.
    Borrowed {
        /// How many images before this one: 1 is its parent.
        back: u32,
        /// Slot of the first page there; the others follow.
        slot: u64,
    },
}

// Other readers rely on these (docs/image-format.md).
const _: () = assert!(size_of::<ArchivedExtent>() == 32);
const _: () = assert!(size_of::<ArchivedSpace>() == 24);
const _: () = assert!(size_of::<ArchivedRecordEntry>() == 24);
const _: () = assert!(size_of::<ArchivedStatistics>() == 48);
const _: () = assert!(size_of::<ArchivedParent>() == 40);
const _: () = assert!(size_of::<ArchivedIndex>() == 176);

impl Space {
    /// Puts extents into order and joins those that continue each other.
    pub fn from_unsorted(id: u64, mut extents: Vec<Extent>) -> Self {
        extents.retain(|extent| extent.pages > 0);
        extents.sort_unstable_by_key(|extent| extent.first_page);
        extents.dedup_by(|next, last| last.try_join(next));
        Self { id, extents }
    }
}

impl Extent {
    /// First page after the run.
    pub fn end_page(&self) -> u64 {
        self.first_page + self.pages
    }

    /// What `page`, which must be inside the run, holds.
    pub fn content_at(&self, page: u64) -> Content {
        debug_assert!((self.first_page..self.end_page()).contains(&page));
        match self.content {
            Content::Stored { slot } => Content::Stored { slot: slot + (page - self.first_page) },
            Content::Borrowed { back, slot } => Content::Borrowed { back, slot: slot + (page - self.first_page) },
            other => other,
        }
    }

    /// Takes `next` in if it continues this run in the space and, where stored, in the file.
    pub fn try_join(&mut self, next: &Self) -> bool {
        let continues = next.first_page == self.end_page()
            && match (self.content, next.content) {
                (Content::Stored { slot }, Content::Stored { slot: next }) => slot + self.pages == next,
                (Content::Borrowed { back, slot }, Content::Borrowed { back: same, slot: next }) => {
                    back == same && slot + self.pages == next
                }
                (Content::Zero, Content::Zero) | (Content::Absent, Content::Absent) => true,
                _ => false,
            };
        if continues {
            self.pages += next.pages;
        }
        continues
    }
}

impl ArchivedExtent {
    /// The same in native integers.
    pub fn native(&self) -> Extent {
        Extent {
            first_page: self.first_page.to_native(),
            pages: self.pages.to_native(),
            content: match &self.content {
                ArchivedContent::Stored { slot } => Content::Stored { slot: slot.to_native() },
                ArchivedContent::Zero => Content::Zero,
                ArchivedContent::Absent => Content::Absent,
                ArchivedContent::Borrowed { back, slot } => {
                    Content::Borrowed { back: back.to_native(), slot: slot.to_native() }
                }
            },
        }
    }
}

impl ArchivedParent {
    /// The same in native integers.
    pub fn native(&self) -> Parent {
        Parent { id: self.id.to_native(), hash: self.hash }
    }
}

impl ArchivedStatistics {
    /// The same in native integers.
    pub fn native(&self) -> Statistics {
        Statistics {
            dirty_pages: self.dirty_pages.to_native(),
            stored_pages: self.stored_pages.to_native(),
            zero_pages: self.zero_pages.to_native(),
            absent_pages: self.absent_pages.to_native(),
            frozen_ns: self.frozen_ns.to_native(),
            total_ns: self.total_ns.to_native(),
        }
    }
}
