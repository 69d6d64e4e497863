//! `cr verify`: full validation without restoring.

use cr::bucket::Need;
use serde_json::json;

use super::common::StoreArg;
use super::output::Progress;
use super::{Execute, Output};

const LONG: &str = "\
Reads every byte of every checkpoint and checks it: headers, hashes, the checksum of each page, that each delta builds on \
exactly the checkpoint that it was made on, that the records make sense together, and that each page of each mapping has \
just one source: the memory that they speak of is what the chain holds.

Says which checkpoints cannot be restored and why, and which is the newest that can.";

const AFTER: &str = "\
Examples:
  cr verify --store ckpt
  cr verify --store ckpt --json    {\"ok\", \"checkpoints\", \"problems\": [{\"id\", \"what\"}], \"newest_intact\"}

Exit codes: 0 every checkpoint can be restored from; 122 some cannot, or it is no store";

/// Check all checkpoints of a store in full, without restoring.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArg,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const DAMAGED: u8 = 122;

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let store = self.store.open(Need::Everything)?;
        store.need_key()?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let progress = Progress::start(format!("verifying {}", self.store.store.display()));
        let report = store.verify_with(threads, &cr::integrity::judge);
        progress.finish();
        let report = report?;
        if output.json {
            let problems = report.problems.iter().map(|p| json!({ "id": p.id, "what": p.error.to_string() }));
            output.print_json(&json!({
                "ok": report.is_ok(),
                "checkpoints": report.checkpoints.len(),
                "problems": problems.collect::<Vec<_>>(),
                "newest_intact": report.newest_intact,
            }));
        } else {
            for problem in &report.problems {
                output.print(&problem.to_string());
            }
            let all = match report.checkpoints.len() {
                0 => "there is no checkpoint".to_owned(),
                1 => "1 checkpoint".to_owned(),
                n => format!("{n} checkpoints"),
            };
            output.print(&match (report.problems.len(), report.newest_intact) {
                (0, None) => all,
                (0, Some(newest)) => format!("{all}, all intact; the newest is {newest}"),
                (bad, Some(newest)) => format!("{all}, {bad} of them not usable; the newest intact one is {newest}"),
                (bad, None) => format!("{all}, {bad} of them not usable, and none that is"),
            });
        }
        Ok(if report.is_ok() { 0 } else { DAMAGED })
    }
}
