//! `cr checkpoint`: one checkpoint, now.

use cr::supervise;

use super::common::{StoreArg, Taking};
use super::output::{Progress, bytes};
use super::{Execute, Output};

const LONG: &str = "\
Takes one checkpoint of a running process.

If a controller (cr run, cr attach, cr restore) holds the process, it is asked, and writes a delta: only what changed. \
Otherwise cr holds the process for this one checkpoint: the first into a store is a full one, later ones are deltas that \
are found by reading all memory and comparing it with the checkpoint before.

The process goes on running. With --kill it is ended by SIGKILL, but only once the checkpoint is durable, so that \
nothing it does after the checkpoint is lost to anybody.";

const AFTER: &str = "\
Examples:
  cr checkpoint 4711 --store ckpt
  cr checkpoint 4711 --store ckpt --skip-memory 7f5a40000000-7f5a80000000    without a cache, say
  cr checkpoint 4711 --store ckpt --kill    to free the machine; `cr restore --store ckpt` goes on later

Exit codes: 0 the checkpoint is durable; 120 the job holds something that could not be restored (nothing was stopped); \
121 no such job; 122 the store; 124 the disk is full or failed (the older checkpoints are intact)";

/// Take one checkpoint of a running process.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    /// The process.
    pid: i32,

    #[command(flatten)]
    store: StoreArg,

    /// End the process once the checkpoint is durable.
    #[arg(long)]
    kill: bool,

    #[command(flatten)]
    taking: Taking,

    /// Print the checkpoint as JSON: an object as in `cr list --json`.
    #[arg(long)]
    json: bool,
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let progress = Progress::start(format!("taking a checkpoint of pid {}", self.pid));
        let taken = supervise::checkpoint(self.pid, &self.store.store, self.kill, &self.taking.options());
        progress.finish();
        let taken = taken?;
        if output.json {
            output.print_json(&taken);
        } else {
            let (id, kind, size) = (taken.id, taken.kind.name(), bytes(taken.stored_bytes));
            let (frozen, total) = (taken.frozen_ms, taken.total_ms);
            output.print(&format!("checkpoint {id}: {kind}, {size}, frozen {frozen:.1} ms of {total:.1} ms"));
            for reason in &taken.widened {
                output.print(&format!("  {reason}"));
            }
        }
        Ok(0)
    }
}
