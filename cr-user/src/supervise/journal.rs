//! `log.jsonl`: one line an attempt to take a checkpoint, so that it can be told later what was lost and when.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::protocol::Failure;
use crate::describe::Checkpoint;

/// Name of the journal in a store.
pub const JOURNAL: &str = "log.jsonl";

/// Why a checkpoint was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Trigger {
    /// The interval was over.
    Interval,
    /// Somebody asked for it.
    Request,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    trigger: Trigger,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome<'a> {
    Checkpoint(&'a Checkpoint),
    Error(&'a Failure),
}

/// The journal of a store, open for writing.
#[derive(Debug)]
pub(super) struct Journal(Option<File>);

impl Journal {
    /// Opens the journal in a store. Without it (on a full disk, say) checkpoints are taken all the same.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join(JOURNAL);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        Self(file.inspect_err(|e| log::warn!("cannot write {}: {e}", path.display())).ok())
    }

    /// Adds a line.
    pub(super) fn note(&mut self, trigger: Trigger, outcome: Result<&Checkpoint, &Failure>) {
        let Some(file) = &mut self.0 else { return };
        let outcome = match outcome {
            Ok(checkpoint) => Outcome::Checkpoint(checkpoint),
            Err(failure) => Outcome::Error(failure),
        };
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut line = serde_json::to_vec(&Line { at, trigger, outcome }).expect("plain structures");
        line.push(b'\n');
        if let Err(e) = file.write_all(&line) {
            log::info!("cannot write {JOURNAL}: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path());
        let failure = Failure { code: 124, message: "no\nroom".into() };
        journal.note(Trigger::Interval, Err(&failure));
        journal.note(Trigger::Request, Err(&failure));
        let text = std::fs::read_to_string(dir.path().join(JOURNAL)).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["trigger"], "interval");
        assert_eq!(lines[1]["error"]["code"], 124);
    }
}
