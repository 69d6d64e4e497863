//! What can be wrong with a store, in sentences.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::Injected;
use crate::image::{self, JobId};
use crate::seal;

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of its images is not usable, or could not be written.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// Its key is missing or wrong, or its images are not to be trusted.
    #[error(transparent)]
    Seal(#[from] seal::Error),
    /// There is no store.
    #[error("{} is not a checkpoint store: it has no `cr-store.json`. Name the directory that `--store` named when the job was checkpointed", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is in use for something else.
    #[error("{} cannot become a checkpoint store: it is not empty (`{found}` is in it) and no store. Name a new or empty directory", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// There is something else where the directory should be.
    #[error("{} cannot be a checkpoint store: it is not a directory. Name a new or empty directory", path.display())]
    NotADirectory {
        /// What it is not.
        path: PathBuf,
    },
    /// The marker is of a newer format.
    #[error("{} has store format {found}, this `cr` reads format {known}: use a newer `cr`", path.display())]
    OtherFormat {
        /// The marker.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The one read here.
        known: u64,
    },
    /// The marker makes no sense.
    #[error("{} is damaged: {what}. It holds {{\"format\":1,\"job\":ID}}; the ID also stands in the header of each image (docs/image-format.md)", path.display())]
    BadMarker {
        /// The marker.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Somebody else writes to the store.
    #[error("{} is in use by {}: stop that first, or ask it for the checkpoint", dir.display(), holder(*pid))]
    Locked {
        /// The store.
        dir: PathBuf,
        /// Who, in that process's own pid namespace; none if it has not said so yet.
        pid: Option<u32>,
    },
    /// The store is empty.
    #[error("{} holds no checkpoint yet", dir.display())]
    Empty {
        /// The store.
        dir: PathBuf,
    },
    /// No such number.
    #[error("{} holds no checkpoint {id}; `cr list` shows those that it holds", dir.display())]
    NoCheckpoint {
        /// The store.
        dir: PathBuf,
        /// The number.
        id: u64,
    },
    /// The number is taken.
    #[error("cannot publish {}: a checkpoint of that number exists already; nothing was changed", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// An image under another's name.
    #[error("{} is checkpoint {id} under a wrong name: somebody renamed it. Give it its own name back", path.display())]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// Its real number.
        id: u64,
    },
    /// An image of another job.
    #[error("{} belongs to job {found}, and this store to job {job}: it was copied here from another store. Put the right file back", path.display())]
    OtherJob {
        /// The file.
        path: PathBuf,
        /// Its job.
        found: JobId,
        /// The store's job.
        job: JobId,
    },
    /// A delta without what it builds on.
    #[error("checkpoint {child} in {} cannot be restored: it builds on checkpoint {parent}, which is missing. Put that file back, or restore a checkpoint that does not need it (`cr verify` names the newest)", dir.display())]
    MissingParent {
        /// The store.
        dir: PathBuf,
        /// The delta.
        child: u64,
        /// What it builds on.
        parent: u64,
    },
    /// A delta whose parent is another image than the one it was made on.
    #[error("checkpoint {child} in {} cannot be restored: checkpoint {parent}, on which it builds, is not the one that it was made on (the hashes differ). Put the right file back, or restore a checkpoint that does not need it (`cr verify` names the newest)", dir.display())]
    OtherParent {
        /// The store.
        dir: PathBuf,
        /// The delta.
        child: u64,
        /// What it builds on.
        parent: u64,
    },
    /// A delta that is intact, on one that cannot be used.
    #[error("checkpoint {child} in {} cannot be restored: it builds on checkpoint {parent}, which cannot be either", dir.display())]
    BrokenParent {
        /// The store.
        dir: PathBuf,
        /// The delta.
        child: u64,
        /// What it builds on.
        parent: u64,
    },
    /// A compaction would need more memory than it may have.
    #[error(
        "cannot compact checkpoint {id} in {}: keeping account of its {runs} runs of pages takes {} MiB of memory, more than --memory-limit; give it more",
        dir.display(),
        needed.div_ceil(1 << 20)
    )]
    CompactionTooLarge {
        /// The store.
        dir: PathBuf,
        /// The newest checkpoint.
        id: u64,
        /// Runs of pages.
        runs: u64,
        /// Bytes of memory.
        needed: u64,
    },
    /// Nothing was said of what to keep.
    #[error(
        "it was not said what to keep: give at least one of --keep-last, --keep-hourly, --keep-daily, --keep-weekly and --keep-bytes; nothing was removed"
    )]
    NoRules,
    /// A step was made to fail by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// A failed system call.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// A full disk becomes [`image::Error::DiskFull`]. `doing` completes "cannot … PATH".
    pub(super) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        match image::Error::io(path, doing, source) {
            image::Error::Io { path, doing, source } => Self::Io { path, doing, source },
            full => Self::Image(full),
        }
    }

    /// The exit code of `cr` for this error: 119 for keys and signatures, 122 for what is wrong with the store, 124 for failed input or output, 125
    /// for a defect of `cr` or a test's doing, 2 for a wrong use of it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Image(error) => error.exit_code(),
            Self::Seal(error) => error.exit_code(),
            Self::Io { .. } => 124,
            Self::NoRules | Self::CompactionTooLarge { .. } => 2,
            Self::Injected(_) => 125,
            _ => 122,
        }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another controller".into(), |pid| format!("the controller with pid {pid}"))
}
