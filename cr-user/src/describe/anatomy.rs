//! What an image is made of: the files of its chain, its records, and the content spaces that it speaks of.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::{milliseconds, rfc3339};
use crate::hex;
use crate::image::{ArchivedExtent, Content, FORMAT_VERSION, Image};
use crate::object::KINDS;
use crate::object::spaces::Spaces;
use crate::ranges::RangeSet;
use crate::recorded::Records;
use crate::store::{Chain, Source};

/// The parts of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Anatomy {
    /// Version of the image format.
    pub format: u32,
    /// The files that it consists of, itself first and the full checkpoint last.
    pub images: Vec<ImageFile>,
    /// Where its records are in its file.
    pub record_places: Vec<RecordPlace>,
    /// The content spaces that it speaks of.
    pub spaces: Vec<SpaceRow>,
    /// Its records, each whole.
    pub records: Records,
}

/// One file of a chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageFile {
    /// The checkpoint's number.
    pub id: u64,
    /// Where it is.
    pub file: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Its identity: the metadata hash in hexadecimal.
    pub hash: String,
    /// The number of the checkpoint that it is a delta on.
    pub parent: Option<u64>,
    /// When the job was frozen (RFC 3339, UTC).
    pub taken_at: String,
    /// How long the job was frozen, in milliseconds.
    pub frozen_ms: f64,
    /// How long it all took, in milliseconds.
    pub total_ms: f64,
    /// Pages in the file.
    pub slots: u64,
    /// Those that none of its own extents names. Newer images may borrow them.
    pub unnamed_slots: u64,
    /// What it alone says of pages.
    pub pages: Pages,
    /// Whether it is encrypted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sealed: bool,
    /// The public key of who has signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
}

/// Pages by what an image says of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// They are in it.
    pub stored: u64,
    /// They are zero.
    pub zero: u64,
    /// There are none.
    pub absent: u64,
    /// They are in an older image, in another space.
    pub borrowed: u64,
}

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordPlace {
    /// The kind's number.
    pub id: u16,
    /// The kind's name.
    pub name: &'static str,
    /// Version of its layout.
    pub version: u16,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A content space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpaceRow {
    /// Its number.
    pub id: u64,
    /// `process` (the number is its pid) or `object`.
    pub kind: &'static str,
    /// Extents in this image.
    pub extents: usize,
    /// What this image alone says of its pages.
    pub pages: Pages,
    /// What all images together say.
    pub sources: Sources,
}

/// Where the content of pages is, according to the whole chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sources {
    /// Pages stored, by the number of the checkpoint in whose file they are.
    pub stored_in: BTreeMap<u64, u64>,
    /// Pages that are zero.
    pub zero: u64,
}

impl Sources {
    /// Those of `pages` of a space.
    pub(super) fn add(&mut self, chain: &Chain, source: Source, pages: u64) {
        match source {
            Source::Stored { image, .. } => *self.stored_in.entry(chain.images()[image].id()).or_default() += pages,
            Source::Zero => self.zero += pages,
            Source::Absent => {}
        }
    }
}

impl Anatomy {
    /// That of the newest image of a chain, whose records were read.
    pub(super) fn of(chain: &Chain, records: Records) -> Self {
        let image = chain.newest();
        Self {
            format: FORMAT_VERSION,
            images: chain.images().iter().map(file).collect(),
            record_places: record_places(image),
            spaces: image.space_ids().map(|space| space_row(chain, space)).collect(),
            records,
        }
    }
}

fn file(image: &Image) -> ImageFile {
    let summary = image.summary();
    let mut named = Vec::new();
    let mut pages = Pages::default();
    for space in image.space_ids() {
        count(image, space, &mut pages);
        named.extend(image.extents(space).iter().map(ArchivedExtent::native).filter_map(|extent| {
            let Content::Stored { slot } = extent.content else { return None };
            Some(slot..slot + extent.pages)
        }));
    }
    ImageFile {
        id: image.id(),
        file: image.path().display().to_string(),
        bytes: summary.file_bytes,
        hash: hex::encode(&summary.hash),
        parent: summary.parent.map(|parent| parent.id),
        taken_at: rfc3339(summary.taken_at),
        frozen_ms: milliseconds(Duration::from_nanos(summary.statistics.frozen_ns)),
        total_ms: milliseconds(Duration::from_nanos(summary.statistics.total_ns)),
        slots: image.slots(),
        unnamed_slots: image.slots() - RangeSet::from_unsorted(named).count(),
        pages,
        sealed: image.is_sealed(),
        signed_by: image.signer().map(|key| key.to_string()),
    }
}

fn count(image: &Image, space: u64, pages: &mut Pages) {
    for extent in image.extents(space).iter().map(ArchivedExtent::native) {
        let number = match extent.content {
            Content::Stored { .. } => &mut pages.stored,
            Content::Zero => &mut pages.zero,
            Content::Absent => &mut pages.absent,
            Content::Borrowed { .. } => &mut pages.borrowed,
        };
        *number += extent.pages;
    }
}

fn record_places(image: &Image) -> Vec<RecordPlace> {
    let places = image.index().records.iter().map(|entry| {
        let id = entry.id.to_native();
        RecordPlace {
            id,
            // An image with a record of another kind is not opened.
            name: KINDS.iter().find(|kind| kind.id == id).map_or("", |kind| kind.name),
            version: entry.version.to_native(),
            offset: entry.offset.to_native(),
            bytes: entry.len.to_native(),
        }
    });
    places.collect()
}

fn space_row(chain: &Chain, space: u64) -> SpaceRow {
    let image = chain.newest();
    let mut pages = Pages::default();
    count(image, space, &mut pages);
    let mut sources = Sources::default();
    chain.resolve(space).for_each(|run| sources.add(chain, run.source, run.pages));
    SpaceRow {
        id: space,
        kind: if Spaces::is_object(space) { "object" } else { "process" },
        extents: image.extents(space).len(),
        pages,
        sources,
    }
}
