//! What is said over the control socket: one JSON object a line, a request and then its answer.

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Activity, MemoryRange, Options};
use crate::compact::Report;
use crate::describe::{Checkpoint, Kind};
use crate::error::Error;
use crate::image::Compression;
use crate::object::files::external::Key;
use crate::object::files::inet::Policy;
use crate::object::files::net::queue;
use crate::policy::Reasons;
use crate::store::prune::{Pruned, Rules};

/// The version of the protocol that this program speaks.
pub const VERSION: u32 = 1;

/// What a controller is asked: `{"v":1,"cmd":"checkpoint","kill":false,"pid":42}`, `{"v":1,"cmd":"status"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
pub enum Command {
    /// Take a checkpoint now.
    Checkpoint {
        /// End the job once the checkpoint is durable.
        #[serde(default)]
        kill: bool,
        /// The job that is meant; another one is an error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
        /// What to leave out besides.
        #[serde(flatten)]
        less: Less,
    },
    /// Remove checkpoints that the rules do not keep.
    Prune {
        /// What to keep.
        #[serde(flatten)]
        rules: Rules,
        /// Only say what would be removed.
        #[serde(default)]
        dry_run: bool,
    },
    /// Make one full image of the newest checkpoint and all that it builds on.
    Compact {
        /// Most bytes a second; none: as many as there can be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bandwidth: Option<u64>,
    },
    /// Say what you hold.
    Status,
}

/// What one checkpoint leaves out, besides what the controller always leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Less {
    /// Ranges of memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_memory: Vec<MemoryRange>,
    /// Memory that is left out of core dumps.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub honour_dontdump: bool,
    /// Who outside of the job may be at the other end of its Unix sockets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<Key>,
    /// What becomes of TCP connections with somebody outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Policy>,
    /// What becomes of datagrams that the job has not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<queue::Policy>,
    /// Whether and how pages are compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

impl From<&Options> for Less {
    fn from(options: &Options) -> Self {
        let all = &options.leave_out;
        let external = options.external.clone();
        let tcp = Some(options.tcp).filter(|tcp| *tcp != Policy::default());
        let (udp, compression) = (options.udp, options.compression);
        Self { skip_memory: all.asked.clone(), honour_dontdump: all.dont_dump, external, tcp, udp, compression }
    }
}

impl Command {
    /// The command as it is sent.
    pub fn request(self) -> Request {
        Request { v: VERSION, command: self }
    }
}

/// What a controller answers: `{"v":1,"ok":…}` or `{"v":1,"error":{"code":121,"message":"…"}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`].
    pub v: u32,
    /// The rest.
    #[serde(flatten)]
    pub answer: Answer,
}

/// The two kinds of answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It was done.
    Ok(Done),
    /// It was not.
    Error(Failure),
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Done {
    /// The checkpoint that was taken.
    Checkpoint(Checkpoint),
    /// The state of the controller.
    Status(Box<Status>),
    /// What was removed.
    Pruned(Pruned),
    /// What was compacted.
    Compacted(Report),
}

/// The state of a controller. The names are those of the documented JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The job.
    pub pid: i32,
    /// Whether a checkpoint is being taken.
    pub busy: bool,
    /// Checkpoints that this controller has taken.
    pub taken: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Milliseconds between checkpoints, as it is now; none without an interval.
    pub interval_ms: Option<u64>,
    /// Milliseconds until the next checkpoint is due.
    #[serde(default)]
    pub next_ms: Option<u64>,
    /// The numbers behind the interval, if the controller chooses it.
    #[serde(default)]
    pub auto: Option<Reasons>,
    /// The last checkpoints that this controller has taken, the newest last.
    #[serde(default)]
    pub last: Vec<Taken>,
    /// What the job is doing; none before it was asked for the first time.
    #[serde(default)]
    pub activity: Option<Activity>,
    /// How old that is, in milliseconds: more than 0 while a checkpoint is under way, when nobody asks.
    #[serde(default)]
    pub activity_age_ms: u64,
    /// How far the bucket is behind; none where the store is not the spool of one.
    #[serde(default)]
    pub uploads: Option<Uploads>,
    /// What this controller compacts, or has compacted last; none before it has begun to.
    #[serde(default)]
    pub compaction: Option<Compaction>,
}

/// How far a bucket is behind its spool. The names are those of the documented JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploads {
    /// The bucket's URL.
    pub to: String,
    /// The newest checkpoint that is there.
    pub newest: Option<u64>,
    /// How many checkpoints are not there yet.
    pub waiting: u64,
    /// Why nothing is uploaded at the moment.
    pub error: Option<Failure>,
}

/// A compaction. The names are those of the documented JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compaction {
    /// The checkpoint that it makes one image of.
    pub from: Option<u64>,
    /// How far it is.
    #[serde(flatten)]
    pub state: CompactionState,
    /// How long ago that began, in milliseconds: it, if it is under way; else its end.
    pub age_ms: u64,
}

/// How far a compaction is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CompactionState {
    /// Pages are being copied.
    UnderWay {
        /// How many are left.
        left_pages: u64,
    },
    /// It has come to an end.
    Done {
        /// The full image that came of it.
        id: u64,
        /// Bytes of its file.
        stored_bytes: u64,
        /// How long it took, in milliseconds.
        total_ms: u64,
    },
    /// Nothing came of it.
    Failed {
        /// Why.
        error: Failure,
    },
}

/// A checkpoint that a controller has taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// Its number in the store.
    pub id: u64,
    /// `full` or `delta`.
    pub kind: Kind,
    /// When the job was frozen (RFC 3339, UTC).
    pub taken_at: String,
    /// Bytes of its file.
    pub stored_bytes: u64,
    /// How long the job stood still, in milliseconds.
    pub frozen_ms: f64,
    /// How long it all took, in milliseconds.
    pub total_ms: f64,
    /// How long ago it was durable, in milliseconds.
    pub age_ms: u64,
}

/// An error with its exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code of `cr` for it.
    pub code: u8,
    /// What, where, why, and what to do.
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { code: error.exit_code(), message: error.to_string() }
    }
}

impl From<Failure> for Error {
    fn from(Failure { code, message }: Failure) -> Self {
        Self::Controller { code, message }
    }
}

impl Response {
    /// That it was done.
    pub fn ok(done: Done) -> Self {
        Self { v: VERSION, answer: Answer::Ok(done) }
    }

    /// That it was not.
    pub fn error(code: u8, message: impl Into<String>) -> Self {
        Self { v: VERSION, answer: Answer::Error(Failure { code, message: message.into() }) }
    }
}

/// Reads a request, or says why it is none: what to answer then.
///
/// # Errors
/// When it is no request, or one of another version.
pub fn parse(line: &str) -> Result<Command, Failure> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let failure = |message| Failure { code: 125, message };
    let bad = |why: serde_json::Error| failure(format!("the controller does not understand the request: {why}"));
    let Version { v } = serde_json::from_str(line).map_err(bad)?;
    if v != VERSION {
        let message =
            format!("the controller speaks version {VERSION} of the protocol, not {v}: use the `cr` that started it");
        return Err(failure(message));
    }
    serde_json::from_str::<Request>(line).map(|request| request.command).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::prune::{Fate, Reason};

    #[test]
    fn requests_are_as_documented() {
        assert_eq!(
            parse(r#"{"v":1,"cmd":"checkpoint","kill":true}"#).unwrap(),
            Command::Checkpoint { kill: true, pid: None, less: Less::default() }
        );
        assert_eq!(parse(r#"{"v":1,"cmd":"status"}"#).unwrap(), Command::Status);
        let less = Less {
            skip_memory: vec!["1000-3000".parse().unwrap()],
            honour_dontdump: true,
            external: vec!["unix:@a".parse().unwrap()],
            tcp: Some(Policy::Close),
            udp: Some(queue::Policy::Drop),
            compression: Some(Compression::Zstd),
        };
        let command = Command::Checkpoint { kill: false, pid: None, less };
        let line = serde_json::to_string(&command.clone().request()).unwrap();
        assert_eq!(
            line,
            r#"{"v":1,"cmd":"checkpoint","kill":false,"skip_memory":["0x1000-0x3000"],"honour_dontdump":true,"external":["unix:@a"],"tcp":"close","udp":"drop","compression":"zstd"}"#
        );
        assert_eq!(parse(&line).unwrap(), command);
        let command = Command::Checkpoint { kill: false, pid: Some(7), less: Less::default() };
        let sent = serde_json::to_string(&command.request()).unwrap();
        assert_eq!(sent, r#"{"v":1,"cmd":"checkpoint","kill":false,"pid":7}"#);
        let rules = Rules { last: Some(3), bytes: Some(1 << 30), ..Rules::default() };
        let command = Command::Prune { rules, dry_run: true };
        let line = serde_json::to_string(&command.clone().request()).unwrap();
        assert_eq!(line, r#"{"v":1,"cmd":"prune","keep_last":3,"keep_bytes":1073741824,"dry_run":true}"#);
        assert_eq!(parse(&line).unwrap(), command);
        let command = Command::Compact { bandwidth: Some(1 << 20) };
        let line = serde_json::to_string(&command.clone().request()).unwrap();
        assert_eq!(line, r#"{"v":1,"cmd":"compact","bandwidth":1048576}"#);
        assert_eq!(parse(&line).unwrap(), command);
        assert_eq!(parse(r#"{"v":1,"cmd":"compact"}"#).unwrap(), Command::Compact { bandwidth: None });
        let bare = Command::Prune { rules: Rules::default(), dry_run: false };
        assert_eq!(parse(r#"{"v":1,"cmd":"prune"}"#).unwrap(), bare, "which is refused when it is carried out");
    }

    #[test]
    fn other_versions_and_nonsense_get_an_answer() {
        for line in [r#"{"v":2,"cmd":"checkpoint"}"#, r#"{"v":1,"cmd":"dance"}"#, "", "[]", "{"] {
            assert_eq!(parse(line).unwrap_err().code, 125, "{line}");
        }
    }

    #[test]
    fn answers_survive_the_way() {
        let status = Status {
            pid: 7,
            busy: false,
            taken: 3,
            failed: 0,
            interval_ms: Some(1000),
            next_ms: Some(10),
            auto: Some(crate::policy::Auto::new(std::time::Duration::from_secs(60)).reasons()),
            last: vec![Taken {
                id: 1,
                kind: Kind::Delta,
                taken_at: "2023-11-14T22:13:20.123Z".into(),
                stored_bytes: 4096,
                frozen_ms: 1.5,
                total_ms: 20.25,
                age_ms: 3,
            }],
            activity: Some(Activity { write_faults: Some(9), ..Activity::default() }),
            activity_age_ms: 0,
            uploads: Some(Uploads {
                to: "s3://ckpt/job".into(),
                newest: Some(2),
                waiting: 1,
                error: Some(Failure { code: 124, message: "no network".into() }),
            }),
            compaction: None,
        };
        let compactions = [
            CompactionState::UnderWay { left_pages: 7 },
            CompactionState::Done { id: 3, stored_bytes: 9, total_ms: 5 },
            CompactionState::Failed { error: Failure { code: 124, message: "no room".into() } },
        ];
        let compactions = compactions.map(|state| Compaction { from: Some(2), state, age_ms: 4 });
        assert_eq!(
            serde_json::to_string(&compactions[1]).unwrap(),
            r#"{"from":2,"state":"done","id":3,"stored_bytes":9,"total_ms":5,"age_ms":4}"#
        );
        let statuses = compactions.map(|compaction| Status { compaction: Some(compaction), ..status.clone() });
        let kept = Fate {
            id: 2,
            parent: None,
            taken_at: 1_700_000_000_000_000_000,
            bytes: 4096,
            reasons: vec![Reason::Newest, Reason::NewestIntact],
            needed_by: Vec::new(),
            problem: None,
        };
        let pruned = Pruned { dry_run: false, kept: vec![kept], removed: Vec::new() };
        let compacted = Report {
            id: 18,
            compacted_from: Some(17),
            images: 17,
            stored_pages: 9,
            stored_bytes: 50_000,
            copied_pages: 2,
            shared_pages: 7,
            total_ms: 12,
        };
        let full = Report { compacted_from: None, images: 1, ..compacted.clone() };
        let done =
            [Done::Status(Box::new(status)), Done::Pruned(pruned), Done::Compacted(compacted), Done::Compacted(full)];
        let statuses = statuses.map(|status| Done::Status(Box::new(status)));
        let done = done.into_iter().chain(statuses).map(Response::ok);
        for response in done.chain([Response::error(121, "gone")]) {
            let line = serde_json::to_string(&response).unwrap();
            assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), response, "{line}");
        }
    }

    #[test]
    fn the_status_of_an_older_controller_is_understood() {
        let line = r#"{"v":1,"ok":{"pid":7,"busy":false,"taken":3,"failed":0,"interval_ms":null}}"#;
        let Answer::Ok(Done::Status(status)) = serde_json::from_str::<Response>(line).unwrap().answer else {
            panic!("not taken for a status")
        };
        assert_eq!((status.pid, status.activity, status.last), (7, None, Vec::new()));
        assert_eq!((status.uploads, status.compaction), (None, None));
    }
}
