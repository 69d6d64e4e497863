//! What can go wrong with a bucket, in sentences.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::JobId;
use crate::store;

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a bucket could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No URL of a bucket.
    #[error(
        "`{url}` names no bucket: {why}. Write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIR"
    )]
    BadUrl {
        /// What was given; without a password.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no such bucket.
    #[error("there is no bucket at {url} ({why}): make it, or check the URL and the endpoint (AWS_ENDPOINT_URL)")]
    NoBucket {
        /// The bucket.
        url: String,
        /// The server's words.
        why: String,
    },
    /// We may not do that there.
    #[error(
        "cannot {doing} {url}: access is denied ({why}). Check the credentials in the environment (AWS_ACCESS_KEY_ID and the like; docs/buckets.md)"
    )]
    Denied {
        /// The object or bucket.
        url: String,
        /// Completes "cannot …".
        doing: &'static str,
        /// The server's words.
        why: String,
    },
    /// No room there.
    #[error("cannot {doing} {url}: there is no room ({why}). Raise the quota, or remove checkpoints with `cr prune`")]
    Full {
        /// The object or bucket.
        url: String,
        /// Completes "cannot …".
        doing: &'static str,
        /// The server's words.
        why: String,
    },
    /// Something that should be there is not.
    #[error(
        "cannot {doing} {url}: it is not there. If it was not pruned just now, `cr verify` says what is still intact"
    )]
    Gone {
        /// The object.
        url: String,
        /// Completes "cannot …".
        doing: &'static str,
    },
    /// Anything else: no connection, a time limit, a server in trouble.
    #[error("cannot {doing} {url}: {why}. Check the network and the endpoint, and try again")]
    Failed {
        /// The object or bucket.
        url: String,
        /// Completes "cannot …".
        doing: &'static str,
        /// What happened.
        why: String,
        /// The server said so, and would again: it is nothing that passes by itself.
        answered: bool,
    },
    /// There is no store.
    #[error(
        "{url} holds no checkpoint store: there is no `cr-store.json`. Give the URL that --store had when the job was checkpointed"
    )]
    NoStore {
        /// The bucket.
        url: String,
    },
    /// A checkpoint's description, or the marker, makes no sense.
    #[error("{url} is damaged: {what}. `cr verify` says what is still intact")]
    Damaged {
        /// The object.
        url: String,
        /// What was found.
        what: String,
    },
    /// Something there is of a newer format.
    #[error("{url} has format {found}, this `cr` reads format {known}: use a newer `cr`")]
    OtherFormat {
        /// The object.
        url: String,
        /// Its format.
        found: u64,
        /// The one read here.
        known: u64,
    },
    /// Two jobs in one place.
    #[error("{url} holds the checkpoints of job {there}, and {} those of job {here}: give each job a prefix of its own, or name another --spool", spool.display())]
    OtherJob {
        /// The bucket.
        url: String,
        /// Its job.
        there: String,
        /// The spool.
        spool: PathBuf,
        /// The spool's job.
        here: JobId,
    },
    /// Two writers on one prefix.
    #[error("checkpoint {id} in {url} is another one than that in {}: another `cr` went on with this job and publishes there. What this one takes stays in {} alone; end one of the two jobs, or give it a prefix of its own", spool.display(), spool.display())]
    Conflict {
        /// The bucket.
        url: String,
        /// The number.
        id: u64,
        /// The spool.
        spool: PathBuf,
    },
    /// The bucket holds a chain, and the spool nothing.
    #[error("{url} holds checkpoints already, and {} none of them: `cr restore` (or `cr run --resume`) goes on from them; for another job give another prefix", spool.display())]
    HoldsChain {
        /// The bucket.
        url: String,
        /// The spool.
        spool: PathBuf,
    },
    /// A spool of another bucket.
    #[error("{} is the spool of {found}, not of {url}: name another --spool", spool.display())]
    OtherBucket {
        /// The spool.
        spool: PathBuf,
        /// The bucket whose it is.
        found: String,
        /// The bucket that was named.
        url: String,
    },
    /// Somebody else uploads from the spool, and goes on doing so.
    #[error("{} is in use by another `cr`, which uploads from it: wait for it, or name another --spool", spool.display())]
    Busy {
        /// The spool.
        spool: PathBuf,
    },
    /// A checkpoint is in the spool only.
    #[error("checkpoint {id} is durable in {} and not yet in {url}: {why}. It is uploaded by the next `cr` that writes there; until then, do not lose that directory", spool.display())]
    OnlyLocal {
        /// The newest such checkpoint.
        id: u64,
        /// The spool.
        spool: PathBuf,
        /// The bucket.
        url: String,
        /// Why.
        why: String,
        /// The exit code.
        code: u8,
    },
    /// What is known of the spool makes no sense.
    #[error("{} is damaged: {why}. Remove it: what is in the bucket is found again by looking there", path.display())]
    BadState {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// There is nowhere to put a spool.
    #[error("there is no place for a spool, as HOME is not set: name a directory with --spool")]
    NoSpool,
    /// The spool.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// No event loop.
    #[error("starting an event loop failed: {source}")]
    Runtime {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A failed system call on the spool.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Completes "cannot …".
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Sorts what the backend says. `doing` completes "cannot … URL".
    pub(super) fn of(url: String, doing: &'static str, source: &object_store::Error) -> Self {
        let all = words(source);
        let why = in_short(&all);
        let says = |marks: &[&str]| marks.iter().any(|mark| all.contains(mark));
        if says(&["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]) {
            return Self::NoBucket { url, why };
        }
        if says(&["QuotaExceeded", "StorageFull", "InsufficientStorage", "EntityTooLarge", "No space left"]) {
            return Self::Full { url, doing, why };
        }
        // Not every request has its status as the kind of its error; so as `RequestError::Status` says it.
        if says(&["status code: 401", "status code: 403"]) {
            return Self::Denied { url, doing, why };
        }
        match source {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied { url, doing, why }
            }
            object_store::Error::NotFound { .. } => Self::Gone { url, doing },
            _ => Self::Failed { url, doing, why, answered: all.contains("status code: 4") },
        }
    }

    pub(super) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), doing, source }
    }

    /// Whether trying again later may help, without anybody doing anything to this program.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Self::NoBucket { .. }
                | Self::Denied { .. }
                | Self::Full { .. }
                | Self::Failed { .. }
                | Self::Gone { .. }
                | Self::Io { .. }
        )
    }

    /// Whether the bucket could not be reached at all, which says nothing about what is there.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Failed { answered: false, .. })
    }

    /// The exit code of `cr` for this error: 2 for a wrong URL, 122 for what is wrong with the store, 124 for failed input or output,
    /// 125 for what should not happen.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadUrl { .. } | Self::NoSpool => 2,
            Self::NoBucket { .. }
            | Self::NoStore { .. }
            | Self::Gone { .. }
            | Self::Damaged { .. }
            | Self::OtherFormat { .. }
            | Self::OtherJob { .. }
            | Self::Conflict { .. }
            | Self::HoldsChain { .. }
            | Self::OtherBucket { .. }
            | Self::Busy { .. }
            | Self::BadState { .. } => 122,
            Self::Denied { .. } | Self::Full { .. } | Self::Failed { .. } | Self::Io { .. } => 124,
            Self::OnlyLocal { code, .. } => *code,
            Self::Store(error) => error.exit_code(),
            Self::Runtime { .. } => 125,
        }
    }
}

/// The error and all that is behind it.
fn words(error: &dyn std::error::Error) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !all.contains(&more) {
            all = format!("{all}: {more}");
        }
        next = error.source();
    }
    all
}

/// What a server's answer says, or what lies at the bottom of it.
fn in_short(all: &str) -> String {
    let between = |open: &str, close: &str| Some(all.split_once(open)?.1.split_once(close)?.0.trim().to_owned());
    match (between("<Code>", "</Code>"), between("<Message>", "</Message>")) {
        (Some(code), Some(message)) if !message.is_empty() => format!("{code}: {message}"),
        (Some(code), _) => code,
        // Lines and lines of how often it was tried, and then why it failed.
        _ => all.rsplit(" - ").next().unwrap_or(all).replace('\n', " ").trim().trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_words_are_found() {
        let xml = "Client error with status 403: <?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>";
        assert_eq!(in_short(xml), "AccessDenied: no");
        assert_eq!(in_short("<Code>SlowDown</Code>"), "SlowDown");
        let refused =
            "Generic S3 error: Error performing GET http://x in 1s, after 4 retries  - HTTP error: Connection refused";
        assert_eq!(in_short(refused), "HTTP error: Connection refused");
    }
}
