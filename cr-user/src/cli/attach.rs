//! `cr attach`: a job that runs already.

use cr::supervise::{self, Outcome};
use serde_json::json;

use super::common::{Supervision, exit_code};
use super::{Execute, Output};

const LONG: &str = "\
Takes checkpoints of a process that runs already, until it ends.

The process keeps its parent, its terminal and its signals: nothing is passed on to it. cr ends with its exit code, as \
far as the kernel tells (Linux 6.15 and later; 0 otherwise). SIGINT, SIGTERM, SIGQUIT or SIGHUP make cr let go of it: a \
checkpoint under way is completed first, then cr ends with 0 and the process runs on.

If the store holds checkpoints of this process already, the first new one is found by comparing all memory with them, \
and the chain goes on with a delta.";

const AFTER: &str = "\
Examples:
  cr attach 4711 --store ckpt --interval 5min
  cr attach 4711 --store ckpt --interval 5min --detach
        returns as soon as the process is held; the controller goes on in the background and writes what it has to say to \
ckpt/controller.log. `cr checkpoint 4711 --store ckpt` asks it for a checkpoint

Exit codes: the job's own; 119 the store is sealed, and the key is missing or wrong; 121 no such job, or not one that may be checkpointed; 122 the store holds another job, or is in \
use by another controller";

/// Take checkpoints of a process that runs already, until it ends.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    /// The process.
    pid: i32,

    #[command(flatten)]
    supervision: Supervision,

    /// Go on in the background once the process is held.
    #[arg(long)]
    detach: bool,

    /// With --detach: print {"pid":PID} on standard output.
    #[arg(long)]
    json: bool,
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn contradiction(&self) -> Option<String> {
        self.supervision.contradiction()
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let pid = self.pid;
        let place = self.supervision.store.place_to_make()?;
        place.begin()?;
        let outcome = supervise::attach(&self.supervision.config(&place)?, pid, self.detach, |_| ())?;
        match outcome {
            Outcome::Detached(_) if output.json => output.print_json(&json!({ "pid": pid })),
            Outcome::LetGo => log::warn!("let go of pid {pid}, which runs on without further checkpoints"),
            _ => (),
        }
        Ok(exit_code(&outcome))
    }
}
