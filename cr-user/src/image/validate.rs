//! The rules that an index must obey, checked by the writer before it writes and by the reader before it believes.

use super::blocks::{self, Entry, Table};
use super::codec::Codec;
use super::index::{ArchivedExtent, ArchivedIndex, ArchivedParent, Content, Extent, Statistics};
use super::layout::{ALIGNMENT, Footer, HEADER_BYTES, Header};
use super::{PAGE_SIZE, Parent, RecordKind};

/// One past the last page number: beyond it, byte addresses would not fit 64 bits.
const PAGES_END: u64 = 1 << 52;

/// One past the last number that a space can have, so that there is always room for the numbers of new ones.
pub(super) const SPACES_END: u64 = 1 << 63;

/// Pages counted by content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) stored: u64,
    pub(super) zero: u64,
    pub(super) absent: u64,
}

/// A record that is not among the known kinds, or is in a version newer than the known one.
pub(super) struct Stranger {
    pub(super) id: u16,
    pub(super) version: u16,
    pub(super) known: Option<RecordKind>,
}

/// Checks the index against header and footer: identity, statistics, and that every offset, slot and page number is
/// inside what it refers to. The error completes "PATH is damaged: …".
pub(super) fn check_index(index: &ArchivedIndex, header: &Header, footer: &Footer) -> Result<(), String> {
    let id = index.id.to_native();
    if id != header.id || id != footer.id {
        return Err(format!("index, header and footer disagree on its number ({id}, {}, {})", header.id, footer.id));
    }
    if index.job != header.job.0 {
        return Err("index and header disagree on its job".into());
    }
    let parent = index.parent.as_ref().map(ArchivedParent::native);
    if parent != footer.parent {
        return Err("index and footer disagree on its parent".into());
    }
    check_parent(id, parent)?;
    check_records(index, footer)?;
    let spaces = index.spaces.iter();
    let spaces = spaces.map(|space| (space.id.to_native(), space.extents.iter().map(ArchivedExtent::native)));
    let counts = check_spaces(spaces, footer.slots)?;
    let Statistics { stored_pages, zero_pages, absent_pages, .. } = index.statistics.native();
    if counts != (Counts { stored: stored_pages, zero: zero_pages, absent: absent_pages }) {
        return Err("the page counts do not match the extents".into());
    }
    Ok(())
}

/// Blocks lie in the page segment and decode to no more than a block.
pub(super) fn check_blocks(table: Table<'_>, header: &Header, footer: &Footer) -> Result<(), String> {
    for (number, entry) in table.iter().enumerate() {
        let slots = blocks::slots_of(number as u64, footer.slots);
        let plain = (slots.end - slots.start) * PAGE_SIZE as u64;
        let fits = |entry: Entry| {
            let (len, tag) = (u64::from(entry.len), header.tag_bytes());
            let inside = entry.offset >= HEADER_BYTES
                && entry.offset.checked_add(len).is_some_and(|end| end <= footer.records_offset);
            let right = match entry.codec {
                Codec::Raw => len == plain + tag,
                Codec::Lz4 | Codec::Zstd => (tag..plain + tag).contains(&len),
                Codec::Hole => len == 0,
            };
            inside && right
        };
        if !entry.is_some_and(fits) {
            return Err(format!(
                "the table of blocks does not say where slots {} to {} are",
                slots.start,
                slots.end - 1
            ));
        }
    }
    Ok(())
}

/// A parent is older than its child, so that no chain has a loop.
pub(super) fn check_parent(id: u64, parent: Option<Parent>) -> Result<(), String> {
    match parent {
        Some(parent) if parent.id >= id => Err(format!("its parent {} is not older than itself ({id})", parent.id)),
        _ => Ok(()),
    }
}

/// Checks that ids and first pages ascend without overlap and that slots exist; counts pages.
pub(super) fn check_spaces<E>(spaces: impl Iterator<Item = (u64, E)>, slots: u64) -> Result<Counts, String>
where
    E: Iterator<Item = Extent>,
{
    let mut counts = Counts::default();
    let mut last_space = None;
    for (space, extents) in spaces {
        if last_space >= Some(space) {
            return Err(format!("space {space} is out of order or named twice"));
        }
        if space >= SPACES_END {
            return Err(format!("space {space:#x} is out of range"));
        }
        last_space = Some(space);
        let mut free_from = 0;
        for Extent { first_page, pages, content } in extents {
            let end = first_page.checked_add(pages).filter(|end| *end <= PAGES_END);
            let Some(end) = end.filter(|_| pages > 0 && first_page >= free_from) else {
                let what = format!("{pages} pages from {first_page:#x} of space {space} are out of order or range");
                return Err(what);
            };
            free_from = end;
            let count = match content {
                Content::Stored { slot } => {
                    if slot.checked_add(pages).is_none_or(|end| end > slots) {
                        let what = format!("page {first_page:#x} of space {space} is said to be in slot {slot}");
                        return Err(format!("{what} (and {pages} pages on), but there are {slots} slots"));
                    }
                    &mut counts.stored
                }
                Content::Zero => &mut counts.zero,
                Content::Absent => &mut counts.absent,
                // Whether there is such a slot is for the chain to see.
                Content::Borrowed { back, slot } if back > 0 && is_slot_range(slot, pages) => continue,
                Content::Borrowed { slot, .. } if !is_slot_range(slot, pages) => {
                    return Err(format!("page {first_page:#x} of space {space} is said to be in slot {slot:#x}"));
                }
                Content::Borrowed { .. } => {
                    return Err(format!("page {first_page:#x} of space {space} is said to be borrowed from nowhere"));
                }
            };
            *count = count.saturating_add(pages);
        }
    }
    Ok(counts)
}

/// Whether some image could have these slots: their byte offsets fit 64 bits.
fn is_slot_range(slot: u64, pages: u64) -> bool {
    slot.checked_add(pages).is_some_and(|end| end < PAGES_END)
}

/// The first record that a reader who knows `known` cannot use.
pub(super) fn find_stranger(index: &ArchivedIndex, known: &[RecordKind]) -> Option<Stranger> {
    index.records.iter().find_map(|entry| {
        let (id, version) = (entry.id.to_native(), entry.version.to_native());
        let kind = known.iter().find(|kind| kind.id == id).copied();
        let usable = kind.is_some_and(|kind| version <= kind.version);
        (!usable).then_some(Stranger { id, version, known: kind })
    })
}

/// Records ascend by id, lie inside their area one after the other, and are aligned.
fn check_records(index: &ArchivedIndex, footer: &Footer) -> Result<(), String> {
    let mut last = None;
    let mut free_from = footer.records_offset;
    for entry in index.records.iter() {
        let (id, offset, len) = (entry.id.to_native(), entry.offset.to_native(), entry.len.to_native());
        if last >= Some(id) {
            return Err(format!("record {id} is out of order or named twice"));
        }
        last = Some(id);
        let end = offset.checked_add(len).filter(|end| *end <= footer.checksums_offset);
        let Some(end) = end.filter(|_| offset >= free_from && offset.is_multiple_of(ALIGNMENT)) else {
            return Err(format!("record {id} ({len} bytes from {offset}) is not inside the area of records"));
        };
        free_from = end;
    }
    Ok(())
}
