//! `cr restore`: a job from its checkpoints.

use clap::ValueEnum;
use cr::bucket::Need;
use cr::object::files::FilePolicy;
use cr::restore;
use cr::supervise::{self, Outcome, Started};
use serde_json::json;

use super::common::{Supervision, exit_code};
use super::keys::TrustArg;
use super::output::{Progress, bytes};
use super::{Execute, Output, intact};

const LONG: &str = "\
Restarts a job as it was at a checkpoint: same pid, memory, threads, signals, timers and open files.

The chain is validated in full first, and whatever the job needs is looked for: if a pid is taken, or a file changed, \
shrank or vanished, the error names it and nothing is started. If the checkpoint is damaged, the command line that \
restores the newest intact one is printed. The job is tracked from its first instruction on, so \
that its chain goes on with a delta.

cr then waits for the job as `cr run` does: it passes signals on, takes checkpoints every --interval, and ends with the \
job's exit code. A job that had a terminal gets the one that cr restore was called from.

Files that the job had open for writing and that grew after the checkpoint would hold the same results twice. By \
default they are cut back; what is cut off is kept in DIR/cut and named.";

const AFTER: &str = "\
Examples:
  cr restore --store ckpt                       from the newest checkpoint
  cr restore --store ckpt --id 3                from an older one
  cr restore --store ckpt --interval 10min      and go on taking checkpoints
  cr restore --store ckpt --detach              print the pid and return once the job runs
  cr restore --store ckpt --key-file ~/.cr-key  from a sealed store
  cr restore --store ckpt --trust site-key.pub  only what that key has signed
  cr restore --store ckpt --pid-namespace       where other processes have the job's pids by now
  cr restore --store s3://ckpt/job42            from a bucket: only the pages that it needs are fetched

Exit codes: the job's own (with --detach 0); 119 the store is sealed, and the key is missing or wrong, \
or nobody who is trusted has signed the checkpoint; 122 the store is damaged or in use; 123 the checkpoint cannot be restored here \
and now; 124 the bucket cannot be reached";

/// Restart a job from a checkpoint, and wait for it.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    supervision: Supervision,

    /// Which checkpoint; the newest if not given.
    #[arg(long, value_name = "N")]
    id: Option<u64>,

    /// What to do with files that the job had open for writing and that grew after the checkpoint.
    #[arg(long, value_name = "POLICY", default_value = "rollback")]
    files: Files,

    /// Restore into a fresh pid namespace, where no pid of the job is taken. cr is its init.
    #[arg(long)]
    pid_namespace: bool,

    /// Restore a checkpoint that leaves memory out: there will be zeroes there, or what is in the mapped file.
    #[arg(long)]
    accept_missing: bool,

    #[command(flatten)]
    trust: TrustArg,

    /// Leave the job to a controller in the background, and return once it runs.
    #[arg(long)]
    detach: bool,

    /// Print JSON: {"pid":PID} with --detach, and errors.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Files {
    /// Cut them back to their size at the checkpoint, and keep what is cut off.
    Rollback,
    /// Leave them as they are.
    Keep,
    /// Restore nothing if there are any.
    Refuse,
}

impl From<Files> for FilePolicy {
    fn from(files: Files) -> Self {
        match files {
            Files::Rollback => Self::Rollback,
            Files::Keep => Self::Keep,
            Files::Refuse => Self::Refuse,
        }
    }
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn contradiction(&self) -> Option<String> {
        self.supervision.contradiction()
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let place = self.supervision.store.place()?;
        let mut config = self.supervision.config(&place)?;
        config.keys.trust = self.trust.trust()?;
        // A controller that forks itself must not have a thread yet, such as the one that draws.
        let progress = (!self.detach && !self.pid_namespace).then(|| Progress::start("restoring"));
        let progress = std::cell::Cell::new(progress);
        let finish = || progress.take().into_iter().for_each(Progress::finish);
        let started = |started: &Started| {
            finish();
            tell_cuts(started);
        };
        place.fetch(Need::Checkpoint(self.id))?;
        let (files, accept_missing) = (self.files.into(), self.accept_missing);
        let tcp = self.supervision.taking.tcp();
        let options = restore::Options { files, accept_missing, resume: false, tcp };
        let outcome = supervise::restore(&config, self.id, options, self.pid_namespace, self.detach, started);
        finish();
        // Of a bucket only what was asked for is here: `cr verify` reads the rest.
        let offer = |error| match place.bucket {
            None => intact::offer(error, &config, self.id),
            Some(_) => error,
        };
        let outcome = outcome.map_err(offer)?;
        if let Outcome::Detached(started) = &outcome {
            if output.json {
                output.print_json(&json!({ "pid": started.pid, "cuts": started.cuts }));
            } else {
                output.print(&started.pid.to_string());
            }
        }
        Ok(exit_code(&outcome))
    }
}

/// Names the files that were cut back.
pub(super) fn tell_cuts(started: &Started) {
    for cut in &started.cuts {
        let (path, size, kept) = (cut.path.display(), bytes(cut.bytes), cut.kept_at.display());
        eprintln!("cr: {path} had grown after the checkpoint: cut back by {size}, which are kept in {kept}");
    }
}
