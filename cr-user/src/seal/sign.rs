//! Signatures: who has made an image, and whose images are restored.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::secret::read_private;
use super::{Error, Result};
use crate::hex;

/// Bytes of what stands in an image: the public key and the signature.
pub const SIGNATURE_BYTES: usize = 32 + 64;
/// The keys that a restore as root trusts, where the file exists.
pub const TRUSTED_KEYS: &str = "/etc/cr/trusted-keys";

/// What the lines of key files begin with.
const PUBLIC: &str = "cr-ed25519";
const SECRET: &str = "cr-ed25519-secret";

/// Who signs images.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// By what a signer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// Whose images may be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Anybody's, signed or not.
    #[default]
    Anybody,
    /// Only those that one of these keys has signed.
    Only(Vec<PublicKey>),
}

impl Signer {
    /// Of a file that `cr keygen` made: `cr-ed25519-secret` and 64 hex digits.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or it holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_private(path)?;
        let bad = || Error::BadFile {
            path: path.to_owned(),
            what: "key to sign with",
            why: format!("it does not hold `{SECRET}` and 64 hex digits, as `cr keygen` writes them"),
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| bad())?;
        let digits = text.trim().strip_prefix(SECRET).ok_or_else(bad)?;
        let seed = Zeroizing::new(hex::decode::<32>(digits.trim()).ok_or_else(bad)?);
        Self::new(&seed).ok_or_else(bad)
    }

    fn new(seed: &[u8; 32]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pair, public })
    }

    /// What a new pair's two files hold: the secret one's line, and the public one's.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> std::io::Result<(Zeroizing<String>, String)> {
        let seed = Zeroizing::new(super::random::<32>()?);
        let signer = Self::new(&seed).ok_or_else(|| std::io::Error::other("the key is refused"))?;
        let digits = Zeroizing::new(hex::encode(&seed[..]));
        Ok((Zeroizing::new(format!("{SECRET} {}\n", *digits)), format!("{}\n", signer.public)))
    }

    /// By what it is known.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The public key and the signature of a message.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes[..32].copy_from_slice(&self.public.0);
        bytes[32..].copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public)
    }
}

impl PublicKey {
    /// Who has signed a message, given what [`Signer::sign`] returned; none if it was not signed so.
    pub fn of_signature(signature: &[u8; SIGNATURE_BYTES], message: &[u8]) -> Option<Self> {
        let (key, signature) = signature.split_at(32);
        UnparsedPublicKey::new(&ED25519, key).verify(message, signature).ok()?;
        Some(Self(key.try_into().ok()?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC} {}", hex::encode(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = String;

    /// One line; what comes after the key is a comment.
    fn from_str(line: &str) -> std::result::Result<Self, String> {
        let mut words = line.split_whitespace();
        let key = (words.next() == Some(PUBLIC)).then(|| words.next().and_then(hex::decode)).flatten();
        key.map(Self).ok_or_else(|| format!("`{line}` is not `{PUBLIC}` and 64 hex digits"))
    }
}

impl Trust {
    /// Adds the keys of a file: one a line, empty ones and those that begin with `#` left out.
    ///
    /// # Errors
    /// When it cannot be read, holds something else, or no key at all.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let text =
            fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), doing: "read", source })?;
        let bad = |why| Error::BadFile { path: path.to_owned(), what: "file of public keys", why };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(|line| line.parse().map_err(bad)).collect::<Result<Vec<PublicKey>>>()?;
        match self {
            _ if keys.is_empty() => return Err(bad("it holds no key".to_owned())),
            Self::Anybody => *self = Self::Only(keys),
            Self::Only(all) => all.extend(keys),
        }
        Ok(())
    }

    /// Adds the keys that root trusts on this machine, if there is a file of them.
    ///
    /// # Errors
    /// As [`add_file`](Self::add_file), and when others than root can write to it.
    pub fn add_machines(&mut self) -> Result<()> {
        let path = Path::new(TRUSTED_KEYS);
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::Io { path: path.to_owned(), doing: "read", source }),
            Ok(file) if file.uid() != 0 || file.mode() & 0o022 != 0 => Err(Error::Loose { path: path.to_owned() }),
            Ok(_) => self.add_file(path),
        }
    }

    /// Whether an image of this signer's may be restored; none: of nobody's.
    pub fn includes(&self, signer: Option<PublicKey>) -> bool {
        match self {
            Self::Anybody => true,
            Self::Only(keys) => signer.is_some_and(|signer| keys.contains(&signer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pair_of_files_signs_and_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, public) = (dir.path().join("k"), dir.path().join("k.pub"));
        let lines = Signer::generate().unwrap();
        fs::write(&secret, lines.0.as_bytes()).unwrap();
        fs::write(&public, format!("# the site's\n\n{}", lines.1.trim_end().to_owned() + " made in November\n"))
            .unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Signer::read(&secret), Err(Error::Exposed { .. })));
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let signer = Signer::read(&secret).unwrap();
        assert!(Signer::read(&public).is_err(), "a public key signs nothing");

        let signed = signer.sign(b"an image");
        assert_eq!(PublicKey::of_signature(&signed, b"an image"), Some(signer.public()));
        assert_eq!(PublicKey::of_signature(&signed, b"another"), None);
        for bit in 0..signed.len() * 8 {
            let mut changed = signed;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(PublicKey::of_signature(&changed, b"an image"), None, "bit {bit}");
        }

        let mut trust = Trust::default();
        assert!(trust.includes(None));
        trust.add_file(&public).unwrap();
        assert!(trust.includes(Some(signer.public())) && !trust.includes(None));
        let (other, _) = Signer::generate().unwrap();
        fs::write(&secret, other.as_bytes()).unwrap();
        assert!(!trust.includes(Some(Signer::read(&secret).unwrap().public())));
        for bad in ["", "# nothing\n", "cr-ed25519 12\n", "ssh-ed25519 AAAA\n"] {
            fs::write(&public, bad).unwrap();
            assert!(Trust::default().add_file(&public).is_err(), "{bad}");
        }
    }
}
