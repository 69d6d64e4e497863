//! Reads an image in place, after checking all of it that is not pages.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::blocks::{Entry, Table};
use super::codec::{BLOCK_BYTES, Codec};
use super::index::{ArchivedExtent, ArchivedIndex, Content, Parent, Statistics};
use super::layout::{FOOTER_BYTES, Footer, HEADER_BYTES, Header};
use super::validate::{check_blocks, check_index, find_stranger};
use super::{
    BLOCK_PAGES, Compression, Error, JobId, MetadataHash, PAGE_SIZE, RecordKind, Result, blocks, codec, sealed,
};
use crate::seal::{ImageKey, PublicKey, StoreKey, TAG_BYTES, Unit};
use crate::sys::mmap::{MappedArchive, map_readonly};

/// A published image, mapped and validated: everything except the pages themselves, which
/// [`verify_pages`](Self::verify_pages) checks.
///
/// It keeps a mapping and no descriptor, so that a chain can be longer than the descriptor limit. As for every mapped
/// file: if somebody truncates it now, reading it here ends the process with SIGBUS (see [`crate::sys::mmap`]).
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    /// Device and inode, to find the same file again.
    identity: (u64, u64),
    header: Header,
    footer: Footer,
    /// The metadata: the whole file, or where the image is sealed, what was decrypted of it.
    archive: MappedArchive<ArchivedIndex>,
    /// The file of a sealed image, and its key.
    sealed: Option<(Mmap, ImageKey)>,
    signer: Option<PublicKey>,
}

/// What an image says about itself, in native types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Number of the checkpoint within its store.
    pub id: u64,
    /// The job that it is of.
    pub job: JobId,
    /// The image's identity.
    pub hash: MetadataHash,
    /// The checkpoint that it is a delta on; none makes it a full one.
    pub parent: Option<Parent>,
    /// When the job was frozen: nanoseconds since 1970 (UTC).
    pub taken_at: u64,
    /// Figures about how it was taken.
    pub statistics: Statistics,
    /// Why more was asked of the oracle than the hints said.
    pub widened: Vec<String>,
    /// Size of the file.
    pub file_bytes: u64,
}

impl Image {
    /// Maps the file and validates header, footer, records' places, checksums' place and index: hashes, bounds, order.
    ///
    /// `known` lists the record kinds that the caller can read, in their newest versions. A record of another kind, or
    /// of a newer version, is an error, since a restore that skipped it would not be the job any more.
    pub fn open(path: &Path, known: &[RecordKind]) -> Result<Self> {
        Self::open_sealed(path, known, None)
    }

    /// The same of a sealed image, given the key of its store. An image that is not sealed is refused then.
    pub fn open_sealed(path: &Path, known: &[RecordKind], key: Option<&StoreKey>) -> Result<Self> {
        let file = open_regular(path)?;
        let metadata = file.metadata().map_err(|source| Error::io(path, "read", source))?;
        let map = map_readonly(&file).map_err(|source| Error::io(path, "map", source))?;
        if (map.len() as u64) < HEADER_BYTES + FOOTER_BYTES {
            let path = path.to_owned();
            return Err(Error::NotAnImage { path, why: "it is shorter than the shortest one" });
        }
        let header = Header::decode(path, &map)?;
        let key = match (header.salt, key) {
            (Some(salt), Some(key)) => Some(ImageKey::derive(key, &header.job.0, &salt)),
            (Some(_), None) => return Err(Error::Sealed { path: path.to_owned() }),
            (None, Some(_)) => return Err(Error::NotSealed { path: path.to_owned() }),
            (None, None) => None,
        };
        let footer = Footer::decode(path, &map, &header)?;
        if header.packed != footer.blocks_offset.is_some() {
            return Err(Error::damaged(path, "header and footer disagree on whether its pages are in blocks"));
        }
        let hashed = map.len() - (FOOTER_BYTES + header.signature_bytes()) as usize;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&map[..HEADER_BYTES as usize]);
        hasher.update(&map[footer.records_offset as usize..hashed]);
        if hasher.finalize() != footer.hash {
            return Err(Error::damaged(path, "its records, checksums or index do not match their hash"));
        }
        if map[..HEADER_BYTES as usize] != header.encode() {
            return Err(Error::damaged(path, "the header has contents where it must be empty"));
        }
        if !sealed::is_authentic(&header, &footer, key.as_ref()) {
            return Err(Error::damaged(path, "it was not written with the key of this store, or was changed since"));
        }
        let signer = header.signed.then(|| sealed::signer(&map, &footer));
        if signer == Some(None) {
            return Err(Error::damaged(path, "its signature is not valid"));
        }
        let (metadata_map, sealed) = match key {
            None => (map, None),
            Some(key) => {
                let plain =
                    sealed::decrypt(&map, &footer, &key).map_err(|source| Error::io(path, "decrypt", source))?;
                let plain =
                    plain.ok_or_else(|| Error::damaged(path, "its records, checksums or index cannot be decrypted"))?;
                (plain, Some((map, key)))
            }
        };
        let base = if sealed.is_some() { footer.records_offset } else { 0 };
        let start = (footer.index_offset - base) as usize;
        let archive = MappedArchive::<ArchivedIndex>::new(metadata_map, start..start + footer.index_len as usize)
            .map_err(|why| Error::damaged(path, format!("the index is not valid: {why}")))?;
        let (path, identity) = (path.to_owned(), (metadata.dev(), metadata.ino()));
        let image = Self { path, identity, header, footer, archive, sealed, signer: signer.flatten() };
        image.check(known)?;
        Ok(image)
    }

    /// The table of blocks and the index, against header and footer.
    fn check(&self, known: &[RecordKind]) -> Result<()> {
        let (path, archive) = (&self.path, &self.archive);
        check_blocks(self.table(), &self.header, &self.footer).map_err(|what| Error::damaged(path, what))?;
        check_index(archive.get(), &self.header, &self.footer).map_err(|what| Error::damaged(path, what))?;
        if let Some(stranger) = find_stranger(archive.get(), known) {
            let path = path.to_owned();
            return Err(match stranger.known {
                None => Error::UnknownRecord { path, id: stranger.id, version: stranger.version },
                Some(RecordKind { name, version: known, .. }) => {
                    Error::OtherRecordVersion { path, name, found: stranger.version, known }
                }
            });
        }
        Ok(())
    }

    /// So many bytes of records, checksums, tables or index, from that byte of the file on, were it not encrypted.
    fn metadata(&self, offset: u64, len: u64) -> &[u8] {
        let base = if self.sealed.is_some() { self.footer.records_offset } else { 0 };
        let start = (offset - base) as usize;
        &self.archive.file_bytes()[start..start + len as usize]
    }

    /// The mapped file.
    fn file_bytes(&self) -> &[u8] {
        self.sealed.as_ref().map_or(self.archive.file_bytes(), |(file, _)| file)
    }

    /// The table of blocks; empty where pages are not in blocks.
    fn table(&self) -> Table<'_> {
        let bytes = self.footer.blocks_offset.map_or(&[][..], |at| self.metadata(at, self.footer.index_offset - at));
        Table { bytes, signed: self.header.signed }
    }

    /// Whether it is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// Who has signed it, with a signature that is valid. Whether he is to be trusted is for others to know.
    pub fn signer(&self) -> Option<PublicKey> {
        self.signer
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of the checkpoint within its store.
    pub fn id(&self) -> u64 {
        self.header.id
    }

    /// The job that it is of.
    pub fn job(&self) -> JobId {
        self.header.job
    }

    /// The checkpoint that it is a delta on; none makes it a full one.
    pub fn parent(&self) -> Option<Parent> {
        self.footer.parent
    }

    /// What a delta on this image names as its parent.
    pub fn as_parent(&self) -> Parent {
        Parent { id: self.header.id, hash: self.footer.hash }
    }

    /// The index, in place.
    pub fn index(&self) -> &ArchivedIndex {
        self.archive.get()
    }

    /// What it says about itself, copied out.
    pub fn summary(&self) -> Summary {
        let index = self.index();
        Summary {
            id: self.id(),
            job: self.job(),
            hash: self.footer.hash,
            parent: self.parent(),
            taken_at: index.taken_at.to_native(),
            statistics: index.statistics.native(),
            widened: index.widened.iter().map(ToString::to_string).collect(),
            file_bytes: self.footer.file_bytes,
        }
    }

    /// The record of `kind` in exactly that version: its rkyv archive, 16-aligned, checked against its hash but not
    /// yet as an archive (`rkyv::access` does that).
    ///
    /// For a record that may be of an older version, ask [`record_version`](Self::record_version) first.
    pub fn record(&self, kind: RecordKind) -> Result<&[u8]> {
        let entry = self.index().records.iter().find(|entry| entry.id.to_native() == kind.id);
        let entry = entry.ok_or_else(|| Error::MissingRecord { path: self.path.clone(), name: kind.name })?;
        let found = entry.version.to_native();
        if found != kind.version {
            let (path, name, known) = (self.path.clone(), kind.name, kind.version);
            return Err(Error::OtherRecordVersion { path, name, found, known });
        }
        Ok(self.metadata(entry.offset.to_native(), entry.len.to_native()))
    }

    /// All records as they are in the file, ascending by id: of each the id, the version and the archive.
    pub fn records(&self) -> impl Iterator<Item = (u16, u16, &[u8])> + '_ {
        self.index().records.iter().map(|entry| {
            let archive = self.metadata(entry.offset.to_native(), entry.len.to_native());
            (entry.id.to_native(), entry.version.to_native(), archive)
        })
    }

    /// The version of the record of that id, if the image holds one.
    pub fn record_version(&self, id: u16) -> Option<u16> {
        let entry = self.index().records.iter().find(|entry| entry.id.to_native() == id);
        entry.map(|entry| entry.version.to_native())
    }

    /// Ids of the spaces that it speaks of, ascending.
    pub fn space_ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.index().spaces.iter().map(|space| space.id.to_native())
    }

    /// What it says about the pages of one space: sorted, not overlapping. Empty if it does not speak of the space.
    pub fn extents(&self, space: u64) -> &[ArchivedExtent] {
        let spaces = &self.index().spaces;
        match spaces.binary_search_by_key(&space, |space| space.id.to_native()) {
            Ok(found) => &spaces[found].extents,
            Err(_) => &[],
        }
    }

    /// What this image alone says about one page; none if nothing.
    pub fn lookup(&self, space: u64, page: u64) -> Option<Content> {
        let extents = self.extents(space);
        let after = extents.partition_point(|extent| extent.first_page.to_native() <= page);
        let extent = extents[..after].last()?.native();
        (page < extent.end_page()).then(|| extent.content_at(page))
    }

    /// How many page slots it has.
    pub fn slots(&self) -> u64 {
        self.footer.slots
    }

    /// Whether its pages are in blocks, which may be compressed: then they have no place of their own in the file.
    pub fn is_packed(&self) -> bool {
        self.header.packed
    }

    /// How its pages are compressed, for others to be made like it.
    pub fn compression(&self) -> Compression {
        if !self.is_packed() {
            return Compression::None;
        }
        let uses = |codec| self.table().iter().flatten().any(|entry| entry.codec == codec);
        // Pages of a sealed or signed image are in blocks, compressed or not. Else blocks as they are among those with LZ4 do not tell
        // whether they were tried.
        let needs_blocks = self.header.signed || self.header.salt.is_some();
        match (uses(Codec::Zstd), uses(Codec::Lz4)) {
            (true, _) => Compression::Zstd,
            (false, false) if needs_blocks => Compression::None,
            _ => Compression::Auto,
        }
    }

    /// Byte offset of a slot in the file, where pages are not in blocks.
    pub fn slot_offset(slot: u64) -> u64 {
        HEADER_BYTES + slot * PAGE_SIZE as u64
    }

    /// Which ranges of the file hold the pages of these slots. Panics if there are not so many slots.
    pub(crate) fn places(&self, slot: u64, pages: u64) -> Vec<Range<u64>> {
        let end = slot.checked_add(pages).filter(|end| *end <= self.footer.slots).expect("no such slots");
        if slot == end {
            return Vec::new();
        }
        if !self.is_packed() {
            return std::iter::once(Self::slot_offset(slot)..Self::slot_offset(end)).collect();
        }
        let blocks = (slot / BLOCK_PAGES..end.div_ceil(BLOCK_PAGES)).filter_map(|number| self.block(number));
        blocks
            .map(|entry| entry.offset..entry.offset + u64::from(entry.len))
            .filter(|range| !range.is_empty())
            .collect()
    }

    /// The bytes of `pages` slots from `slot` on, mapped. Panics if the pages are in blocks, or there are not so many slots; those
    /// that the image's own extents name exist.
    pub fn page_bytes(&self, slot: u64, pages: u64) -> &[u8] {
        assert!(!self.is_packed(), "pages in blocks have no bytes of their own");
        assert!(slot.checked_add(pages).is_some_and(|end| end <= self.footer.slots), "no such slots");
        let start = Self::slot_offset(slot) as usize;
        &self.file_bytes()[start..start + pages as usize * PAGE_SIZE]
    }

    /// Copies the pages of slots, from `slot` on, out of the mapping. Panics if there are not so many slots.
    ///
    /// # Errors
    /// When a block cannot be decrypted or decoded.
    pub fn read_pages(&self, slot: u64, out: &mut [u8]) -> Result<()> {
        if !self.is_packed() {
            out.copy_from_slice(self.page_bytes(slot, (out.len() / PAGE_SIZE) as u64));
            return Ok(());
        }
        self.read_blocks(slot, out, |offset, stored| {
            stored.copy_from_slice(&self.file_bytes()[offset as usize..][..stored.len()]);
            Ok(())
        })
    }

    /// The same by way of a descriptor that [`open_file`](Self::open_file) gave: a file that shrank is an error then.
    ///
    /// # Errors
    /// When it cannot be read, or a block not be decrypted or decoded.
    pub fn read_pages_from(&self, file: &File, slot: u64, out: &mut [u8]) -> Result<()> {
        assert!(
            slot.checked_add((out.len() / PAGE_SIZE) as u64).is_some_and(|end| end <= self.footer.slots),
            "no such slots"
        );
        let read = |offset, bytes: &mut [u8]| {
            file.read_exact_at(bytes, offset).map_err(|source| Error::io(&self.path, "read", source))
        };
        if self.is_packed() { self.read_blocks(slot, out, read) } else { read(Self::slot_offset(slot), out) }
    }

    fn read_blocks(&self, slot: u64, out: &mut [u8], read: impl Fn(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        let end = slot + (out.len() / PAGE_SIZE) as u64;
        assert!(end <= self.footer.slots, "no such slots");
        let (mut stored, mut whole) = (vec![0; BLOCK_BYTES + TAG_BYTES], Vec::new());
        let mut rest = out;
        let mut at = slot;
        while at < end {
            let number = at / BLOCK_PAGES;
            let block = blocks::slots_of(number, self.footer.slots);
            let until = block.end.min(end);
            let (now, later) = rest.split_at_mut((until - at) as usize * PAGE_SIZE);
            let entry = self.block(number).ok_or_else(|| self.bad_block(number, "its entry in the table is wrong"))?;
            let stored = &mut stored[..entry.len as usize];
            read(entry.offset, stored)?;
            let failed = |why: String| self.bad_block(number, &why);
            let stored = self.unseal(number, entry, stored).map_err(failed)?;
            if at == block.start && until == block.end {
                codec::decode(entry.codec, stored, now).map_err(failed)?;
            } else {
                whole.resize((block.end - block.start) as usize * PAGE_SIZE, 0);
                codec::decode(entry.codec, stored, &mut whole).map_err(failed)?;
                now.copy_from_slice(&whole[(at - block.start) as usize * PAGE_SIZE..][..now.len()]);
            }
            (rest, at) = (later, until);
        }
        Ok(())
    }

    /// Where a block is.
    fn block(&self, number: u64) -> Option<Entry> {
        self.table().get(number)
    }

    /// What was stored of a block before it was encrypted, if it was.
    fn unseal<'b>(&self, number: u64, entry: Entry, stored: &'b mut [u8]) -> std::result::Result<&'b [u8], String> {
        if entry.digest.is_some_and(|digest| digest != blocks::digest(stored)) {
            return Err("it does not match its digest".to_owned());
        }
        match &self.sealed {
            Some((_, key)) if entry.codec != Codec::Hole => match key.open(Unit::Block(number), stored) {
                Some(plain) => Ok(plain),
                None => Err("it was not written with this image's key, or was changed since".to_owned()),
            },
            _ => Ok(stored),
        }
    }

    fn bad_block(&self, number: u64, why: &str) -> Error {
        let slots = blocks::slots_of(number, self.footer.slots);
        let place = self.describe_slot(slots.start);
        Error::damaged(
            &self.path,
            format!("the block of slots {} to {} ({place}) cannot be read: {why}", slots.start, slots.end - 1),
        )
    }

    /// The checksum that the page in `slot` must have. Panics if there is no such slot.
    pub fn checksum(&self, slot: u64) -> u64 {
        assert!(slot < self.footer.slots, "no such slot");
        let bytes = self.metadata(self.footer.checksums_offset + 8 * slot, 8);
        u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }

    /// A descriptor for `preadv`: opens the file again, and makes sure that it is the one that was validated.
    pub fn open_file(&self) -> Result<File> {
        let file = open_regular(&self.path)?;
        let metadata = file.metadata().map_err(|source| Error::io(&self.path, "read", source))?;
        if (metadata.dev(), metadata.ino(), metadata.len())
            != (self.identity.0, self.identity.1, self.footer.file_bytes)
        {
            return Err(Error::damaged(&self.path, "another file has taken its place since it was checked"));
        }
        Ok(file)
    }

    /// Checks every slot against its checksum, with up to `threads` threads (at least one).
    pub fn verify_pages(&self, threads: usize) -> Result<()> {
        let all = super::verify::Run { image: 0, slot: 0, pages: self.footer.slots };
        super::verify::verify_runs(std::slice::from_ref(self), vec![all], threads)
    }

    /// The same of an image of which the file may lack pages, as one that was fetched from a bucket: gives the slots that it lacks.
    pub(crate) fn verify_pages_there(&self, threads: usize) -> Result<Vec<Range<u64>>> {
        let absent = super::verify::absent_slots(self)?;
        let starts = std::iter::once(0).chain(absent.iter().map(|range| range.end));
        let ends = absent.iter().map(|range| range.start).chain([self.footer.slots]);
        let there = starts.zip(ends).filter(|(start, end)| start < end);
        let runs = there.map(|(slot, end)| super::verify::Run { image: 0, slot, pages: end - slot }).collect();
        super::verify::verify_runs(std::slice::from_ref(self), runs, threads)?;
        Ok(absent)
    }

    /// Where in the file the bytes of a slot are: where pages are in blocks, those of its block.
    pub(super) fn place_of(&self, slot: u64) -> u64 {
        if self.is_packed() {
            self.block(slot / BLOCK_PAGES).map_or(0, |entry| entry.offset)
        } else {
            Self::slot_offset(slot)
        }
    }

    /// What to say of a page that does not match its checksum.
    pub(crate) fn damaged_page(&self, slot: u64) -> Error {
        let (path, offset) = (self.path.clone(), self.place_of(slot));
        Error::DamagedPages { path, bad: 1, offset, place: self.describe_slot(slot) }
    }

    /// Which page is in a slot, for messages.
    pub(super) fn describe_slot(&self, slot: u64) -> String {
        for space in self.index().spaces.iter() {
            for extent in space.extents.iter().map(ArchivedExtent::native) {
                if let Content::Stored { slot: first } = extent.content
                    && (first..first + extent.pages).contains(&slot)
                {
                    let page = extent.first_page + (slot - first);
                    return format!("page {page:#x} of space {}", space.id);
                }
            }
        }
        "a slot that is not in use".into()
    }
}

/// Opens a regular file for reading. Something else is refused, without waiting for the other end of a FIFO.
fn open_regular(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(|source| Error::io(path, "open", source))?;
    let metadata = file.metadata().map_err(|source| Error::io(path, "read", source))?;
    if !metadata.is_file() {
        return Err(Error::NotAnImage { path: path.to_owned(), why: "it is not a regular file" });
    }
    Ok(file)
}
