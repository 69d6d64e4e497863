//! The key of one image, and the units that are encrypted with it.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::StoreKey;

/// Bytes by which a unit is longer than what it holds.
pub const TAG_BYTES: usize = 16;

const UNITS_CONTEXT: &str = "cr 2026-11-26 image units";
const ENDS_CONTEXT: &str = "cr 2026-11-26 image header and footer";

/// What is encrypted as one piece. With one key, each is encrypted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A block of pages, by its number.
    Block(u64),
    /// A part of all the rest, by its number.
    Metadata(u64),
}

/// Encrypts and authenticates one image.
pub struct ImageKey {
    units: LessSafeKey,
    ends: Zeroizing<[u8; 32]>,
}

impl ImageKey {
    /// The key of the image that has this random salt in its header.
    pub fn derive(store: &StoreKey, job: &[u8; 16], salt: &[u8; 32]) -> Self {
        let derive = |context| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            hasher.update(store.bytes()).update(job).update(salt);
            Zeroizing::new(*hasher.finalize().as_bytes())
        };
        let units = derive(UNITS_CONTEXT);
        let units = UnboundKey::new(&AES_256_GCM, &units[..]).expect("a key of 32 bytes");
        Self { units: LessSafeKey::new(units), ends: derive(ENDS_CONTEXT) }
    }

    /// Encrypts a unit in its place, and appends its tag. A number must not be used twice.
    pub fn seal(&self, unit: Unit, bytes: &mut Vec<u8>) {
        let sealed = self.units.seal_in_place_append_tag(unit.nonce(), Aad::empty(), bytes);
        sealed.expect("a unit is far smaller than what the cipher can take");
    }

    /// Decrypts a unit in its place; none if it is not as it was written.
    pub fn open<'b>(&self, unit: Unit, bytes: &'b mut [u8]) -> Option<&'b mut [u8]> {
        self.units.open_in_place(unit.nonce(), Aad::empty(), bytes).ok()
    }

    /// Authenticates what is not encrypted: a header and a footer.
    pub fn authenticate(&self, header: &[u8], footer: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.ends);
        hasher.update(header).update(footer).finalize()
    }
}

impl Unit {
    fn nonce(self) -> Nonce {
        let (kind, number) = match self {
            Self::Block(number) => (0_u32, number),
            Self::Metadata(number) => (1, number),
        };
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&kind.to_le_bytes());
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

impl fmt::Debug for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ImageKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_open_in_their_place_alone_and_unchanged() {
        let store = StoreKey::generate().unwrap();
        let key = ImageKey::derive(&store, &[1; 16], &[2; 32]);
        let mut sealed = b"sixteen pages, say".to_vec();
        key.seal(Unit::Block(5), &mut sealed);
        assert_eq!(sealed.len(), 18 + TAG_BYTES);
        let open = |key: &ImageKey, unit, bytes: &[u8]| key.open(unit, &mut bytes.to_vec()).map(|plain| plain.to_vec());
        assert_eq!(open(&key, Unit::Block(5), &sealed).unwrap(), b"sixteen pages, say");
        assert_eq!(open(&key, Unit::Block(4), &sealed), None);
        assert_eq!(open(&key, Unit::Metadata(5), &sealed), None);
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&key, Unit::Block(5), &changed), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(open(&key, Unit::Block(5), &sealed[..len]), None, "{len} bytes");
        }
        let others = [
            ImageKey::derive(&store, &[1; 16], &[3; 32]),
            ImageKey::derive(&store, &[3; 16], &[2; 32]),
            ImageKey::derive(&StoreKey::generate().unwrap(), &[1; 16], &[2; 32]),
        ];
        for other in others {
            assert_eq!(open(&other, Unit::Block(5), &sealed), None);
            assert_ne!(other.authenticate(b"header", b"footer"), key.authenticate(b"header", b"footer"));
        }
    }
}
