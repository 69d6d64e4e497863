//! Sealed stores: keys, and what is done with them.
//!
//! A sealed store has a random key of its own, which stands in its marker, wrapped by a key that comes from a passphrase or a key file
//! ([`Wrapped`]). Each image has a key that is derived from it ([`ImageKey`]); what is encrypted with that is a unit, with a number
//! that is used once. Images can be signed besides ([`Signer`]), so that somebody can tell his own from those that others made
//! ([`Trust`]).
//!
//! Ciphers and signatures are `ring`'s, the passphrase goes through `argon2`, keys are derived by BLAKE3. The formats are in
//! `docs/image-format.md`, what it is good for in `docs/threat-model.md`.

mod error;
mod secret;
mod sign;
mod unit;
mod wrap;

use std::io;
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};

pub use error::{Error, Result};
pub use secret::{KEY_FILE_BYTES, Secret};
pub use sign::{PublicKey, SIGNATURE_BYTES, Signer, TRUSTED_KEYS, Trust};
pub use unit::{ImageKey, TAG_BYTES, Unit};
pub use wrap::{StoreKey, Wrapped};

/// What somebody has been given to work with a store.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Opens a sealed store, or seals a new one.
    pub secret: Option<Arc<Secret>>,
    /// Signs what is written.
    pub signer: Option<Arc<Signer>>,
    /// Whose images may be restored.
    pub trust: Trust,
}

/// Random bytes of the kernel's.
///
/// # Errors
/// When it has none.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
    Ok(bytes)
}
