//! `cr check`: what this kernel can do, or what of a job could not be restored.

use cr::checkpoint::Job;
use cr::probe::{Features, Need};
use serde_json::json;

use super::{Execute, Output};

const LONG: &str = "\
Says whether checkpoints can be taken.

Without PID: tries out what the kernel offers and says, line by line, what works, what it is for, and what is lost \
without it; then how written pages will be found.

With PID: looks through a running process for everything that could not be restored, and names each such object with \
the reason and what to do about it. Nothing is stopped and nothing is changed.";

const AFTER: &str = "\
Examples:
  cr check               is this machine fit?
  cr check 4711          can process 4711 be checkpointed?
  cr check 4711 --json   the same for a script

Exit codes: 0 checkpoints can be taken; 120 they cannot (the reasons are listed); 121 no such job, or not one that may \
be looked at";

/// Say what this kernel offers, or what of a job could not be restored.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    /// The process to look through.
    pid: Option<i32>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        match self.pid {
            None => Ok(kernel(output)),
            Some(pid) => job(output, pid),
        }
    }
}

const CANNOT: u8 = 120;

fn kernel(output: Output) -> u8 {
    let features = Features::probe();
    let ok = features.can_checkpoint();
    if output.json {
        output.print_json(&json!({
            "ok": ok,
            "can_restore": features.can_restore(),
            "features": features.features,
            "tracker": features.tracker.describe(),
            "in_pid_namespace": features.in_pid_namespace,
        }));
    } else {
        let mut table = output.table(&["FEATURE", "", "DETAIL", "WITHOUT IT"]);
        for feature in &features.features {
            let word = if feature.available { "yes" } else { "no" };
            let fine = feature.available || feature.needed_for == Need::More;
            let name = comfy_table::Cell::new(feature.name);
            let row = [name, output.judged(word, fine), feature.detail.as_str().into(), feature.lost_without.into()];
            table.add_row(row);
        }
        output.print_table(&table);
        output.print(&format!("\nwritten pages are found by: {}", features.tracker.describe()));
        if features.in_pid_namespace {
            output.print("cr runs in a pid namespace: pids are those that are valid here");
        }
        output.print(match (ok, features.can_restore()) {
            (true, true) => "checkpoints can be taken and restored",
            (true, false) => "checkpoints can be taken, but not restored here",
            (false, _) => "checkpoints cannot be taken",
        });
    }
    if ok { 0 } else { CANNOT }
}

fn job(output: Output, pid: i32) -> cr::Result<u8> {
    let refusals = Job::open(pid)?.preflight()?;
    let ok = refusals.is_empty();
    if output.json {
        output.print_json(&json!({ "ok": ok, "refusals": refusals }));
    } else if ok {
        output.print(&format!("pid {pid} can be checkpointed"));
    } else {
        let mut table = output.table(&["PID", "WHERE", "WHY", "WHAT TO DO"]);
        for refusal in &refusals {
            table.add_row([&refusal.pid.to_string(), &refusal.place, &refusal.why, &refusal.todo]);
        }
        output.print_table(&table);
    }
    Ok(if ok { 0 } else { CANNOT })
}
