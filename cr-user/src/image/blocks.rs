//! Blocks: where pages are compressed, sixteen slots that follow each other are stored as one piece, and a table says where each
//! piece is. So the block of a slot is found without a search, and no more than a block is decoded for a page.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::codec::{self, BLOCK_BYTES, Codec, Compression};
use super::layout::HEADER_BYTES;
use super::pages::Pages;
use super::{BLOCK_PAGES, PAGE_SIZE};
use crate::disk::DiskFile;
use crate::seal::{ImageKey, TAG_BYTES, Unit};

/// Bytes of an entry of the table, where blocks have no digests.
const ENTRY_BYTES: usize = 16;
/// Bytes of a block's digest: BLAKE3-256 of what is stored of it.
const DIGEST_BYTES: usize = 32;
/// Blocks that are compressed together, by several threads.
const STAGE_BLOCKS: usize = 32;
/// A thread is not worth starting for fewer blocks.
const SHARE_BLOCKS: usize = 8;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Offset in the file.
    pub(super) offset: u64,
    /// Bytes there; at most [`BLOCK_BYTES`] and a tag.
    pub(super) len: u32,
    /// How it is stored.
    pub(super) codec: Codec,
    /// What the bytes there hash to, in a signed image.
    pub(super) digest: Option<[u8; DIGEST_BYTES]>,
}

impl Entry {
    pub(super) fn encode(self) -> impl Iterator<Item = u8> {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12] = self.codec.number();
        bytes.into_iter().chain(self.digest.into_iter().flatten())
    }

    /// None if it has a codec that is not known, or contents where it must be empty.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, digest) = bytes.split_first_chunk::<ENTRY_BYTES>()?;
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, codec, 0, 0, 0] = *bytes else { return None };
        Some(Self {
            offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            codec: Codec::of_number(codec)?,
            digest: digest.try_into().ok(),
        })
    }
}

/// Bytes of an entry of the table.
pub(super) fn entry_bytes(signed: bool) -> usize {
    if signed { ENTRY_BYTES + DIGEST_BYTES } else { ENTRY_BYTES }
}

/// What a block's bytes in the file hash to.
pub(super) fn digest(stored: &[u8]) -> [u8; DIGEST_BYTES] {
    *blake3::hash(stored).as_bytes()
}

/// How many blocks so many slots have.
pub(super) fn count(slots: u64) -> u64 {
    slots.div_ceil(BLOCK_PAGES)
}

/// The slots of a block, of which the last may have fewer than the others.
pub(super) fn slots_of(block: u64, slots: u64) -> Range<u64> {
    block * BLOCK_PAGES..((block + 1) * BLOCK_PAGES).min(slots)
}

/// A table of blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'m> {
    pub(super) bytes: &'m [u8],
    pub(super) signed: bool,
}

impl<'m> Table<'m> {
    /// One entry; none if there is no such block, or the entry makes no sense.
    pub(super) fn get(self, number: u64) -> Option<Entry> {
        let len = entry_bytes(self.signed);
        let start = usize::try_from(number).ok()?.checked_mul(len)?;
        Entry::decode(self.bytes.get(start..start.checked_add(len)?)?)
    }

    /// All entries; none for one that makes no sense.
    pub(super) fn iter(self) -> impl Iterator<Item = Option<Entry>> + 'm {
        self.bytes.chunks_exact(entry_bytes(self.signed)).map(Entry::decode)
    }
}

/// What is done to blocks on their way into the file.
#[derive(Debug)]
pub(super) struct Encoding {
    pub(super) compression: Compression,
    /// They are encrypted.
    pub(super) key: Option<ImageKey>,
    /// They get digests.
    pub(super) digests: bool,
}

/// What is stored of a block.
struct Encoded<'s> {
    codec: Codec,
    bytes: Cow<'s, [u8]>,
    digest: Option<[u8; DIGEST_BYTES]>,
}

/// Puts blocks together from pages, in the order of their slots, and writes them.
#[derive(Debug)]
pub(super) struct Packer {
    encoding: Encoding,
    /// Compressing would hold somebody up.
    hurried: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The way into the file; what is written there follows each other.
    out: Pages,
    /// Where the next block goes.
    offset: u64,
    /// The first slot of the stage, at which a block begins.
    first: u64,
    /// Pages from there on.
    stage: Vec<u8>,
    table: Vec<Entry>,
}

impl Packer {
    pub(super) fn new(file: &DiskFile, encoding: Encoding) -> Self {
        let state = State {
            out: Pages::open(file),
            offset: HEADER_BYTES,
            first: 0,
            stage: Vec::with_capacity(STAGE_BLOCKS * BLOCK_BYTES),
            table: Vec::new(),
        };
        Self { encoding, hurried: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Encrypts the image, if anything does.
    pub(super) fn key(&self) -> Option<&ImageKey> {
        self.encoding.key.as_ref()
    }

    /// From now on blocks are not compressed, or are again.
    pub(super) fn hurry(&self, hurried: bool) {
        self.hurried.store(hurried, Ordering::Relaxed);
    }

    /// Takes pages in, from a slot on. Slots that were passed over read as zeros. False: a block of theirs is written already.
    pub(super) fn write(&self, file: &DiskFile, slot: u64, pages: &[u8]) -> io::Result<bool> {
        let mut state = self.state();
        if slot < state.first {
            return Ok(false);
        }
        self.advance(&mut state, file, slot)?;
        let mut at = (slot - state.first) as usize * PAGE_SIZE;
        let mut rest = pages;
        // What is still in the stage is replaced there.
        let replaced = (state.stage.len() - at).min(rest.len());
        state.stage[at..at + replaced].copy_from_slice(&rest[..replaced]);
        rest = &rest[replaced..];
        while !rest.is_empty() {
            if state.stage.len() == STAGE_BLOCKS * BLOCK_BYTES {
                self.pack(&mut state, file)?;
            }
            at = (STAGE_BLOCKS * BLOCK_BYTES - state.stage.len()).min(rest.len());
            state.stage.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
        }
        Ok(true)
    }

    /// Fills the stage with zeros up to a slot, so that it can be written there.
    fn advance(&self, state: &mut State, file: &DiskFile, slot: u64) -> io::Result<()> {
        loop {
            let wanted = (slot - state.first) as usize * PAGE_SIZE;
            if wanted <= state.stage.len() {
                return Ok(());
            }
            let now = wanted.min(STAGE_BLOCKS * BLOCK_BYTES);
            state.stage.resize(now.max(state.stage.len()), 0);
            if state.stage.len() == STAGE_BLOCKS * BLOCK_BYTES && wanted > now {
                self.pack(state, file)?;
            }
        }
    }

    /// Writes the stage, and empties it.
    fn pack(&self, state: &mut State, file: &DiskFile) -> io::Result<()> {
        let hurried = self.hurried.load(Ordering::Relaxed);
        let stage = std::mem::take(&mut state.stage);
        let encoded = self.encoding.all(state.first / BLOCK_PAGES, &stage, hurried);
        let written = encoded.into_iter().try_for_each(|Encoded { codec, bytes, digest }| {
            let entry = Entry { offset: state.offset, len: bytes.len() as u32, codec, digest };
            state.table.push(entry);
            state.offset += u64::from(entry.len);
            state.out.write(file, &bytes, entry.offset)
        });
        state.first += (stage.len() / PAGE_SIZE) as u64;
        state.stage = stage;
        state.stage.clear();
        written
    }

    /// Makes durable what was not written past the page cache.
    pub(super) fn sync(&self, file: &DiskFile) -> io::Result<()> {
        self.state().out.sync(file)
    }

    /// Writes what is left of so many slots; returns where the page segment ends, a multiple of 4096, and the table.
    pub(super) fn settle(&self, file: &DiskFile, slots: u64) -> io::Result<(u64, Vec<Entry>)> {
        let mut state = self.state();
        self.advance(&mut state, file, slots)?;
        self.pack(&mut state, file)?;
        let end = state.offset.next_multiple_of(PAGE_SIZE as u64);
        let padding = (end - state.offset) as usize;
        state.out.write(file, &[0; PAGE_SIZE][..padding], state.offset)?;
        state.out.settle(file)?;
        Ok((end, std::mem::take(&mut state.table)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Encoding {
    /// Encodes the blocks of a stage, on several threads if there are many.
    fn all<'s>(&self, first: u64, stage: &'s [u8], hurried: bool) -> Vec<Encoded<'s>> {
        let compression = if hurried { Compression::None } else { self.compression };
        let blocks = stage.len().div_ceil(BLOCK_BYTES);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let is_work = compression != Compression::None || self.key.is_some() || self.digests;
        let threads = if is_work { cpus.min(blocks / SHARE_BLOCKS).max(1) } else { 1 };
        let per_thread = blocks.div_ceil(threads).max(1);
        let share = |at: usize, part: &'s [u8]| -> Vec<Encoded<'s>> {
            let blocks = (first + at as u64..).zip(part.chunks(BLOCK_BYTES));
            blocks.map(|(number, block)| self.one(compression, number, block)).collect()
        };
        std::thread::scope(|scope| {
            let mut parts = (0..).step_by(per_thread).zip(stage.chunks(per_thread * BLOCK_BYTES));
            let (_, own) = parts.next().unwrap_or_default();
            let others: Vec<_> = parts.map(|(at, part)| scope.spawn(move || share(at, part))).collect();
            let mut encoded = share(0, own);
            for other in others {
                encoded.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            encoded
        })
    }

    fn one<'s>(&self, compression: Compression, number: u64, block: &'s [u8]) -> Encoded<'s> {
        let (codec, mut bytes) = codec::encode(compression, block);
        // Of a hole nothing is stored.
        if let Some(key) = self.key.as_ref().filter(|_| codec != Codec::Hole) {
            let mut unit = Vec::with_capacity(bytes.len() + TAG_BYTES);
            unit.extend_from_slice(&bytes);
            key.seal(Unit::Block(number), &mut unit);
            bytes = Cow::Owned(unit);
        }
        let digest = self.digests.then(|| digest(&bytes));
        Encoded { codec, bytes, digest }
    }
}
