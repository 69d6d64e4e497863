//! `cr verify`: full validation without restoring.

use cr::bucket::{self, Need};
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
  cr verify --store ckpt --json    {\"ok\", \"checkpoints\", \"problems\": [{\"id\", \"what\"}], \"incomplete\", \"bucket\", \"newest_intact\"}
  cr verify --store s3://ckpt/job42    all that is in the bucket

Exit codes: 0 every checkpoint can be restored from; 122 some cannot, or it is no store; 123 nothing is damaged, but this is the spool \
of a bucket, which lacks pages (of the checkpoints that \"incomplete\" lists) that are there";

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
const NOT_HERE: u8 = 123;

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let store = self.store.open(Need::Everything)?;
        store.need_key()?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let progress = Progress::start(format!("verifying {}", self.store.store.display()));
        let (bucket, partial) = bucket::partial(store.dir())?.unzip();
        let report = store.verify_partial(threads, &cr::integrity::judge, &partial.unwrap_or_default());
        progress.finish();
        let report = report?;
        if output.json {
            let problems = report.problems.iter().map(|p| json!({ "id": p.id, "what": p.error.to_string() }));
            output.print_json(&json!({
                "ok": report.is_ok(),
                "checkpoints": report.checkpoints.len(),
                "problems": problems.collect::<Vec<_>>(),
                "incomplete": report.incomplete,
                "bucket": bucket,
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
            let whole = report.checkpoints.len() - report.incomplete.len();
            output.print(&match (report.problems.len(), report.newest_intact) {
                (0, None) if report.incomplete.is_empty() => all,
                (0, None) => format!("{all}, of which none is whole here"),
                (0, Some(newest)) if whole < report.checkpoints.len() => {
                    format!("{all}, {whole} of them whole here, and intact; the newest is {newest}")
                }
                (0, Some(newest)) => format!("{all}, all intact; the newest is {newest}"),
                (bad, Some(newest)) => format!("{all}, {bad} of them not usable; the newest intact one is {newest}"),
                (bad, None) => format!("{all}, {bad} of them not usable, and none that is"),
            });
            if let Some(url) = bucket.filter(|_| !report.incomplete.is_empty()) {
                output.print(&format!(
                    "This is the spool of {url}, and lacks pages of {} that no restore here has needed; what is here of them is intact. \
                     This checks all of it, in the bucket: cr verify --store {url}",
                    in_words(&report.incomplete)
                ));
            }
        }
        Ok(match report {
            _ if report.is_ok() => 0,
            _ if report.problems.is_empty() => NOT_HERE,
            _ => DAMAGED,
        })
    }
}

/// Checkpoints, by their numbers.
fn in_words(ids: &[u64]) -> String {
    /// More are not listed.
    const MOST: usize = 8;
    match ids {
        [id] => format!("checkpoint {id}"),
        [first, .., last] if ids.len() > MOST => format!("{} checkpoints, from {first} to {last},", ids.len()),
        ids => format!("checkpoints {}", ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}
