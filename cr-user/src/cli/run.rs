//! `cr run`: a job from its start on.

use std::ffi::OsString;

use cr::supervise::{self, Command};

use super::common::{Supervision, exit_code};
use super::keys::TrustArg;
use super::restore::tell_cuts;
use super::{Execute, Output, intact};

const LONG: &str = "\
Starts a job and takes checkpoints of it until it ends.

The job runs in the same session and process group, on the same terminal, as if it had been started without cr. Signals \
that are sent to cr are passed on to it, and cr ends with its exit code. If cr dies, the job runs on without it.

The first checkpoint is taken one interval after the start (with `--interval auto` after 30 s at the latest). `cr checkpoint PID --store DIR` asks for one at any time. A \
checkpoint that fails is reported on standard error and in DIR/log.jsonl, and tried again at the next interval; the job \
goes on. Where deltas are about as large as a full checkpoint would be, a full one is taken now and then: it keeps the chain \
short (docs/policy.md).";

const AFTER: &str = "\
Examples:
  cr run --store ckpt --interval 10min -- ./solver --input mesh.h5
  cr run --store ckpt --interval 10min --resume -- ./solver --input mesh.h5
        the same in a batch script that is run again after a crash or a preemption: goes on from the last checkpoint, \
and starts anew only if there is none
  cr run --store ckpt --interval auto --mtbf 12h -- ./solver --input mesh.h5
        as often as pays on machines of which one fails every twelve hours
  cr run --store ckpt --key-file ~/.cr-key --interval 10min -- ./solver --input mesh.h5
        into a sealed store: what is written there cannot be read without the key
  cr run --store s3://ckpt/job42 --interval 10min --resume -- ./solver --input mesh.h5
        each checkpoint is uploaded in the background; the same line on another machine goes on (docs/buckets.md)

Exit codes: the job's own, 128 and the signal's number if a signal ended it; 126 if CMD cannot be executed, 127 if it is \
not found; 119 if the store is sealed and the key missing or wrong; 122 if the store holds checkpoints and --resume is not given, or the bucket is none; 124 if the bucket denies access, or with --resume \
cannot be reached";

/// Start a job and take checkpoints of it until it ends.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    supervision: Supervision,

    /// If the store holds checkpoints, restart the job from the newest instead of starting CMD.
    #[arg(long)]
    resume: bool,

    #[command(flatten)]
    trust: TrustArg,

    /// The command, with its arguments.
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Execute for Args {
    fn json(&self) -> bool {
        false
    }

    fn contradiction(&self) -> Option<String> {
        self.supervision.contradiction()
    }

    fn execute(&self, _: Output) -> cr::Result<u8> {
        let (program, args) = self.command.split_first().expect("clap requires one");
        let command = Command { program: program.clone(), args: args.to_vec() };
        let place = self.supervision.store.place_to_make()?;
        let mut config = self.supervision.config(&place)?;
        config.keys.trust = self.trust.trust()?;
        if self.resume {
            place.fetch_if_any()?;
        } else {
            place.begin()?;
        }
        let outcome = supervise::run(&config, &command, self.resume, tell_cuts);
        let offers = self.resume && place.bucket.is_none();
        let outcome = outcome.map_err(|error| if offers { intact::offer(error, &config, None) } else { error })?;
        Ok(exit_code(&outcome))
    }
}
