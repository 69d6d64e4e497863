//! What a controller knows of its job when it is asked: the last checkpoints, and what the job was doing when the engine last said so.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::engine::Seen;
use super::protocol::{Compaction, Response, Taken};
use crate::checkpoint::Activity;
use crate::describe::Checkpoint;

/// How many of the last checkpoints are told of.
const REMEMBERED: usize = 32;

/// What is known, and who wants to know it.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Those who wait for what the engine says.
    curious: Vec<oneshot::Sender<Response>>,
    activity: Option<(Activity, Instant)>,
    compaction: Option<(Compaction, Instant)>,
    /// The last checkpoints, and when they were durable.
    past: VecDeque<(Taken, Instant)>,
}

impl Board {
    /// Somebody wants to know once the engine has said what the job is doing.
    pub(super) fn ask(&mut self, reply: oneshot::Sender<Response>) {
        self.curious.push(reply);
    }

    /// Answers those who have waited.
    pub(super) fn answer(&mut self, status: &Response) {
        self.curious.drain(..).for_each(|reply| drop(reply.send(status.clone())));
    }

    /// The engine has said what the job is doing.
    pub(super) fn saw(&mut self, activity: Activity) {
        self.activity = Some((activity, Instant::now()));
    }

    /// The engine has answered a question.
    pub(super) fn heard(&mut self, seen: Seen) {
        seen.activity.into_iter().for_each(|activity| self.saw(activity));
        self.compaction = seen.compaction.map(|compaction| (compaction, Instant::now()));
    }

    /// A checkpoint is durable.
    pub(super) fn took(&mut self, of: &Checkpoint) {
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        let taken = Taken {
            id: of.id,
            kind: of.kind,
            taken_at: of.taken_at.clone(),
            stored_bytes: of.stored_bytes,
            frozen_ms: of.frozen_ms,
            total_ms: of.total_ms,
            age_ms: 0,
        };
        self.past.push_back((taken, Instant::now()));
    }

    /// What the job was doing, and how many milliseconds ago.
    pub(super) fn activity(&self) -> Option<(Activity, u64)> {
        self.activity.as_ref().map(|(activity, at)| (activity.clone(), since(*at)))
    }

    /// What the engine compacts, or has compacted last.
    pub(super) fn compaction(&self) -> Option<Compaction> {
        let (compaction, at) = self.compaction.as_ref()?;
        Some(Compaction { age_ms: compaction.age_ms + since(*at), ..compaction.clone() })
    }

    /// The last checkpoints, the newest last.
    pub(super) fn last(&self) -> Vec<Taken> {
        self.past.iter().map(|(taken, at)| Taken { age_ms: since(*at), ..taken.clone() }).collect()
    }
}

fn since(at: Instant) -> u64 {
    at.elapsed().as_millis() as u64
}
