//! The fixed parts of an image, header and footer, byte by byte; and the names that everything else uses.
//!
//! All integers are little-endian. The tables are in `docs/image-format.md`; offsets here and there must agree.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::{Error, Result, blocks};
use crate::hex;
use crate::seal::{SIGNATURE_BYTES, TAG_BYTES};

/// Bytes of a page, and the alignment of the page segment. Machines with larger pages are not supported yet.
pub const PAGE_SIZE: usize = 4096;
/// Bytes of the header; the first page slot follows it.
pub const HEADER_BYTES: u64 = 4096;
/// Version of the fixed parts and of the index. It is not the program's version, and records have their own.
pub const FORMAT_VERSION: u32 = 2;
/// Slots of a block, where pages are compressed.
pub const BLOCK_PAGES: u64 = 16;
/// Alignment of records, checksums, table of blocks, index and footer.
pub(super) const ALIGNMENT: u64 = 16;
/// Bytes of the footer.
pub(super) const FOOTER_BYTES: u64 = 256;

/// Like PNG's: the first byte is no ASCII and no UTF-8, and the line ends show a transfer in text mode.
const HEADER_MAGIC: [u8; 8] = *b"\x93CRIMG\r\n";
const FOOTER_MAGIC: [u8; 8] = *b"CRFOOT\r\n";
/// Header and footer end in the hash of what stands before it, in every format version.
const HASH_BYTES: usize = 32;

/// What must be the same for an image to be usable: offset in the header, bytes, value, name.
const DESCRIPTOR: [(usize, usize, u64, &str); 11] = [
    (12, 4, HEADER_BYTES, "header size"),
    (16, 2, ARCHITECTURE, "architecture (ELF machine number)"),
    (18, 2, 0, "reserved field"),
    (20, 4, PAGE_SIZE as u64, "page size"),
    (24, 1, 1, "archive byte order (1 little-endian)"),
    (25, 1, 64, "archive pointer width"),
    (26, 1, ALIGNMENT, "archive alignment"),
    (27, 1, 8, "archive format (rkyv 0.x)"),
    (28, 2, 1, "page checksum (1 XXH3-64)"),
    (30, 2, 1, "metadata hash (1 BLAKE3-256)"),
    (35, 5, 0, "reserved field"),
];

/// Where the header says whether pages are in blocks.
const PACKED: usize = 32;
/// Where it says whether the image is encrypted, and the salt of its key.
const SEALED: usize = 33;
const SALT: std::ops::Range<usize> = 64..96;
/// Where it says whether the image is signed.
const SIGNED: usize = 34;
/// Where the footer authenticates a sealed image.
const MAC: std::ops::Range<usize> = 168..200;
/// Bytes of records, checksums, tables and index that are encrypted together.
pub(super) const UNIT_BYTES: u64 = 1 << 20;

/// `e_machine` of ELF (`elf.h`).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u64 = 62;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u64 = 183;

/// BLAKE3-256 over header, records, checksums and index: the identity of an image, which its children name.
pub type MetadataHash = [u8; HASH_BYTES];

/// Names a job for life: 128 random bits, made with its store. Displayed as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobId(pub [u8; 16]);

/// A kind of record: what its owner calls it and which layout it has. Ids are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordKind {
    /// Identifies the kind in images.
    pub id: u16,
    /// Version of the layout of the record's archive.
    pub version: u16,
    /// For messages.
    pub name: &'static str,
}

/// The part of the header that differs between images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) job: JobId,
    /// Pages are in blocks, which may be compressed.
    pub(super) packed: bool,
    /// The image is encrypted, with a key that is derived by this salt.
    pub(super) salt: Option<[u8; 32]>,
    /// The image is signed, and blocks have digests.
    pub(super) signed: bool,
}

/// Where the areas are, and what they hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) id: u64,
    pub(super) parent: Option<super::Parent>,
    /// Page slots between header and records.
    pub(super) slots: u64,
    pub(super) records_offset: u64,
    pub(super) checksums_offset: u64,
    pub(super) index_offset: u64,
    pub(super) index_len: u64,
    pub(super) file_bytes: u64,
    pub(super) hash: MetadataHash,
    /// Where the table of blocks is; none where pages lie in the file as they are.
    pub(super) blocks_offset: Option<u64>,
    /// Authenticates header and footer of a sealed image; else zeros.
    pub(super) mac: [u8; HASH_BYTES],
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&HEADER_MAGIC);
        put(&mut bytes, 8, 4, FORMAT_VERSION.into());
        for (at, len, value, _) in DESCRIPTOR {
            put(&mut bytes, at, len, value);
        }
        put(&mut bytes, PACKED, 1, self.packed.into());
        put(&mut bytes, SEALED, 1, self.salt.is_some().into());
        put(&mut bytes, SIGNED, 1, self.signed.into());
        bytes[SALT].copy_from_slice(&self.salt.unwrap_or_default());
        put(&mut bytes, 40, 8, self.id);
        bytes[48..64].copy_from_slice(&self.job.0);
        end_in_hash(&mut bytes);
        bytes
    }

    /// `bytes` is at least the header.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bytes = &bytes[..HEADER_BYTES as usize];
        if bytes[..8] != HEADER_MAGIC {
            return Err(Error::NotAnImage { path: path.to_owned(), why: "it does not begin with the mark of one" });
        }
        if !ends_in_hash(bytes) {
            return Err(Error::damaged(path, "the header does not match its hash"));
        }
        check_version(path, get(bytes, 8, 4))?;
        for (at, len, known, what) in DESCRIPTOR {
            let found = get(bytes, at, len);
            if found != known {
                return Err(Error::Unsupported { path: path.to_owned(), what, found, known });
            }
        }
        let flag = |at, what| match get(bytes, at, 1) {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(Error::Unsupported { path: path.to_owned(), what, found, known: 1 }),
        };
        let packed = flag(PACKED, "compression (0 none, 1 blocks)")?;
        let sealed = flag(SEALED, "encryption (0 none, 1 AES-256-GCM)")?;
        let signed = flag(SIGNED, "signature (0 none, 1 Ed25519)")?;
        let salt = sealed.then(|| bytes[SALT].try_into().expect("32 bytes"));
        if (sealed || signed) && !packed {
            return Err(Error::damaged(
                path,
                "its pages are not in blocks, as they have to be where it is sealed or signed",
            ));
        }
        let job = JobId(bytes[48..64].try_into().expect("16 bytes"));
        Ok(Self { id: get(bytes, 40, 8), job, packed, salt, signed })
    }

    /// By how many bytes a unit is longer than what it holds.
    pub(super) fn tag_bytes(&self) -> u64 {
        if self.salt.is_some() { TAG_BYTES as u64 } else { 0 }
    }

    /// Bytes between the index and the footer.
    pub(super) fn signature_bytes(&self) -> u64 {
        if self.signed { SIGNATURE_BYTES as u64 } else { 0 }
    }

    /// Bytes that so many bytes of records, checksums, tables and index have in the file.
    fn stored_metadata(&self, plain: u64) -> Option<u64> {
        plain.div_ceil(UNIT_BYTES).checked_mul(self.tag_bytes())?.checked_add(plain)
    }
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_BYTES as usize] {
        let mut bytes = [0; FOOTER_BYTES as usize];
        bytes[..8].copy_from_slice(&FOOTER_MAGIC);
        put(&mut bytes, 8, 4, FORMAT_VERSION.into());
        put(&mut bytes, 12, 4, FOOTER_BYTES);
        let fields = [
            self.id,
            HEADER_BYTES,
            self.slots,
            self.records_offset,
            self.checksums_offset,
            self.index_offset,
            self.index_len,
            self.file_bytes,
            self.parent.is_some().into(),
            self.parent.map_or(0, |parent| parent.id),
        ];
        for (field, at) in fields.into_iter().zip((16..).step_by(8)) {
            put(&mut bytes, at, 8, field);
        }
        bytes[96..128].copy_from_slice(&self.hash);
        bytes[128..160].copy_from_slice(&self.parent.map_or([0; 32], |parent| parent.hash));
        put(&mut bytes, 160, 8, self.blocks_offset.unwrap_or(0));
        bytes[MAC].copy_from_slice(&self.mac);
        end_in_hash(&mut bytes);
        bytes
    }

    /// `file` is the whole file, at least header and footer long, and `header` the one that it begins with. The footer is only accepted if its areas fill the
    /// file without gap or overlap, in order and aligned.
    pub(super) fn decode(path: &Path, file: &[u8], header: &Header) -> Result<Self> {
        let start = file.len() - FOOTER_BYTES as usize;
        let bytes = &file[start..];
        if bytes[..8] != FOOTER_MAGIC {
            return Err(Error::damaged(path, "there is no footer at its end, so it was cut short or overwritten"));
        }
        if !ends_in_hash(bytes) {
            return Err(Error::damaged(path, "the footer does not match its hash"));
        }
        check_version(path, get(bytes, 8, 4))?;
        let field = |number: usize| get(bytes, 16 + 8 * number, 8);
        let parent = (field(8) == 1)
            .then(|| super::Parent { id: field(9), hash: bytes[128..160].try_into().expect("32 bytes") });
        let footer = Self {
            id: field(0),
            parent,
            slots: field(2),
            records_offset: field(3),
            checksums_offset: field(4),
            index_offset: field(5),
            index_len: field(6),
            file_bytes: field(7),
            hash: bytes[96..128].try_into().expect("32 bytes"),
            blocks_offset: Some(get(bytes, 160, 8)).filter(|offset| *offset > 0),
            mac: bytes[MAC].try_into().expect("32 bytes"),
        };
        if footer.encode() != *bytes {
            return Err(Error::damaged(path, "the footer has contents where it must be empty"));
        }
        if footer.file_bytes != file.len() as u64 {
            let what = format!("it has {} bytes and was written with {}", file.len(), footer.file_bytes);
            return Err(Error::damaged(path, what));
        }
        if !footer.areas_fill(header, start as u64) {
            return Err(Error::damaged(path, "the areas that the footer names do not fill the file"));
        }
        Ok(footer)
    }

    /// Whether pages, records, checksums, blocks and index follow each other up to `end`, the footer's own offset.
    fn areas_fill(&self, header: &Header, end: u64) -> bool {
        let aligned = |end: Option<u64>| end.and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        let checksums_end = self.slots.checked_mul(8).and_then(|bytes| bytes.checked_add(self.checksums_offset));
        let (pages_fit, index_follows) = match self.blocks_offset {
            None => {
                let pages = self.slots.checked_mul(PAGE_SIZE as u64).and_then(|bytes| bytes.checked_add(HEADER_BYTES));
                (pages == Some(self.records_offset), aligned(checksums_end) == Some(self.index_offset))
            }
            Some(blocks) => {
                let table = blocks::count(self.slots).checked_mul(blocks::entry_bytes(header.signed) as u64);
                let table_end = table.and_then(|bytes| bytes.checked_add(blocks));
                let follows = aligned(checksums_end) == Some(blocks) && table_end == Some(self.index_offset);
                (self.records_offset >= HEADER_BYTES && self.records_offset.is_multiple_of(PAGE_SIZE as u64), follows)
            }
        };
        let index_end = aligned(self.index_offset.checked_add(self.index_len));
        let plain = index_end.and_then(|end| end.checked_sub(self.records_offset));
        let stored = plain.and_then(|plain| header.stored_metadata(plain));
        let stored_end =
            stored.and_then(|bytes| bytes.checked_add(self.records_offset)?.checked_add(header.signature_bytes()));
        pages_fit
            && index_follows
            && self.records_offset <= self.checksums_offset
            && self.checksums_offset.is_multiple_of(ALIGNMENT)
            && stored_end == Some(end)
    }

    /// Where records, checksums, tables and index end, were they not encrypted.
    pub(super) fn metadata_end(&self) -> u64 {
        (self.index_offset + self.index_len).next_multiple_of(ALIGNMENT)
    }

    /// What [`mac`](Self::mac) authenticates of it.
    pub(super) fn authenticated(bytes: &[u8; FOOTER_BYTES as usize]) -> &[u8] {
        &bytes[..MAC.start]
    }

    /// What is signed of an image: its header and footer, of which the footer has the hash of the rest.
    pub(super) fn signed_message(header: &[u8], footer: &[u8; FOOTER_BYTES as usize]) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(header).update(&footer[..footer.len() - HASH_BYTES]);
        [SIGNED_CONTEXT, hasher.finalize().as_bytes()].concat()
    }
}

/// What a signed message begins with, so that a signature for something else is none of an image.
const SIGNED_CONTEXT: &[u8] = b"cr checkpoint image 1\0";

fn check_version(path: &Path, found: u64) -> Result<()> {
    if found == u64::from(FORMAT_VERSION) {
        return Ok(());
    }
    Err(Error::OtherFormat { path: path.to_owned(), found: found as u32, known: FORMAT_VERSION })
}

/// Writes the hash of all before it into the last 32 bytes.
fn end_in_hash(bytes: &mut [u8]) {
    let (body, hash) = bytes.split_at_mut(bytes.len() - HASH_BYTES);
    hash.copy_from_slice(blake3::hash(body).as_bytes());
}

fn ends_in_hash(bytes: &[u8]) -> bool {
    let (body, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
    blake3::hash(body).as_bytes() == hash
}

/// Puts the low `len` bytes of `value` at `at`.
fn put(bytes: &mut [u8], at: usize, len: usize, value: u64) {
    bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

fn get(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut value = [0; 8];
    value[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(value)
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not 32 lower-case hex digits.
#[derive(Debug, thiserror::Error)]
#[error("a job id is 32 lower-case hex digits")]
pub struct BadJobId;

impl FromStr for JobId {
    type Err = BadJobId;

    fn from_str(text: &str) -> std::result::Result<Self, BadJobId> {
        hex::decode(text).map(Self).ok_or(BadJobId)
    }
}
