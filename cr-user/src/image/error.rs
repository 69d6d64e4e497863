//! What can be wrong with an image, in sentences.

use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file does not begin as an image does.
    #[error("{} is not a checkpoint image: {why}. Name a store that `cr` has made, or remove the file", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        why: &'static str,
    },
    /// The file is an image of a format that this program does not know.
    #[error("{} has image format {found}, this `cr` reads format {known}: use the `cr` that wrote it or a newer one", path.display())]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// The file's format version.
        found: u32,
        /// The version that this program reads.
        known: u32,
    },
    /// The image is whole, but was made for another kind of machine, or with a feature that this program lacks.
    #[error("{} cannot be used here: its {what} is {found}, this `cr` reads {known}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The property.
        what: &'static str,
        /// Its value in the file.
        found: u64,
        /// The value that this program handles.
        known: u64,
    },
    /// The image is encrypted, and its store is not.
    #[error("{} is sealed, and the store that it is in is not: it was copied here from another store, or this store's `cr-store.json` was replaced. Put the right file back", path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
    },
    /// The image is not encrypted, and its store is.
    #[error("{} is not sealed, and the store that it is in is: this store's `cr` did not write it. Put the right file back, or remove it", path.display())]
    NotSealed {
        /// The file.
        path: PathBuf,
    },
    /// Bytes that describe the image are not as they were written.
    #[error("{} is damaged: {what}. Restore an earlier checkpoint; `cr verify` names the newest intact one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Stored pages are not as they were written.
    #[error("{} is damaged: {bad} of its pages do not match their checksums, the first at byte {offset} ({place}). Restore an earlier checkpoint; `cr verify` names the newest intact one", path.display())]
    DamagedPages {
        /// The file.
        path: PathBuf,
        /// How many pages.
        bad: u64,
        /// Byte offset of the first one in the file.
        offset: u64,
        /// Which page of which space that is.
        place: String,
    },
    /// The image holds a record of a kind that this program does not know.
    #[error("{} holds a record of the unknown kind {id} (version {version}): use a newer `cr`", path.display())]
    UnknownRecord {
        /// The file.
        path: PathBuf,
        /// The record's kind.
        id: u16,
        /// The record's version.
        version: u16,
    },
    /// The image holds a record in a version that the reader did not ask for.
    #[error("{} holds `{name}` in version {found}, this `cr` reads version {known}: use the `cr` that wrote it or a newer one", path.display())]
    OtherRecordVersion {
        /// The file.
        path: PathBuf,
        /// The record's name.
        name: &'static str,
        /// The record's version in the file.
        found: u16,
        /// The version known here.
        known: u16,
    },
    /// The image lacks a record that its reader needs.
    #[error("{} holds no `{name}` record, without which it cannot be restored: it was not made by a complete checkpoint", path.display())]
    MissingRecord {
        /// The file.
        path: PathBuf,
        /// The record's name.
        name: &'static str,
    },
    /// What the caller wanted to write contradicts itself: a defect of `cr`.
    #[error("cannot write {}: {what}. This is a defect of `cr`; nothing was published", path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// The contradiction.
        what: String,
    },
    /// No room (`ENOSPC`, `EDQUOT`).
    #[error("cannot {doing} {}: {source}. Make room on that file system or use another store; earlier checkpoints are intact", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Any other failed system call.
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
    /// Tells a full disk apart from other failures. `doing` completes "cannot … PATH".
    pub(crate) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, doing, source },
            _ => Self::Io { path, doing, source },
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }

    /// The exit code of `cr` for this error: 122 for what is wrong with the store, 124 for failed input or output, 125
    /// for a defect of `cr`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotAnImage { .. }
            | Self::OtherFormat { .. }
            | Self::Unsupported { .. }
            | Self::Sealed { .. }
            | Self::NotSealed { .. }
            | Self::Damaged { .. }
            | Self::DamagedPages { .. }
            | Self::UnknownRecord { .. }
            | Self::OtherRecordVersion { .. }
            | Self::MissingRecord { .. } => 122,
            Self::DiskFull { .. } | Self::Io { .. } => 124,
            Self::Inconsistent { .. } => 125,
        }
    }
}
