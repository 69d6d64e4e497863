//! What can be wrong with keys and signatures, in sentences.

use std::io;
use std::path::PathBuf;

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store stays closed, or a key is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store is sealed, and no key was given.
    #[error("{} is sealed: give its key by {how}", dir.display())]
    Missing {
        /// The store.
        dir: PathBuf,
        /// The options that would do.
        how: &'static str,
    },
    /// The key is not the one that the store was sealed with.
    #[error("{} does not open with {from}: it was sealed with {with}. Nothing was changed", dir.display())]
    Wrong {
        /// The store.
        dir: PathBuf,
        /// The key that was given.
        from: String,
        /// What it was sealed with.
        with: &'static str,
    },
    /// A key was given for a store that is not sealed.
    #[error(
        "{} is not sealed, and {from} was given for it: leave the key out, or name a new directory to have checkpoints sealed",
        dir.display()
    )]
    Unneeded {
        /// The store.
        dir: PathBuf,
        /// The key that was given.
        from: String,
    },
    /// Others than its owner can read a secret.
    #[error("{} is not secret: its mode is {mode:04o}, so others can read it. Take a new key if they may have (chmod 600 is for the next time)", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Others than root could add keys to those that root trusts.
    #[error("{} is not to be relied upon: it has to be root's, and others may not write to it (chown root, chmod 644)", path.display())]
    Loose {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold what it should.
    #[error("{} is no {what}: {why}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody typed a passphrase.
    #[error("no passphrase: {why}; where there is no terminal, use --passphrase-file or --key-file")]
    NoPassphrase {
        /// Why not.
        why: String,
    },
    /// Images that nobody who is trusted has signed.
    #[error(
        "cannot restore from {}: {which}. Name the keys that you trust by --trust, or restore it all the same with --untrusted: an image can start anything, with any rights",
        dir.display()
    )]
    Untrusted {
        /// The store.
        dir: PathBuf,
        /// The images, and who signed each.
        which: String,
    },
    /// A failed system call.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// The exit code of `cr` for this error: 119.
    pub fn exit_code(&self) -> u8 {
        119
    }
}
