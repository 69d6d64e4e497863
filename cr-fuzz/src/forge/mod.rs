//! Makes an image, with everything around it right, from the parts that say something. Written after `docs/image-format.md`.
//!
//! The parts, as the inputs of the targets hold them; each piece is padded to 8 bytes, so that words in it stay aligned:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | flags: what is left as it is ([`OTHER_NAMES`], …), and whether it is [`SEALED`] and [`SIGNED`] |
//! | 1 | page slots |
//! | 1 | patches |
//! | 1 | blocks: sixteenths of their bytes, and one; 0 for pages as they are |
//! | 4 | bytes of the area of records |
//! | 16 each | patches: see [`Patch`] |
//! | … | with blocks: their bytes, the table of blocks, the checksums of the pages |
//! | … | area of records |
//! | the rest | index |
//!
//! Blocks and their table are those of an image that is neither sealed nor signed: what they hold is encrypted, and what the table says
//! of them put right. So any contents come with an authentication that is valid.

mod index;
mod sealed;

use cr::image::FORMAT_VERSION;

use index::Index;
use sealed::Cipher;

/// The number of the checkpoint, the job and the parent are not those of the index in header and footer.
const OTHER_NAMES: u8 = 1;
/// The page counts of the index are not put right.
const OTHER_COUNTS: u8 = 2;
/// A page does not match its checksum, or the first block is not what was stored of it.
const BAD_PAGE: u8 = 4;
/// The parent's hash is not put right (in a chain).
pub const OTHER_PARENT: u8 = 8;
/// The job is not put right (in a chain).
pub const OTHER_JOB: u8 = 16;
/// The image is encrypted.
pub const SEALED: u8 = 32;
/// The image is signed.
pub const SIGNED: u8 = 64;
/// Blocks are not encrypted, and the table of blocks says what it says.
const OTHER_BLOCKS: u8 = 128;

/// Bytes of the header, and of a page.
const PAGE: usize = 4096;
const FOOTER: usize = 256;
/// Page slots of a forged image, as they are and in blocks.
const MOST_SLOTS: usize = 8;
const MOST_PACKED: usize = 48;
/// Slots of a block, and bytes of an entry in the table of blocks, without its digest.
const BLOCK_SLOTS: usize = 16;
const ENTRY: usize = 16;
const DIGEST: usize = 32;
/// The codec of a block that is not stored.
const HOLE: u8 = 3;
/// Salt of the key of a sealed image.
const SALT: [u8; 32] = [9; 32];
/// Where header and footer have what is put in last.
const FLAGS: usize = 32;
const HASH: usize = 96;
const MAC: usize = 168;

/// What an image is made from.
pub struct Parts<'a> {
    /// What is left as it is, and how it is protected.
    pub flags: u8,
    /// What it says about its pages and records.
    pub index: Index,
    slots: usize,
    patches: Vec<Patch>,
    packed: Option<Packed<'a>>,
    records: &'a [u8],
}

/// Changes a word, before hashes and authentication are made: 16 bytes, of which the second (its two lowest bits) says where.
enum Patch {
    /// 0: the footer; the first byte is the word's number, bytes 8 to 11 its value.
    Footer(usize, [u8; 4]),
    /// 1: the header, likewise.
    Header(usize, [u8; 4]),
    /// 2: what is between pages and footer, as it is in the file; bytes 2 and 3 are the number.
    Metadata(usize, [u8; 4]),
    /// 3: the records are followed by so many times 64 KiB (the third byte), so that there is more than is encrypted together.
    Longer(usize),
}

/// Pages in blocks.
struct Packed<'a> {
    blocks: &'a [u8],
    table: &'a [u8],
    checksums: &'a [u8],
}

impl Patch {
    fn read(bytes: &[u8]) -> Self {
        let (at, value) = (bytes[0] as usize % 64 * 4, [bytes[8], bytes[9], bytes[10], bytes[11]]);
        match bytes[1] % 4 {
            0 => Self::Footer(at, value),
            1 => Self::Header(at, value),
            2 => Self::Metadata(word(bytes, 2, 2) as usize * 4, value),
            _ => Self::Longer((bytes[2] as usize % 33) << 16),
        }
    }

    /// Longest of the areas of records that are asked for.
    fn longer(patches: &[Self]) -> usize {
        patches.iter().map(|patch| if let Self::Longer(bytes) = patch { *bytes } else { 0 }).max().unwrap_or(0)
    }
}

impl<'a> Packed<'a> {
    /// Reads what `slots` pages take, and returns the rest besides.
    fn read(input: &'a [u8], bytes: usize, slots: usize) -> (Self, &'a [u8]) {
        let take = |from: &'a [u8], len: usize| from.split_at(from.len().min(len));
        let (blocks, rest) = take(input, bytes);
        let (table, rest) = take(rest, slots.div_ceil(BLOCK_SLOTS) * ENTRY);
        let (checksums, rest) = take(rest, slots * 8);
        (Self { blocks, table, checksums }, rest)
    }

    /// The page segment, and the table of blocks: where an entry names bytes that are there, they are encrypted and have a digest.
    fn segment(&self, slots: usize, flags: u8, cipher: Option<&Cipher>) -> (Vec<u8>, Vec<u8>) {
        let (mut plain, mut table) = (self.blocks.to_vec(), self.table.to_vec());
        plain.resize(plain.len().next_multiple_of(PAGE), 0);
        table.resize(slots.div_ceil(BLOCK_SLOTS) * ENTRY, 0);
        let (mut units, mut entries) = (Vec::new(), Vec::new());
        for (number, entry) in table.chunks_exact_mut(ENTRY).enumerate() {
            let (offset, len) = (word(entry, 0, 8) as usize, word(entry, 8, 4) as usize);
            let start = offset.checked_sub(PAGE);
            let stored = start.and_then(|start| plain.get(start..start.checked_add(len)?));
            let mut stored = stored.filter(|_| flags & OTHER_BLOCKS == 0).map(<[u8]>::to_vec);
            if let Some((bytes, cipher)) = stored.as_mut().zip(cipher).filter(|_| entry[12] != HOLE) {
                *bytes = cipher.unit(sealed::BLOCK, number, bytes);
                entry[..8].copy_from_slice(&((PAGE + units.len()) as u64).to_le_bytes());
                entry[8..12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
                units.extend_from_slice(bytes);
            }
            entries.extend_from_slice(entry);
            if flags & SIGNED != 0 {
                entries.extend(stored.map_or([0; DIGEST], |bytes| *blake3::hash(&bytes).as_bytes()));
            }
        }
        let encrypted = cipher.is_some() && flags & OTHER_BLOCKS == 0;
        (if encrypted { units } else { plain }, entries)
    }
}

impl<'a> Parts<'a> {
    /// Reads the parts; what is missing is empty.
    pub fn read(input: &'a [u8]) -> Self {
        let (head, rest) = input.split_at(input.len().min(8));
        let byte = |at: usize| head.get(at).copied().unwrap_or(0);
        let records = word(head, 4, 4) as usize;
        let (patches, rest) = rest.split_at(rest.len().min(byte(2) as usize % 8 * 16));
        let most = if byte(3) == 0 { MOST_SLOTS } else { MOST_PACKED };
        let slots = byte(1) as usize % (most + 1);
        let (packed, rest) = match (byte(3) as usize * 16).checked_sub(16) {
            Some(bytes) => {
                let (packed, rest) = Packed::read(rest, bytes, slots);
                (Some(packed), rest)
            }
            None => (None, rest),
        };
        let (records, index) = rest.split_at(rest.len().min(records.next_multiple_of(16)));
        let patches = patches.chunks_exact(16).map(Patch::read).collect();
        Self { flags: byte(0), slots, patches, packed, records, index: Index(index.to_owned()) }
    }

    /// The image, and its own hash.
    pub fn forge(mut self) -> (Vec<u8>, [u8; 32]) {
        if self.flags & OTHER_COUNTS == 0 {
            self.index.count_pages();
        }
        let mut out = self.header();
        let cipher = self.has(SEALED).then(|| Cipher::of(&out));

        let (segment, table, checksums) = if let Some(packed) = &self.packed {
            let (segment, table) = packed.segment(self.slots, self.flags, cipher.as_ref());
            (segment, Some(table), packed.checksums.to_vec())
        } else {
            let pages: Vec<Vec<u8>> = (0..self.slots).map(|slot| vec![slot as u8; PAGE]).collect();
            let sums = pages.iter().flat_map(|page| xxhash_rust::xxh3::xxh3_64(page).to_le_bytes()).collect();
            (pages.concat(), None, sums)
        };
        out.extend(segment);
        out.resize(out.len().next_multiple_of(PAGE), 0);
        if self.has(BAD_PAGE) && self.slots > 0 && out.len() > PAGE {
            out[PAGE] ^= 1;
        }

        let records_at = out.len();
        let mut metadata = self.records.to_vec();
        metadata.resize((metadata.len() + Patch::longer(&self.patches)).next_multiple_of(16), 0);
        let checksums_at = records_at + metadata.len();
        metadata.extend(checksums);
        metadata.resize((checksums_at - records_at + self.slots * 8).next_multiple_of(16), 0);
        let blocks_at = table.as_ref().map_or(0, |_| records_at + metadata.len());
        metadata.extend(table.unwrap_or_default());
        let index_at = records_at + metadata.len();
        metadata.extend(&self.index.0);
        metadata.resize(metadata.len().next_multiple_of(16), 0);
        out.extend(cipher.as_ref().map_or_else(|| metadata.clone(), |cipher| cipher.metadata(&metadata)));

        let signature_at = out.len();
        let footer_at = signature_at + if self.has(SIGNED) { 96 } else { 0 };
        out.resize(footer_at, 0);
        let places = [records_at, checksums_at, index_at, self.index.0.len(), footer_at + FOOTER];
        out.extend(self.footer(&places, blocks_at));
        self.patch(&mut out, records_at..signature_at, footer_at);
        let hash = protect(&mut out, records_at..signature_at, cipher.as_ref());
        (out, hash)
    }

    fn header(&self) -> Vec<u8> {
        let mut out = b"\x93CRIMG\r\n".to_vec();
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend((PAGE as u32).to_le_bytes());
        out.extend([62, 0, 0, 0]);
        out.extend((PAGE as u32).to_le_bytes());
        out.extend([1, 64, 16, 8, 1, 0, 1, 0]);
        let flags = [self.packed.is_some(), self.has(SEALED), self.has(SIGNED)];
        out.extend(flags.map(u8::from));
        out.resize(FLAGS + 8, 0);
        out.extend(if self.is_named() { self.index.id().to_le_bytes() } else { [1; 8] });
        out.extend(if self.is_named() { self.index.job() } else { vec![1; 16] });
        out.extend(if self.has(SEALED) { SALT } else { [0; 32] });
        out.resize(PAGE, 0);
        for patch in &self.patches {
            if let Patch::Header(at, value) = patch {
                out[*at..at + 4].copy_from_slice(value);
            }
        }
        out
    }

    /// `places` are those of records, checksums and index, the index's length, and the file's.
    fn footer(&self, places: &[usize; 5], blocks_at: usize) -> Vec<u8> {
        let parent = self.index.parent().filter(|_| self.is_named());
        let mut out = b"CRFOOT\r\n".to_vec();
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend((FOOTER as u32).to_le_bytes());
        out.extend(if self.is_named() { self.index.id().to_le_bytes() } else { [1; 8] });
        let numbers = [PAGE, self.slots].into_iter().chain(*places);
        out.extend(numbers.flat_map(|number| (number as u64).to_le_bytes()));
        out.extend(u64::from(parent.is_some()).to_le_bytes());
        out.extend(parent.unwrap_or(0).to_le_bytes());
        out.extend([0; 32]);
        out.extend(parent.map_or_else(|| vec![0; 32], |_| self.index.parent_hash()));
        out.extend((blocks_at as u64).to_le_bytes());
        out.resize(FOOTER, 0);
        out
    }

    /// Applies the patches that come after the header's.
    fn patch(&self, image: &mut [u8], metadata: std::ops::Range<usize>, footer_at: usize) {
        for patch in &self.patches {
            let (at, value) = match patch {
                Patch::Footer(at, value) => (footer_at + at, value),
                Patch::Metadata(at, value) if !metadata.is_empty() => (metadata.start + at % metadata.len(), value),
                _ => continue,
            };
            image[at..at + 4].copy_from_slice(value);
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether header and footer have the names of the index.
    fn is_named(&self) -> bool {
        !self.has(OTHER_NAMES) && self.index.has_root()
    }
}

/// Puts in the hashes, the authentication of a sealed image, and the signature if there is room for one. Returns the metadata's hash.
fn protect(image: &mut [u8], metadata: std::ops::Range<usize>, cipher: Option<&Cipher>) -> [u8; 32] {
    let header = blake3::hash(&image[..PAGE - 32]);
    image[PAGE - 32..PAGE].copy_from_slice(header.as_bytes());
    let (rest, footer) = image.split_at_mut(image.len() - FOOTER);
    let hash = *blake3::Hasher::new().update(&rest[..PAGE]).update(&rest[metadata.clone()]).finalize().as_bytes();
    footer[HASH..HASH + 32].copy_from_slice(&hash);
    if let Some(cipher) = cipher {
        let mac = cipher.authenticate(&rest[..PAGE], &footer[..MAC]);
        footer[MAC..MAC + 32].copy_from_slice(&mac);
    }
    let digest = blake3::hash(&footer[..FOOTER - 32]);
    footer[FOOTER - 32..].copy_from_slice(digest.as_bytes());
    if rest.len() > metadata.end {
        let signature = sealed::signature(&rest[..PAGE], &footer[..FOOTER - 32]);
        rest[metadata.end..].copy_from_slice(&signature);
    }
    hash
}

/// The parts from which [`Parts::forge`] makes this image again, but for the content of its pages. The image is neither sealed nor
/// signed; what is made of the parts is so if `flags` says it.
pub fn take_apart(image: &[u8], flags: u8) -> Vec<u8> {
    assert_eq!(image[FLAGS + 1..FLAGS + 3], [0, 0], "the parts of an image that is protected are not to be had");
    let footer = image.len() - FOOTER;
    let field = |at: usize| word(image, footer + at, 8) as usize;
    let (slots, records, checksums, index, index_len) = (field(32), field(40), field(48), field(56), field(64));
    let blocks = field(160);
    let most = if blocks == 0 { MOST_SLOTS } else { MOST_PACKED };
    assert!(slots <= most, "an image of {slots} pages is too large for a seed");
    let segment = &image[PAGE..records];
    let end = segment.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1).div_ceil(16);
    let packed = if blocks == 0 { 0 } else { u8::try_from(end + 1).expect("blocks that are small enough for a seed") };
    let mut out = vec![flags, slots as u8, 0, packed];
    out.extend(((checksums - records) as u32).to_le_bytes());
    if blocks != 0 {
        out.extend(&segment[..end * 16]);
        out.extend(&image[blocks..index]);
        out.extend(&image[checksums..checksums + slots * 8]);
    }
    // The places of the records are as many pages further on in the image as it has.
    out.extend(&image[records..checksums]);
    out.extend(&image[index..index + index_len]);
    out
}

/// The parts with more after their records: so many times 64 KiB.
pub fn lengthen(mut parts: Vec<u8>, times: u8) -> Vec<u8> {
    let mut patch = [0; 16];
    patch[1..3].copy_from_slice(&[3, times]);
    assert_eq!(parts[2], 0, "there are no patches yet");
    parts[2] = 1;
    parts.splice(8..8, patch);
    parts
}

/// The little-endian number in `len` bytes; those that are not there are zero.
pub fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    let there = bytes.get(at..bytes.len().min(at + len)).unwrap_or_default();
    word[..there.len()].copy_from_slice(there);
    u64::from_le_bytes(word)
}
