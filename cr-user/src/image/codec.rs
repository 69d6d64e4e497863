//! How the bytes of a block are stored: as they are, or compressed.

use std::borrow::Cow;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::page::is_zero_page;
use super::{BLOCK_PAGES, PAGE_SIZE};

/// Bytes of a whole block.
pub(super) const BLOCK_BYTES: usize = BLOCK_PAGES as usize * PAGE_SIZE;
/// What zstd is asked for: higher levels take several times as long for a few per cent.
const ZSTD_LEVEL: i32 = 1;

/// Whether and how pages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: pages lie in the file as they lie in memory.
    #[default]
    None,
    /// LZ4, where that saves an eighth.
    Lz4,
    /// Zstandard, where that saves an eighth.
    Zstd,
    /// LZ4 for blocks of which a sample says that it is worth its time.
    Auto,
}

/// How one block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As it is.
    Raw,
    /// An LZ4 block, without a frame.
    Lz4,
    /// A Zstandard frame.
    Zstd,
    /// Not at all: all its bytes are zero.
    Hole,
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            "auto" => Ok(Self::Auto),
            other => Err(format!("`{other}` is no way to compress: use none, lz4, zstd or auto")),
        }
    }
}

impl Codec {
    /// Its number in the table of blocks.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
            Self::Hole => 3,
        }
    }

    pub(super) fn of_number(number: u8) -> Option<Self> {
        [Self::Raw, Self::Lz4, Self::Zstd, Self::Hole].into_iter().find(|codec| codec.number() == number)
    }
}

/// What is to be stored of a block of whole pages, and how.
pub(super) fn encode(compression: Compression, block: &[u8]) -> (Codec, Cow<'_, [u8]>) {
    if block.chunks(PAGE_SIZE).all(is_zero_page) {
        return (Codec::Hole, Cow::Borrowed(&[]));
    }
    let packed = match compression {
        Compression::None => None,
        Compression::Lz4 => Some((Codec::Lz4, lz4_flex::block::compress(block))),
        Compression::Zstd => zstd::bulk::compress(block, ZSTD_LEVEL).ok().map(|packed| (Codec::Zstd, packed)),
        Compression::Auto => promising(block).then(|| (Codec::Lz4, lz4_flex::block::compress(block))),
    };
    match packed {
        Some((codec, packed)) if worthwhile(packed.len(), block.len()) => (codec, Cow::Owned(packed)),
        _ => (Codec::Raw, Cow::Borrowed(block)),
    }
}

/// Whether a page in the middle of the block can be compressed: what cannot be compressed costs as much time as what can.
fn promising(block: &[u8]) -> bool {
    let pages = block.len() / PAGE_SIZE;
    let sample = &block[pages / 2 * PAGE_SIZE..][..PAGE_SIZE];
    worthwhile(lz4_flex::block::compress(sample).len(), sample.len())
}

/// Whether an eighth is saved: for less, reading it back is not worth the time.
fn worthwhile(packed: usize, plain: usize) -> bool {
    packed <= plain - plain / 8
}

/// Brings a block back; `out` is as long as the block. What is stored must give exactly so many bytes.
pub(super) fn decode(codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<(), String> {
    let len = match codec {
        Codec::Raw if stored.len() == out.len() => {
            out.copy_from_slice(stored);
            out.len()
        }
        Codec::Raw => stored.len(),
        Codec::Lz4 => lz4_flex::block::decompress_into(stored, out).map_err(|e| format!("it is no LZ4 block: {e}"))?,
        Codec::Zstd => {
            zstd::bulk::decompress_to_buffer(stored, out).map_err(|e| format!("it is no Zstandard frame: {e}"))?
        }
        Codec::Hole => {
            out.fill(0);
            out.len()
        }
    };
    if len == out.len() { Ok(()) } else { Err(format!("it holds {len} bytes and not {}", out.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that cannot be compressed.
    fn noise(len: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"noise");
        let mut bytes = vec![0; len];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_stored_gives_the_block_back() {
        let text = b"the quick brown fox ".repeat(BLOCK_BYTES / 20 + 1);
        let mut half = noise(BLOCK_BYTES);
        half[BLOCK_BYTES / 2..].fill(7);
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Auto] {
            for pages in [1, 5, BLOCK_PAGES as usize] {
                let len = pages * PAGE_SIZE;
                for block in [&text[..len], &noise(len), &vec![0; len], &half[BLOCK_BYTES - len..]] {
                    let (codec, stored) = encode(compression, block);
                    let mut back = vec![1; len];
                    decode(codec, &stored, &mut back).unwrap();
                    assert_eq!(back, block);
                    assert!(stored.len() <= len);
                }
            }
        }
    }

    #[test]
    fn only_what_saves_an_eighth_is_compressed() {
        let (text, noise) = (vec![5; BLOCK_BYTES], noise(BLOCK_BYTES));
        assert_eq!(encode(Compression::Lz4, &text).0, Codec::Lz4);
        assert_eq!(encode(Compression::Auto, &text).0, Codec::Lz4);
        assert_eq!(encode(Compression::Zstd, &text).0, Codec::Zstd);
        assert_eq!(encode(Compression::None, &text).0, Codec::Raw);
        for compression in [Compression::Lz4, Compression::Zstd, Compression::Auto] {
            assert_eq!(encode(compression, &noise).0, Codec::Raw);
            assert_eq!(encode(compression, &vec![0; BLOCK_BYTES]), (Codec::Hole, Cow::Borrowed(&[][..])));
        }
    }

    #[test]
    fn damaged_blocks_are_errors() {
        let text = vec![5; BLOCK_BYTES];
        let mut out = vec![0; BLOCK_BYTES];
        for compression in [Compression::Lz4, Compression::Zstd] {
            let (codec, stored) = encode(compression, &text);
            assert!(decode(codec, &stored[..stored.len() - 1], &mut out).is_err());
            assert!(decode(codec, &stored, &mut out[..PAGE_SIZE]).is_err(), "it does not fit");
            assert!(decode(codec, &[], &mut out).is_err());
            assert!(decode(codec, &noise(300), &mut out).is_err());
        }
        assert!(decode(Codec::Raw, &text[1..], &mut out).is_err());
    }
}
