//! Message queues, with their messages: they are read with `MSG_COPY`, which leaves them where they are.

use nix::errno::Errno;

use super::table::{Plan, Wanted};
use super::{Findings, Found, Ipc, Kind, Object, Row, Usage, Users, refusal};
use crate::error::{Error, Result};
use crate::sys::ipc as calls;

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Queue {
    /// What it has in common with other objects.
    pub object: Object,
    /// How many bytes it takes.
    pub limit: u64,
    /// Its messages, the oldest first.
    pub messages: Vec<Message>,
    /// Who sent last; 0 for nobody yet.
    pub sender: i32,
    /// Who received last; 0 for nobody yet.
    pub receiver: i32,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Message {
    /// Its type.
    pub kind: i64,
    /// Its text.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub text: Vec<u8>,
}

impl Message {
    /// As `msgsnd(2)` takes it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.text);
        bytes
    }
}

fn last_of(row: &Row) -> Vec<i32> {
    ["lspid", "lrpid"].iter().map(|name| row.get(name) as i32).filter(|pid| *pid != 0).collect()
}

/// The job's queues.
pub(super) fn find(users: &Users<'_>) -> Result<Findings> {
    let mut findings = super::find(Kind::Queue, users, |row| Some(Usage::by(last_of(row), &users.pids, row)))?;
    let Findings { found, refusals, .. } = &mut findings;
    for found in found.iter().filter(|f| f.row.get("qnum") > 0) {
        if let Err(e) = calls::peek_message(found.row.id, 0, found.row.get("cbytes") as usize)
            && e == Errno::ENOSYS
        {
            let why = "has messages, which this kernel does not show (CONFIG_CHECKPOINT_RESTORE)".to_owned();
            refusals.push(refusal(users, Kind::Queue, found.row.id, why, "wait until they were received"));
        }
    }
    Ok(findings)
}

pub(super) fn capture(found: &Found) -> Result<Queue> {
    let Found { row, object, .. } = found;
    let failed = |e| Error::system(format!("reading {} {}", Kind::Queue.name(), row.id), e);
    Ok(Queue {
        object: *object,
        limit: calls::queue_limit(row.id).map_err(failed)?,
        messages: messages(row).map_err(failed)?,
        sender: row.get("lspid") as i32,
        receiver: row.get("lrpid") as i32,
    })
}

fn messages(row: &Row) -> nix::Result<Vec<Message>> {
    let most = row.get("cbytes") as usize;
    let mut messages = Vec::new();
    while let Some((kind, text)) = calls::peek_message(row.id, messages.len(), most)? {
        messages.push(Message { kind, text });
    }
    Ok(messages)
}

impl Queue {
    /// What a restore does about it.
    ///
    /// # Errors
    /// [`Error::NotHere`] when it, or its key, is somebody else's, or when it may not be made as large.
    pub fn plan(&self, ipc: &Ipc) -> Result<Plan> {
        let usage_of = |row: &Row| Usage::by(last_of(row), &ipc.pids, row);
        let same = |row: &Row| messages(row).is_ok_and(|now| now == self.messages);
        Wanted { kind: Kind::Queue, object: &self.object, size: ("", 0) }.plan(ipc, usage_of, same)
    }

    /// Whether it is here as it was, and nobody but those who had done so have sent or received.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_unchanged(&self) -> Result<bool> {
        let rows = Kind::Queue.rows()?;
        let pids = |row: &Row| (row.get("lspid") as i32, row.get("lrpid") as i32);
        let alike = |row: &&Row| row.id == self.object.id && pids(row) == (self.sender, self.receiver);
        Ok(rows.iter().find(alike).is_some_and(|row| messages(row).is_ok_and(|now| now == self.messages)))
    }

    /// Bytes of its messages.
    pub fn bytes(&self) -> u64 {
        self.messages.iter().map(|m| m.text.len() as u64).sum()
    }
}
