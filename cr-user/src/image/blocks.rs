//! Blocks: where pages are compressed, sixteen slots that follow each other are stored as one piece, and a table says where each
//! piece is. So the block of a slot is found without a search, and no more than a block is decoded for a page.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::codec::{self, BLOCK_BYTES, Codec, Compression};
use super::layout::{Footer, HEADER_BYTES};
use super::pages::Pages;
use super::{BLOCK_PAGES, PAGE_SIZE};
use crate::disk::DiskFile;

/// Bytes of an entry of the table.
pub(super) const ENTRY_BYTES: usize = 16;
/// Blocks that are compressed together, by several threads.
const STAGE_BLOCKS: usize = 32;
/// A thread is not worth starting for fewer blocks.
const SHARE_BLOCKS: usize = 8;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Offset in the file.
    pub(super) offset: u64,
    /// Bytes there; at most [`BLOCK_BYTES`].
    pub(super) len: u32,
    /// How it is stored.
    pub(super) codec: Codec,
}

impl Entry {
    pub(super) fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12] = self.codec.number();
        bytes
    }

    /// None if it has a codec that is not known, or contents where it must be empty.
    pub(super) fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, codec, 0, 0, 0] = *bytes else { return None };
        Some(Self {
            offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            codec: Codec::of_number(codec)?,
        })
    }
}

/// How many blocks so many slots have.
pub(super) fn count(slots: u64) -> u64 {
    slots.div_ceil(BLOCK_PAGES)
}

/// The slots of a block, of which the last may have fewer than the others.
pub(super) fn slots_of(block: u64, slots: u64) -> Range<u64> {
    block * BLOCK_PAGES..((block + 1) * BLOCK_PAGES).min(slots)
}

/// The table of blocks of a mapped file whose footer was checked; empty where pages are not in blocks.
pub(super) fn table<'m>(file: &'m [u8], footer: &Footer) -> &'m [[u8; ENTRY_BYTES]] {
    let table = footer.blocks_offset.map_or(0..0, |at| at as usize..footer.index_offset as usize);
    file[table].as_chunks().0
}

/// Puts blocks together from pages, in the order of their slots, and writes them.
#[derive(Debug)]
pub(super) struct Packer {
    compression: Compression,
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
    pub(super) fn new(file: &DiskFile, compression: Compression) -> Self {
        let state = State {
            out: Pages::open(file),
            offset: HEADER_BYTES,
            first: 0,
            stage: Vec::with_capacity(STAGE_BLOCKS * BLOCK_BYTES),
            table: Vec::new(),
        };
        Self { compression, hurried: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// From now on blocks are stored as they are, or no more so.
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
        let compression = if self.hurried.load(Ordering::Relaxed) { Compression::None } else { self.compression };
        let stage = std::mem::take(&mut state.stage);
        let written = encode_all(compression, &stage).into_iter().try_for_each(|(codec, bytes)| {
            let entry = Entry { offset: state.offset, len: bytes.len() as u32, codec };
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

/// Encodes the blocks of a stage, on several threads if there are many.
fn encode_all(compression: Compression, stage: &[u8]) -> Vec<(Codec, Cow<'_, [u8]>)> {
    let blocks = stage.len().div_ceil(BLOCK_BYTES);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if compression == Compression::None { 1 } else { cpus.min(blocks / SHARE_BLOCKS).max(1) };
    let per_thread = blocks.div_ceil(threads).max(1) * BLOCK_BYTES;
    std::thread::scope(|scope| {
        let mut parts = stage.chunks(per_thread);
        let own = parts.next().unwrap_or_default();
        let others: Vec<_> = parts.map(|part| scope.spawn(move || encode_share(compression, part))).collect();
        let mut encoded = encode_share(compression, own);
        for other in others {
            encoded.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        encoded
    })
}

fn encode_share(compression: Compression, part: &[u8]) -> Vec<(Codec, Cow<'_, [u8]>)> {
    part.chunks(BLOCK_BYTES).map(|block| codec::encode(compression, block)).collect()
}
