//! `log.jsonl`: one line an attempt to take a checkpoint, or to compact a chain, so that it can be told later what was lost and when.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::protocol::Failure;
use crate::compact;
use crate::describe::Checkpoint;
use crate::policy::Reasons;

/// Name of the journal in a store.
pub const JOURNAL: &str = "log.jsonl";

/// Why something was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Trigger {
    /// The interval was over.
    Interval,
    /// Somebody asked for it.
    Request,
    /// The chain had become too long.
    Chain,
}

/// What was planned when an attempt had ended.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Planned {
    /// The interval in force, in milliseconds: from the start of this checkpoint to the start of the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interval_ms: Option<u64>,
    /// The numbers behind it, if it is ours to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auto: Option<Reasons>,
    /// Why this one was to be full where a delta was possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) full_because: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    trigger: Trigger,
    #[serde(flatten)]
    planned: &'a Planned,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome<'a> {
    Checkpoint(&'a Checkpoint),
    Error(&'a Failure),
    Compaction(&'a compact::Report),
    #[serde(rename = "compaction_error")]
    NoCompaction(&'a Failure),
}

/// What became of an upload.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Upload<'a> {
    /// A checkpoint is in the bucket.
    Done {
        /// Its number.
        id: u64,
        /// Bytes of its image.
        bytes: u64,
        /// How long it took.
        ms: u64,
    },
    /// A checkpoint was removed from there, since it was pruned.
    Removed {
        /// Its number.
        id: u64,
    },
    /// None gets there at the moment.
    Error(&'a Failure),
}

/// The journal of a store, open for writing.
#[derive(Debug)]
pub(super) struct Journal(Option<File>);

impl Journal {
    /// Opens the journal in a store. Without it (on a full disk, say) checkpoints are taken all the same.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join(JOURNAL);
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let file = file.and_then(|file| end_line(&file).map(|()| file));
        Self(file.inspect_err(|e| log::warn!("cannot write {}: {e}", path.display())).ok())
    }

    /// Adds a line about a checkpoint.
    pub(super) fn note(&mut self, trigger: Trigger, planned: &Planned, outcome: Result<&Checkpoint, &Failure>) {
        self.add(trigger, planned, outcome.map_or_else(Outcome::Error, Outcome::Checkpoint));
    }

    /// Adds a line about a compaction.
    pub(super) fn note_compaction(&mut self, trigger: Trigger, outcome: Result<&compact::Report, &Failure>) {
        let outcome = outcome.map_or_else(Outcome::NoCompaction, Outcome::Compaction);
        self.add(trigger, &Planned::default(), outcome);
    }

    fn add(&mut self, trigger: Trigger, planned: &Planned, outcome: Outcome) {
        let Some(file) = &mut self.0 else { return };
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut line = serde_json::to_vec(&Line { at, trigger, planned, outcome }).expect("plain structures");
        line.push(b'\n');
        if let Err(e) = file.write_all(&line) {
            log::info!("cannot write {JOURNAL}: {e}");
        }
    }
}

impl Journal {
    /// Adds a line about a checkpoint that is in the bucket now, or about why none gets there.
    pub(super) fn note_upload(&mut self, upload: &Upload<'_>) {
        #[derive(Serialize)]
        struct UploadLine<'a> {
            at: String,
            upload: &'a Upload<'a>,
        }
        let Some(file) = &mut self.0 else { return };
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut line = serde_json::to_vec(&UploadLine { at, upload }).expect("plain structures");
        line.push(b'\n');
        if let Err(e) = file.write_all(&line) {
            log::info!("cannot write {JOURNAL}: {e}");
        }
    }
}

/// A line that was cut short (the disk was full, or the power lost) must not spoil the next one.
fn end_line(mut file: &File) -> io::Result<()> {
    let size = file.metadata()?.len();
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1)?;
    }
    if last == *b"\n" { Ok(()) } else { file.write_all(b"\n") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::Auto;

    #[test]
    fn a_line_that_was_cut_short_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Failure { code: 124, message: "no room".into() };
        for size in [0, 1, 20] {
            let path = dir.path().join(JOURNAL);
            std::fs::write(&path, &br#"{"at":"2026-11-26T12"#[..size]).unwrap();
            Journal::open(dir.path()).note(Trigger::Interval, &Planned::default(), Err(&failure));
            let text = std::fs::read_to_string(&path).unwrap();
            let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
            assert_eq!(last["trigger"], "interval", "{text}");
        }
    }

    #[test]
    fn an_attempt_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path());
        let failure = Failure { code: 124, message: "no\nroom".into() };
        let reasons = Auto::new(Duration::from_secs(60)).reasons();
        let why = Some("why".to_owned());
        let planned = Planned { interval_ms: Some(1000), auto: Some(reasons.clone()), full_because: why };
        journal.note(Trigger::Interval, &planned, Err(&failure));
        journal.note(Trigger::Request, &Planned::default(), Err(&failure));
        let text = std::fs::read_to_string(dir.path().join(JOURNAL)).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["trigger"], "interval");
        assert_eq!(lines[0]["interval_ms"], 1000);
        assert_eq!(lines[0]["full_because"], "why");
        assert_eq!(serde_json::from_value::<Reasons>(lines[0]["auto"].clone()).unwrap(), reasons);
        assert_eq!(lines[1]["error"]["code"], 124);
        assert_eq!(lines[1].as_object().unwrap().len(), 3, "{}", lines[1]);
    }
}
