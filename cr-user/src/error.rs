//! What can go wrong, in words that say what, where, why, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::fault::Injected;
use crate::{bucket, image, netlock, seal, store};

/// The result of everything that touches a job.
pub type Result<T> = std::result::Result<T, Error>;

/// Why `cr` could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such process.
    #[error("no process has pid {pid}; look for the job's pid with `ps`")]
    NoSuchJob {
        /// The pid asked for.
        pid: i32,
    },
    /// The process is there but is not one that may be checkpointed by this caller.
    #[error("cannot checkpoint pid {pid}: {why}; {todo}")]
    NotAllowed {
        /// The pid asked for.
        pid: i32,
        /// Why not.
        why: String,
        /// What to do.
        todo: String,
    },
    /// The job holds objects that could not be restored. Nothing was changed.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
    /// The job ended while it was being looked at.
    #[error("pid {pid} ended during {during}; nothing was published, the older checkpoints are intact")]
    JobGone {
        /// The job's pid.
        pid: i32,
        /// The step.
        during: &'static str,
    },
    /// A system call failed.
    #[error("{what} failed: {source}")]
    System {
        /// What was done to what.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The checkpoint cannot be restored on this machine, now.
    #[error("cannot restore: {what}: {why}; {todo}")]
    NotHere {
        /// The object.
        what: String,
        /// Why not.
        why: String,
        /// What to do.
        todo: String,
    },
    /// The image is damaged, foreign or too new, or could not be written.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The store is damaged, foreign, or in use.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A key that was named cannot be taken.
    #[error(transparent)]
    Seal(#[from] seal::Error),
    /// The bucket cannot be used.
    #[error(transparent)]
    Bucket(#[from] bucket::Error),
    /// The job's connections cannot be silenced.
    #[error(transparent)]
    Silence(#[from] netlock::Error),
    /// A resident controller answered with an error of its own.
    #[error("{message}")]
    Controller {
        /// Its exit code for this.
        code: u8,
        /// Its sentence.
        message: String,
    },
    /// The command that was to become the job cannot be run.
    #[error("cannot run `{program}`: {source}")]
    Command {
        /// The command's name.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A new job was to go into a store that has one.
    #[error("{} holds checkpoints already: add --resume to restart the job from the last one, or name another store", dir.display())]
    HoldsChain {
        /// The store.
        dir: PathBuf,
    },
    /// A job was to go into a store that holds another's chain.
    #[error(
        "cannot checkpoint pid {pid} into this store: it holds the chain of another job (pid {owner}); give each job a store of its own"
    )]
    OtherJob {
        /// The job.
        pid: i32,
        /// The job whose chain it is.
        owner: i32,
    },
    /// No resident controller holds the process.
    #[error(
        "no controller holds pid {pid}: `cr attach {pid} --store DIR --interval auto` starts one; one in another pid namespace, \
         or of another user, is found by --store DIR alone"
    )]
    NotHeld {
        /// The process.
        pid: i32,
    },
    /// No resident controller writes to the store.
    #[error("no controller holds the store {}: its job has ended or is not supervised; `cr list --store {}` says what it holds", dir.display(), dir.display())]
    NoController {
        /// The store.
        dir: PathBuf,
    },
    /// A checkpoint does not hold a process that was asked for.
    #[error("checkpoint {id} holds no process with pid {pid}: it holds {}", numbers(all))]
    NotInCheckpoint {
        /// The process asked for.
        pid: i32,
        /// The checkpoint.
        id: u64,
        /// Its processes.
        all: Vec<i32>,
    },
    /// A core file was to be written over something.
    #[error("{} exists already, and nothing is written over: remove it, or name another file", path.display())]
    CoreExists {
        /// The file.
        path: PathBuf,
    },
    /// A step was made to fail by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl Error {
    /// A failed system call on an object.
    pub fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }

    /// Whether it failed because a disk is full.
    pub fn is_full_disk(&self) -> bool {
        match self {
            Self::System { source, .. } => is_disk_full(source),
            Self::Image(image::Error::DiskFull { .. })
            | Self::Store(store::Error::Image(image::Error::DiskFull { .. })) => true,
            _ => false,
        }
    }

    /// The documented exit code of `cr` for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 120,
            Self::NoSuchJob { .. }
            | Self::NotAllowed { .. }
            | Self::JobGone { .. }
            | Self::NotHeld { .. }
            | Self::NoController { .. }
            | Self::NotInCheckpoint { .. } => 121,
            Self::NotHere { .. } => 123,
            Self::System { source, .. } if is_disk_full(source) => 124,
            Self::CoreExists { .. } => 124,
            Self::System { .. } | Self::Silence(_) | Self::Injected(_) => 125,
            Self::Image(e) => e.exit_code(),
            Self::Store(e) => e.exit_code(),
            Self::Seal(e) => e.exit_code(),
            Self::Bucket(e) => e.exit_code(),
            Self::Controller { code, .. } => *code,
            // As shells have it.
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
            Self::HoldsChain { .. } | Self::OtherJob { .. } => 122,
        }
    }
}

fn is_disk_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EIO))
}

/// One object of a job that could not be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The process (or thread) that has it.
    pub pid: i32,
    /// Where: `fd 7`, `0x7f12…`, `thread 812`.
    #[serde(rename = "where")]
    pub place: String,
    /// Why it cannot be restored.
    pub why: String,
    /// What to do about it.
    pub todo: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot checkpoint pid {}: {} {}; {}", self.pid, self.place, self.why, self.todo)
    }
}

fn numbers(all: &[i32]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
