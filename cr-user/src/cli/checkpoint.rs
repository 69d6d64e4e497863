//! `cr checkpoint`: one checkpoint, now.

use cr::checkpoint::{Only, Options};
use cr::seal::Keys;
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
nothing it does after the checkpoint is lost to anybody.

A checkpoint may be partial. --skip-memory and --honour-dontdump leave memory out: its mappings are restored, but not what was in \
them. --only takes some processes of the job, into a store of their own; the others are not stopped, and --kill ends only those that were taken. They can be restored if they \
have nothing in common with the others. If they have, the checkpoint is taken all the same, names what leads to the others, and can only be looked at (cr show).";

const AFTER: &str = "\
Examples:
  cr checkpoint 4711 --store ckpt
  cr checkpoint 4711 --store ckpt --skip-memory 7f5a40000000-7f5a80000000    without a cache, say
  cr checkpoint 4711 --store ckpt --kill    to free the machine; `cr restore --store ckpt` goes on later
  cr checkpoint 4711 --store ckpt --key-file ~/.cr-key    into a sealed store, which is made if there is none
  cr checkpoint 4711 --store part --only 4800    pid 4800 of the job, and its descendants
  cr checkpoint 4711 --store s3://ckpt/job42     returns once it is in the bucket

Exit codes: 0 the checkpoint is durable; 120 the job holds something that could not be restored (nothing was stopped); \
119 the store is sealed, and the key is missing or wrong; 121 no such job, process or memory; 122 the store; 124 the disk is full or failed \
(the older checkpoints are intact), or the checkpoint is durable on this machine and not yet in the bucket";

/// Take one checkpoint of a running process.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    /// The process.
    pid: i32,

    #[command(flatten)]
    store: StoreArg,

    /// Take only these processes of the job, each with its descendants: 4800,4801. Needs a store of its own.
    #[arg(long, value_name = "PID", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(1..))]
    only: Vec<i32>,

    /// With --only: without their descendants.
    #[arg(long, requires = "only")]
    single: bool,

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
        let place = self.store.place_to_make()?;
        let keys = Keys { signer: self.taking.sign.signer()?, ..place.keys.clone() };
        let progress = Progress::start(format!("taking a checkpoint of pid {}", self.pid));
        let only = (!self.only.is_empty()).then(|| Only { pids: self.only.clone(), single: self.single });
        let options = Options { only, ..self.taking.options() };
        place.begin()?;
        let taken = supervise::checkpoint(self.pid, &place.dir, &keys, self.kill, &options);
        let settled = if taken.is_ok() { place.settle() } else { Ok(()) };
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
            for what in &taken.left_out {
                output.print(&format!("  left out: {what}"));
            }
        }
        for what in &taken.missing {
            eprintln!("cr: checkpoint {} cannot be restored by itself: {what}", taken.id);
        }
        // It was taken, and is shown; that it is not where it should be is an error all the same.
        settled.inspect_err(|error| eprintln!("cr: {error}")).map_or_else(|error| Ok(error.exit_code()), |()| Ok(0))
    }
}
