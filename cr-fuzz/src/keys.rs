//! The keys of what is sealed and signed here. They are no secrets: everybody can read them in this file.

use std::fs;
use std::sync::{Arc, OnceLock};

use cr::seal::{Keys, PublicKey, Secret, Signer, StoreKey, Trust, Wrapped};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tempfile::NamedTempFile;

/// The job of the stores.
pub const JOB: [u8; 16] = [7; 16];
/// The key of sealed stores.
pub const STORE_KEY: [u8; 32] = [0x5e; 32];
/// Of what signatures are made.
pub const SEED: [u8; 32] = [0x51; 32];
const KEY_FILE: [u8; 32] = [0x4b; 32];
const PASSPHRASE: &str = "known to everybody";
const MARKER_SALT: [u8; 32] = [0x3d; 32];

/// Opens sealed stores, signs, and trusts what was signed here.
pub fn by_key_file() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let secret = Secret::from_key_file(private(&KEY_FILE).path()).expect("a key file");
        let signer = signer();
        let trust = Trust::Only(vec![signer.public()]);
        Keys { secret: Some(Arc::new(secret)), signer: Some(signer), trust }
    })
}

/// Opens nothing that is sealed, and trusts what was signed here.
pub fn none() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| Keys { trust: by_key_file().trust.clone(), ..Keys::default() })
}

/// Has a passphrase, which opens none of the stores; by way of Argon2id it is found out that it does not.
pub fn by_passphrase() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let secret = Secret::from_passphrase_file(private(PASSPHRASE.as_bytes()).path()).expect("a passphrase");
        Keys { secret: Some(Arc::new(secret)), ..Keys::default() }
    })
}

/// Opens sealed images.
pub fn store_key() -> &'static Arc<StoreKey> {
    static KEY: OnceLock<Arc<StoreKey>> = OnceLock::new();
    KEY.get_or_init(|| {
        let wrapped: Wrapped = serde_json::from_str(&wrapped()).expect("it is written as it has to be");
        let secret = by_key_file().secret.as_ref().expect("a key file");
        Arc::new(wrapped.unwrap(&JOB, secret).expect("a key").expect("the right one"))
    })
}

/// Who signs here.
pub fn public() -> PublicKey {
    by_key_file().signer.as_ref().expect("there is one").public()
}

/// The marker of a sealed store that [`by_key_file`] opens.
pub fn marker() -> String {
    format!(r#"{{"format":2,"job":"{}","seal":{}}}"#, digits(&JOB), wrapped())
}

/// That of one that asks for this much work to try a passphrase.
pub fn passphrase_marker(memory_kib: u64, passes: u64, lanes: u64) -> String {
    let costs = format!(r#""from":"passphrase","memory_kib":{memory_kib},"passes":{passes},"lanes":{lanes}"#);
    marker().replace(r#""from":"key-file""#, &costs)
}

/// The store's key as it stands in the marker: made after `docs/image-format.md`, and not by the code that is to read it.
fn wrapped() -> String {
    let mut hasher = blake3::Hasher::new_derive_key("cr 2026-11-26 store key from key file");
    let wrapping = *hasher.update(&MARKER_SALT).update(&KEY_FILE).finalize().as_bytes();
    let mut key = STORE_KEY.to_vec();
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &wrapping).expect("32 bytes"));
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    cipher.seal_in_place_append_tag(nonce, Aad::from(JOB), &mut key).expect("it is short");
    let (salt, key) = (digits(&MARKER_SALT), digits(&key));
    format!(r#"{{"cipher":"aes-256-gcm","from":"key-file","salt":"{salt}","wrapped":"{key}"}}"#)
}

fn signer() -> Arc<Signer> {
    let line = format!("cr-ed25519-secret {}\n", digits(&SEED));
    Arc::new(Signer::read(private(line.as_bytes()).path()).expect("a key to sign with"))
}

/// A file that others cannot read: keys are not taken from any other.
fn private(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), bytes).expect("a temporary file");
    file
}

fn digits(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect()
}
