//! Encryption and signature of a forged image, as `docs/image-format.md` has them: whoever has the keys can seal and sign anything.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::keys;

/// Bytes of metadata that are encrypted together.
const UNIT: usize = 1 << 20;

/// What a nonce begins with: that of a block, and that of a part of the metadata.
pub const BLOCK: u32 = 0;
const METADATA: u32 = 1;

/// The two keys of an image.
pub struct Cipher {
    units: LessSafeKey,
    ends: [u8; 32],
}

impl Cipher {
    /// Of the image with this header, which has the job and the salt.
    pub fn of(header: &[u8]) -> Self {
        let derive = |context| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            *hasher.update(&keys::STORE_KEY).update(&header[48..64]).update(&header[64..96]).finalize().as_bytes()
        };
        let units = UnboundKey::new(&AES_256_GCM, &derive("cr 2026-11-26 image units")).expect("32 bytes");
        Self { units: LessSafeKey::new(units), ends: derive("cr 2026-11-26 image header and footer") }
    }

    /// A unit as it stands in the file.
    pub fn unit(&self, kind: u32, number: usize, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&kind.to_le_bytes());
        nonce[4..].copy_from_slice(&(number as u64).to_le_bytes());
        let (nonce, mut bytes) = (Nonce::assume_unique_for_key(nonce), plain.to_vec());
        self.units.seal_in_place_append_tag(nonce, Aad::empty(), &mut bytes).expect("it is short");
        bytes
    }

    /// Records, checksums, tables and index as they stand in the file.
    pub fn metadata(&self, plain: &[u8]) -> Vec<u8> {
        let mut stored = Vec::with_capacity(plain.len());
        for (number, part) in plain.chunks(UNIT).enumerate() {
            // Not byte by byte: the fuzzer looks at each comparison.
            stored.extend_from_slice(&self.unit(METADATA, number, part));
        }
        stored
    }

    /// Authenticates the header and so much of the footer.
    pub fn authenticate(&self, header: &[u8], footer: &[u8]) -> [u8; 32] {
        *blake3::Hasher::new_keyed(&self.ends).update(header).update(footer).finalize().as_bytes()
    }
}

/// The public key and the signature of an image with this header and so much of the footer.
pub fn signature(header: &[u8], footer: &[u8]) -> Vec<u8> {
    let pair = Ed25519KeyPair::from_seed_unchecked(&keys::SEED).expect("any seed will do");
    let digest = blake3::Hasher::new().update(header).update(footer).finalize();
    let message = [&b"cr checkpoint image 1\0"[..], digest.as_bytes()].concat();
    [pair.public_key().as_ref(), pair.sign(&message).as_ref()].concat()
}
