//! One checkpoint without a resident controller, and what an interruption leaves of it.

use super::engine::{Engine, How, Origin};
use super::journal::{Journal, Planned, Trigger};
use super::signals::Signals;
use super::{event_loop, protocol};
use crate::bucket::Gate;
use crate::checkpoint::{self, Report};
use crate::describe::Checkpoint;
use crate::error::Result;
use crate::store::{Store, StoreWriter};

/// Holds `pid` for one checkpoint; with `kill`, ends it once that is durable. Signals are blocked by now.
pub(super) fn checkpoint(
    pid: i32,
    writer: StoreWriter,
    kill: bool,
    options: &checkpoint::Options,
) -> Result<Checkpoint> {
    let store = writer.store().clone();
    let mut journal = Journal::open(store.dir());
    let engine = Engine::start(Origin::Process(pid), writer, options.clone(), None, Gate::default())?;
    let taken = event_loop()?.block_on(take(engine, kill, &store));
    match taken {
        Ok(report) => {
            let checkpoint = Checkpoint::from(&report);
            journal.note(Trigger::Request, &Planned::default(), Ok(&checkpoint));
            Ok(checkpoint)
        }
        Err(error) => {
            journal.note(Trigger::Request, &Planned::default(), Err(&protocol::Failure::from(&error)));
            Err(error)
        }
    }
}

async fn take(mut engine: Engine, kill: bool, store: &Store) -> Result<Report> {
    let signals = Signals::new()?;
    tokio::select! {
        begun = engine.begun() => drop(begun?),
        interruption = signals.interruption("before the job was stopped") => return Err(interruption?),
    }
    let mut flight = engine.order(How { kill, ..How::default() });
    tokio::select! {
        taken = flight.landed() => {
            engine.end();
            taken.map(|landed| landed.report)
        }
        interruption = signals.interruption("in the middle of a checkpoint; the job runs on") => {
            // The engine is in the middle of it, and ends with this process; the job then goes on by itself. We still
            // hold the lock, so what is not finished is ours.
            store.remove_unfinished()?;
            Err(interruption?)
        }
    }
}
