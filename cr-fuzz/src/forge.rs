//! Makes an image, with everything around it right, from the parts that say something. Written after `docs/image-format.md`.
//!
//! The parts, as the inputs of the targets hold them; each piece is padded to 8 bytes, so that words in it stay aligned:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | what is left as it is ([`AS_IS`]) |
//! | 1 | page slots |
//! | 1 | patches |
//! | 1 | blocks: sixteenths of their bytes, and one; 0 for pages as they are |
//! | 4 | bytes of the area of records |
//! | 16 each | patches: which word of header (from 64 on) or footer, and its value |
//! | … | with blocks: their bytes, the table of blocks, the checksums of the pages |
//! | … | area of records |
//! | the rest | index |

use cr::image::FORMAT_VERSION;

/// The number of the checkpoint, the job and the parent are not those of the index in header and footer.
const OTHER_NAMES: u8 = 1;
/// The page counts of the index are not put right.
const OTHER_COUNTS: u8 = 2;
/// A page does not match its checksum.
const BAD_PAGE: u8 = 4;
/// The parent's hash is not put right (in a chain).
pub const OTHER_PARENT: u8 = 8;
/// The job is not put right (in a chain).
pub const OTHER_JOB: u8 = 16;
/// All of these.
pub const AS_IS: u8 = OTHER_NAMES | OTHER_COUNTS | BAD_PAGE | OTHER_PARENT | OTHER_JOB;

/// Bytes of the header, and of a page.
const PAGE: usize = 4096;
const FOOTER: usize = 256;
/// Bytes of the index's root, which is at its end.
const ROOT: usize = 176;
/// Where things are in the root.
const PARENT_ID: usize = 32;
const PARENT_HASH: usize = 40;
const COUNTS: [usize; 3] = [88, 96, 104];
const SPACES: usize = 160;
/// Page slots of a forged image, as they are and in blocks.
const MOST_SLOTS: usize = 8;
const MOST_PACKED: usize = 48;
/// Slots of a block, and bytes of an entry in the table of blocks.
const BLOCK_SLOTS: usize = 16;
const ENTRY: usize = 16;

/// What an image is made from.
pub struct Parts<'a> {
    /// What is left as it is.
    pub flags: u8,
    slots: usize,
    patches: &'a [u8],
    packed: Option<Packed<'a>>,
    records: &'a [u8],
    index: Vec<u8>,
}

/// Pages in blocks.
struct Packed<'a> {
    blocks: &'a [u8],
    table: &'a [u8],
    checksums: &'a [u8],
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
        Self { flags: byte(0) & AS_IS, slots, patches, packed, records, index: index.to_owned() }
    }

    /// The number that the index gives the checkpoint.
    pub fn id(&self) -> u64 {
        self.root(0)
    }

    /// The number that it gives the parent.
    pub fn parent(&self) -> Option<u64> {
        let root = self.index.len().checked_sub(ROOT)?;
        (self.index[root + 24] == 1).then(|| self.root(PARENT_ID))
    }

    /// Has the index name this job.
    pub fn set_job(&mut self, job: [u8; 16]) {
        self.put(8, &job);
    }

    /// Has the index name this parent's hash.
    pub fn set_parent_hash(&mut self, hash: [u8; 32]) {
        self.put(PARENT_HASH, &hash);
    }

    /// The image, and its own hash.
    pub fn forge(mut self) -> (Vec<u8>, [u8; 32]) {
        if self.flags & OTHER_COUNTS == 0 {
            self.count_pages();
        }
        let named = self.flags & OTHER_NAMES == 0 && self.index.len() >= ROOT;
        let root = |at: usize, len: usize| {
            if named { self.index[self.index.len() - ROOT + at..][..len].to_vec() } else { vec![1; len] }
        };

        let mut out = b"\x93CRIMG\r\n".to_vec();
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend((PAGE as u32).to_le_bytes());
        out.extend([62, 0, 0, 0]);
        out.extend((PAGE as u32).to_le_bytes());
        out.extend([1, 64, 16, 8, 1, 0, 1, 0]);
        out.extend([u8::from(self.packed.is_some()), 0, 0, 0, 0, 0, 0, 0]);
        out.extend(root(0, 8));
        out.extend(root(8, 16));
        out.resize(PAGE, 0);

        let pages: Vec<Vec<u8>> = (0..self.slots).map(|slot| vec![slot as u8; PAGE]).collect();
        match &self.packed {
            Some(packed) => out.extend(packed.blocks),
            None => out.extend(pages.iter().flatten()),
        }
        out.resize(out.len().next_multiple_of(PAGE), 0);
        let records_at = out.len();
        out.extend(self.records);
        out.resize(out.len().next_multiple_of(16), 0);
        let checksums_at = out.len();
        match &self.packed {
            Some(packed) => out.extend(packed.checksums),
            None => out.extend(pages.iter().flat_map(|page| xxhash_rust::xxh3::xxh3_64(page).to_le_bytes())),
        }
        out.resize((checksums_at + self.slots * 8).next_multiple_of(16), 0);
        let blocks_at = out.len();
        if let Some(packed) = &self.packed {
            out.extend(packed.table);
            out.resize(blocks_at + self.slots.div_ceil(BLOCK_SLOTS) * ENTRY, 0);
        }
        let index_at = out.len();
        out.extend(&self.index);
        out.resize(out.len().next_multiple_of(16), 0);
        if self.flags & BAD_PAGE != 0 && self.slots > 0 {
            out[PAGE] ^= 1;
        }

        let footer_at = out.len();
        let has_parent = named && self.parent().is_some();
        out.extend(b"CRFOOT\r\n");
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend((FOOTER as u32).to_le_bytes());
        out.extend(root(0, 8));
        let parent = if has_parent { self.root(PARENT_ID) } else { 0 };
        let numbers = [PAGE, self.slots, records_at, checksums_at, index_at, self.index.len(), footer_at + FOOTER];
        out.extend(numbers.into_iter().flat_map(|number| (number as u64).to_le_bytes()));
        out.extend(u64::from(has_parent).to_le_bytes());
        out.extend(parent.to_le_bytes());
        out.extend([0; 32]);
        out.extend(if has_parent { root(PARENT_HASH, 32) } else { vec![0; 32] });
        out.extend(self.packed.as_ref().map_or(0, |_| blocks_at as u64).to_le_bytes());
        out.resize(footer_at + FOOTER, 0);

        for patch in self.patches.chunks_exact(16) {
            let at = patch[0] as usize % 64 * 4;
            let at = if patch[1] & 1 == 0 { footer_at + at } else { at };
            out[at..at + 4].copy_from_slice(&patch[8..12]);
        }
        let hash = seal(&mut out, records_at);
        (out, hash)
    }

    fn root(&self, at: usize) -> u64 {
        self.index.len().checked_sub(ROOT).map_or(0, |root| word(&self.index, root + at, 8))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(root) = self.index.len().checked_sub(ROOT) {
            self.index[root + at..root + at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Writes the sums over the extents to where the index has its page counts, as far as the extents can be found.
    fn count_pages(&mut self) {
        let Some(root) = self.index.len().checked_sub(ROOT) else { return };
        let mut counts = [0_u64; 3];
        for space in self.elements(root + SPACES, 24) {
            for extent in self.elements(space + 8, 32) {
                if let Some(count) = counts.get_mut(self.index[extent + 16] as usize) {
                    *count = count.saturating_add(word(&self.index, extent + 8, 8));
                }
            }
        }
        for (at, count) in COUNTS.into_iter().zip(counts) {
            self.put(at, &count.to_le_bytes());
        }
    }

    /// Where the elements of the vector at `at` are: those that are inside the index.
    fn elements(&self, at: usize, size: usize) -> Vec<usize> {
        let (distance, count) = (word(&self.index, at, 8) as i64, word(&self.index, at + 8, 8));
        let first = (at as i64).checked_add(distance).and_then(|first| usize::try_from(first).ok());
        let Some(first) = first.filter(|first| *first < self.index.len()) else { return Vec::new() };
        let fitting = (self.index.len() - first) / size;
        (0..fitting.min(count as usize)).map(|n| first + n * size).collect()
    }
}

/// The parts from which [`Parts::forge`] makes this image again, but for the content of its pages.
pub fn take_apart(image: &[u8]) -> Vec<u8> {
    let footer = image.len() - FOOTER;
    let field = |at: usize| word(image, footer + at, 8) as usize;
    let (slots, records, checksums, index, index_len) = (field(32), field(40), field(48), field(56), field(64));
    let blocks = field(160);
    let most = if blocks == 0 { MOST_SLOTS } else { MOST_PACKED };
    assert!(slots <= most, "an image of {slots} pages is too large for a seed");
    let segment = &image[PAGE..records];
    let end = segment.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1).div_ceil(16);
    let packed = if blocks == 0 { 0 } else { u8::try_from(end + 1).expect("blocks that are small enough for a seed") };
    let mut out = vec![0, slots as u8, 0, packed];
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

/// Puts in the three hashes, and returns that of the metadata.
fn seal(image: &mut [u8], records_at: usize) -> [u8; 32] {
    let header = blake3::hash(&image[..PAGE - 32]);
    image[PAGE - 32..PAGE].copy_from_slice(header.as_bytes());
    let footer = image.len() - FOOTER;
    let metadata =
        *blake3::Hasher::new().update(&image[..PAGE]).update(&image[records_at..footer]).finalize().as_bytes();
    image[footer + 96..footer + 128].copy_from_slice(&metadata);
    let hash = blake3::hash(&image[footer..footer + FOOTER - 32]);
    image[footer + FOOTER - 32..].copy_from_slice(hash.as_bytes());
    metadata
}

/// The little-endian number in `len` bytes; those that are not there are zero.
pub fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    let there = bytes.get(at..bytes.len().min(at + len)).unwrap_or_default();
    word[..there.len()].copy_from_slice(there);
    u64::from_le_bytes(word)
}
