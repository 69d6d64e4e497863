//! What a person keeps to open a store: a key file, or a passphrase. It is kept out of swap and core dumps, and wiped.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use memmap2::{Advice, MmapMut};
use zeroize::{Zeroize, Zeroizing};

use super::{Error, Result};

/// Bytes of a key file that `cr keygen` makes, and the least that one must have.
pub const KEY_FILE_BYTES: usize = 32;
/// More is no key but some other file.
const LONGEST: u64 = 1 << 16;

/// Bytes in pages of their own: not swapped out as far as that is allowed, not in a core dump, wiped when dropped.
pub(super) struct Guarded {
    pages: MmapMut,
    len: usize,
}

impl Guarded {
    pub(super) fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut pages = MmapMut::map_anon(bytes.len().max(1))?;
        pages.advise(Advice::DontDump)?;
        // There is little to be had of it without privilege; better in swap than not at all.
        let _ = pages.lock();
        pages[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { pages, len: bytes.len() })
    }
}

impl Deref for Guarded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages[..self.len]
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.pages[..].zeroize();
    }
}

/// A key file's contents, or a passphrase.
pub struct Secret {
    pub(super) bytes: Guarded,
    pub(super) is_passphrase: bool,
    /// For messages: where it came from.
    from: String,
}

impl Secret {
    /// A key file: from 32 bytes to 64 KiB of good randomness, all of which count.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or it is too short or too long.
    pub fn from_key_file(path: &Path) -> Result<Self> {
        let bytes = read_private(path)?;
        if bytes.len() < KEY_FILE_BYTES {
            let why =
                format!("it has {} bytes, and a key at least {KEY_FILE_BYTES}; `cr keygen` makes one", bytes.len());
            return Err(Error::BadFile { path: path.to_owned(), what: "key file", why });
        }
        Self::new(path, &bytes, false, format!("the key file {}", path.display()))
    }

    /// A passphrase: the first line of a file.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or the line is empty.
    pub fn from_passphrase_file(path: &Path) -> Result<Self> {
        let bytes = read_private(path)?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let why = "its first line is empty".to_owned();
            return Err(Error::BadFile { path: path.to_owned(), what: "passphrase file", why });
        }
        Self::new(path, line, true, format!("the passphrase in {}", path.display()))
    }

    /// A passphrase that is typed at the terminal, without being shown; twice if it is a new one.
    ///
    /// # Errors
    /// When there is no terminal, or nothing is typed, or not the same twice.
    pub fn ask(store: &Path, is_new: bool) -> Result<Self> {
        let none = |why: String| Error::NoPassphrase { why };
        let ask =
            |prompt: String| rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|e| none(e.to_string()));
        let typed = ask(format!("Passphrase of {}: ", store.display()))?;
        if typed.is_empty() {
            return Err(none("nothing was typed".to_owned()));
        }
        if is_new && *ask("The same again: ".to_owned())? != *typed {
            return Err(none("the two were not the same".to_owned()));
        }
        Self::new(Path::new("/dev/tty"), typed.as_bytes(), true, "this passphrase".to_owned())
    }

    fn new(path: &Path, bytes: &[u8], is_passphrase: bool, from: String) -> Result<Self> {
        let failed = |source| Error::Io { path: path.to_owned(), doing: "get memory for the key of", source };
        Ok(Self { bytes: Guarded::new(bytes).map_err(failed)?, is_passphrase, from })
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.from)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.from)
    }
}

/// The contents of a file that nobody but its owner may read.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |source| Error::Io { path: path.to_owned(), doing: "read", source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    // As much as there can be at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST as usize + 1));
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        let why = "it has more than 64 KiB".to_owned();
        return Err(Error::BadFile { path: path.to_owned(), what: "key", why });
    }
    Ok(bytes)
}
