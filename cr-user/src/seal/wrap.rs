//! A store's own key, and how it stands in the marker: wrapped by a key that comes from somebody's secret.
//!
//! So all stores can be opened by one secret without having a key in common, and a passphrase costs its time once, not for each image.

use std::fmt;
use std::io::{self, ErrorKind};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::secret::Guarded;
use super::{Secret, TAG_BYTES, random};
use crate::hex;

/// Derives the wrapping key from a key file and the salt.
const KEY_FILE_CONTEXT: &str = "cr 2026-11-26 store key from key file";
/// Argon2id as RFC 9106 recommends where memory is scarce: a tenth of a second, 64 MiB.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// What a marker may ask for at most, since it is not trusted before it was unwrapped: KiB, passes, lanes.
const MOST: (u32, u32, u32) = (1 << 20, 64, 64);
/// And KiB times passes, which is what takes the time: twenty times what we ask for.
const MOST_WORK: u64 = 1 << 22;

const CIPHER: &str = "aes-256-gcm";

/// The key of a store, from which those of its images are derived.
pub struct StoreKey(Guarded);

/// A store's key as it stands in the marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    /// What it is wrapped with, and the images are encrypted with.
    cipher: String,
    #[serde(flatten)]
    from: Source,
    /// 32 bytes.
    salt: String,
    /// 32 bytes and the tag.
    #[serde(rename = "wrapped")]
    key: String,
}

/// Where the wrapping key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
enum Source {
    KeyFile,
    /// By way of Argon2id.
    Passphrase {
        memory_kib: u32,
        passes: u32,
        lanes: u32,
    },
}

impl StoreKey {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness or no memory.
    pub fn generate() -> io::Result<Self> {
        Guarded::new(&*Zeroizing::new(random::<32>()?)).map(Self)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(…)")
    }
}

impl Wrapped {
    /// Wraps the key of the store of `job`.
    ///
    /// # Errors
    /// When there is no randomness, or no memory.
    pub fn wrap(key: &StoreKey, job: &[u8; 16], secret: &Secret) -> io::Result<Self> {
        let salt = random::<32>()?;
        let from = if secret.is_passphrase {
            Source::Passphrase { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES }
        } else {
            Source::KeyFile
        };
        let wrapping = from.wrapping_key(secret, &salt)?;
        let mut wrapped = key.bytes().to_vec();
        let sealed = wrapping.seal_in_place_append_tag(only_nonce(), Aad::from(job), &mut wrapped);
        sealed.map_err(|_| io::Error::other("the cipher fails"))?;
        Ok(Self { cipher: CIPHER.to_owned(), from, salt: hex::encode(&salt), key: hex::encode(&wrapped) })
    }

    /// Unwraps it; none if the secret is not the one, or the marker's fields were changed.
    ///
    /// # Errors
    /// `InvalidData`: what is wrong with the marker, for a sentence. Any other kind: there is no memory.
    pub fn unwrap(&self, job: &[u8; 16], secret: &Secret) -> io::Result<Option<StoreKey>> {
        if self.cipher != CIPHER {
            return Err(bad(format!("its cipher is `{}`, and this `cr` knows {CIPHER}", self.cipher)));
        }
        let salt: [u8; 32] = hex::decode(&self.salt).ok_or_else(|| bad("its salt is not 64 hex digits"))?;
        let wrapped: [u8; 32 + TAG_BYTES] =
            hex::decode(&self.key).ok_or_else(|| bad("its wrapped key is not 96 hex digits"))?;
        if secret.is_passphrase != self.is_by_passphrase() {
            return Ok(None);
        }
        let wrapping = self.from.wrapping_key(secret, &salt)?;
        let mut bytes = Zeroizing::new(wrapped);
        let Ok(key) = wrapping.open_in_place(only_nonce(), Aad::from(job), &mut bytes[..]) else { return Ok(None) };
        Guarded::new(key).map(|key| Some(StoreKey(key)))
    }

    /// What it was wrapped with, which was not this secret: for messages.
    pub fn with(&self, wrong: &Secret) -> &'static str {
        match (self.is_by_passphrase(), wrong.is_passphrase) {
            (true, true) => "another passphrase",
            (true, false) => "a passphrase",
            (false, true) => "a key file",
            (false, false) => "another key file",
        }
    }

    /// Which options give the secret, for messages.
    pub fn how(&self) -> &'static str {
        if self.is_by_passphrase() { "--passphrase-file FILE or --passphrase" } else { "--key-file FILE" }
    }

    fn is_by_passphrase(&self) -> bool {
        matches!(self.from, Source::Passphrase { .. })
    }
}

impl Source {
    fn wrapping_key(self, secret: &Secret, salt: &[u8; 32]) -> io::Result<LessSafeKey> {
        let mut key = Zeroizing::new([0; 32]);
        match self {
            Self::KeyFile => {
                let mut hasher = blake3::Hasher::new_derive_key(KEY_FILE_CONTEXT);
                hasher.update(salt).update(&secret.bytes);
                *key = *hasher.finalize().as_bytes();
            }
            Self::Passphrase { memory_kib, passes, lanes } => {
                let work = u64::from(memory_kib) * u64::from(passes);
                if memory_kib > MOST.0 || passes > MOST.1 || lanes > MOST.2 || work > MOST_WORK {
                    return Err(bad("it asks for more memory or time than any passphrase should take"));
                }
                let params = Params::new(memory_kib, passes, lanes, Some(key.len()));
                let params = params.map_err(|why| bad(why.to_string()))?;
                let mut memory = memory(&params)?;
                let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
                let done = argon.hash_password_into_with_memory(&secret.bytes, salt, &mut key[..], &mut memory[..]);
                done.map_err(|why| bad(why.to_string()))?;
            }
        }
        Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).expect("a key of 32 bytes")))
    }
}

/// What Argon2 works in: an error where there is not so much, and wiped afterwards.
fn memory(params: &Params) -> io::Result<Zeroizing<Vec<Block>>> {
    let mut blocks = Zeroizing::new(Vec::new());
    let count = params.block_count();
    blocks.try_reserve_exact(count).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
    blocks.resize(count, Block::default());
    Ok(blocks)
}

/// The marker is wrong.
fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

/// A wrapping key is used for one thing alone, as the salt makes it another for each store.
fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secret(bytes: &[u8], make: fn(&std::path::Path) -> super::super::Result<Secret>) -> Secret {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        make(&path).unwrap()
    }

    #[test]
    fn only_the_same_secret_unwraps() {
        let (job, other_job) = ([7; 16], [8; 16]);
        let file = |n: u8| secret(&[n; 40], Secret::from_key_file);
        let words = |text: &str| secret(text.as_bytes(), Secret::from_passphrase_file);
        let key = StoreKey::generate().unwrap();
        for (right, wrong) in [
            (file(1), vec![file(2), words("correct horse")]),
            (words("correct horse\n"), vec![words("Correct horse"), file(1)]),
        ] {
            let wrapped = Wrapped::wrap(&key, &job, &right).unwrap();
            let text = serde_json::to_string(&wrapped).unwrap();
            let read: Wrapped = serde_json::from_str(&text).unwrap();
            assert_eq!(read, wrapped);
            assert!(!text.contains(&hex::encode(key.bytes())));
            assert_eq!(read.unwrap(&job, &right).unwrap().unwrap().bytes(), key.bytes());
            assert!(read.unwrap(&other_job, &right).unwrap().is_none(), "a marker of another store");
            for wrong in wrong {
                assert!(read.unwrap(&job, &wrong).unwrap().is_none(), "{wrong:?} unwraps {text}");
            }
            assert_ne!(Wrapped::wrap(&key, &job, &right).unwrap(), wrapped, "each has a salt of its own");
        }
    }

    #[test]
    fn a_marker_cannot_ask_for_too_much() {
        let words = secret(b"correct horse", Secret::from_passphrase_file);
        let wrapped = Wrapped::wrap(&StoreKey::generate().unwrap(), &[7; 16], &words).unwrap();
        let ask = |memory_kib, passes, lanes| {
            let from = Source::Passphrase { memory_kib, passes, lanes };
            Wrapped { from, ..wrapped.clone() }.unwrap(&[7; 16], &words).map(|key| key.is_some())
        };
        // One more than each bound, and all of them at once: refused before anything is allocated or computed.
        let before = std::time::Instant::now();
        for (memory_kib, passes, lanes) in [
            (u32::MAX, 3, 4),
            ((1 << 20) + 1, 1, 1),
            (1 << 16, u32::MAX, 4),
            (512, 65, 1),
            (1 << 16, 3, 1 << 20),
            (1 << 16, 3, 65),
            (1 << 20, 5, 4),
            ((1 << 16) + 1, 64, 4),
            (1 << 20, 64, 64),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            let refused = ask(memory_kib, passes, lanes).expect_err("it is too much");
            assert!(refused.to_string().contains("memory or time"), "{memory_kib} {passes} {lanes}: {refused}");
            assert_eq!(refused.kind(), ErrorKind::InvalidData);
        }
        assert!(before.elapsed() < std::time::Duration::from_millis(500), "{:?}", before.elapsed());
        // Less than Argon2 can do with.
        for (memory_kib, passes, lanes) in [(0, 0, 0), (7, 1, 1), (64, 0, 1), (64, 1, 0), (64, 1, 9)] {
            ask(memory_kib, passes, lanes).expect_err("it is too little");
        }
        for (memory_kib, passes, lanes) in [(64, 1, 1), (64, 64, 1), (512, 1, 64)] {
            assert!(!ask(memory_kib, passes, lanes).expect("it is allowed"), "another key comes of it");
        }
    }

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, [1; 32]).unwrap();
        for mode in [0o640, 0o604, 0o666, 0o610] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(Secret::from_key_file(&path), Err(super::super::Error::Exposed { mode: m, .. }) if m == mode)
            );
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(Secret::from_key_file(&path).is_ok());
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for bad in [0, 31, (1 << 16) + 1] {
            fs::write(&path, vec![1; bad]).unwrap();
            assert!(Secret::from_key_file(&path).is_err(), "{bad} bytes");
        }
        fs::write(&path, "\nsecond").unwrap();
        assert!(Secret::from_passphrase_file(&path).is_err());
    }
}
