//! `cr prune`: old checkpoints go, and nothing that a younger one needs.

use std::time::{Duration, UNIX_EPOCH};

use clap::value_parser;
use cr::bucket::Need;
use cr::store::prune::{Fate, Pruned, Reason, Rules};
use cr::supervise;
use serde_json::{Value, json};

use super::common::{StoreArg, parse_size};
use super::output::{Progress, bytes, number};
use super::{Execute, Output};

const LONG: &str = "\
Removes checkpoints that none of the rules keeps. At least one --keep-… is needed; what any of them keeps stays.

A delta needs what it builds on, down to a full checkpoint: that stays too, and is said to stay only because of the others. The \
newest checkpoint always stays, and if it cannot be restored, the newest one that can. Hours, days and weeks are those of UTC; weeks \
begin on Monday.

A checkpoint that cannot be restored (it is damaged, or what it builds on is missing) takes nobody's place: the rules count without it, \
and it goes if they would not keep it were it intact. Pages are not read for this; run `cr verify` first to find damage in them.

Where a controller holds the store, it is asked to do it, between two checkpoints; what its next delta builds on stays as well. Only \
checkpoints are removed: not the tails of files that a restore has cut off (DIR/cut), nor DIR/log.jsonl. An interruption at any moment \
leaves every checkpoint that is still there with all that it needs.";

const AFTER: &str = "\
Examples:
  cr prune --store ckpt --keep-last 3
  cr prune --store ckpt --keep-last 10 --keep-hourly 24 --keep-daily 7 --dry-run
  cr prune --store ckpt --keep-bytes 200G    the newest ones, as long as all that stays is no more than that

With --json: {\"dry_run\", \"kept\": […], \"removed\": […], \"kept_bytes\", \"freed_bytes\"}, each checkpoint being {\"id\", \"kind\", \
\"parent\", \"taken_at\", \"bytes\", \"reasons\", \"needed_by\", \"problem\"}. Reasons are newest, newest_intact, in_use, last, hourly, \
daily, weekly and bytes; one that has none stays because those in needed_by build on it.

Exit codes: 0 done; 2 no rule; 119 the store is sealed, and the key is missing or wrong; 122 it is no store, somebody else writes to it, or one of its checkpoints is of a newer format or another \
job's (nothing was removed); 124 it could not be read, or a file not be removed (what is left is whole)";

/// Remove old checkpoints that nothing needs.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArg,

    /// Keep the newest N checkpoints.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    keep_last: Option<u32>,

    /// Keep the newest checkpoint of each of the last N hours (UTC) that have one.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    keep_hourly: Option<u32>,

    /// Keep the newest checkpoint of each of the last N days (UTC) that have one.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    keep_daily: Option<u32>,

    /// Keep the newest checkpoint of each of the last N weeks (from Monday, UTC) that have one.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    keep_weekly: Option<u32>,

    /// Keep the newest checkpoints as long as all that stays, whatever for, is not more than this: `64M`, `200G`.
    ///
    /// The newest stays in any case, and so does what other rules keep.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    keep_bytes: Option<u64>,

    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    fn rules(&self) -> Rules {
        Rules {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            bytes: self.keep_bytes,
        }
    }
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn contradiction(&self) -> Option<String> {
        self.rules().is_empty().then(|| cr::store::Error::NoRules.to_string())
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let place = self.store.place()?;
        place.refresh(Need::Metadata)?;
        let store = place.open()?;
        let progress = Progress::start(format!("pruning {}", self.store.store.display()));
        let pruned = supervise::prune(&store, self.rules(), self.dry_run);
        let settled = if self.dry_run || pruned.is_err() { Ok(()) } else { place.settle() };
        progress.finish();
        let pruned = pruned?;
        settled?;
        if output.json {
            output.print_json(&as_json(&pruned));
            return Ok(0);
        }
        if !(pruned.kept.is_empty() && pruned.removed.is_empty()) {
            print_table(output, &pruned);
        }
        output.print(&summary(&pruned));
        for fate in pruned.kept.iter().chain(&pruned.removed) {
            if let Some(problem) = &fate.problem {
                eprintln!("cr: {problem}");
            }
        }
        if let Some(most) = self.keep_bytes.filter(|most| total(&pruned.kept) > *most) {
            eprintln!("cr: what must stay is more than --keep-bytes {}", bytes(most));
        }
        Ok(0)
    }
}

fn total(fates: &[Fate]) -> u64 {
    fates.iter().map(|fate| fate.bytes).sum()
}

fn taken_at(fate: &Fate) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(fate.taken_at)).to_string()
}

/// None where it cannot be read.
fn kind(fate: &Fate) -> Option<&'static str> {
    match (fate.parent, &fate.problem) {
        (Some(_), _) => Some("delta"),
        (None, None) => Some("full"),
        (None, Some(_)) => None,
    }
}

fn as_json(pruned: &Pruned) -> Value {
    let each = |fate: &Fate| {
        json!({
            "id": fate.id,
            "kind": kind(fate),
            "parent": fate.parent,
            "taken_at": taken_at(fate),
            "bytes": fate.bytes,
            "reasons": fate.reasons,
            "needed_by": fate.needed_by,
            "problem": fate.problem,
        })
    };
    json!({
        "dry_run": pruned.dry_run,
        "kept": pruned.kept.iter().map(each).collect::<Vec<_>>(),
        "removed": pruned.removed.iter().map(each).collect::<Vec<_>>(),
        "kept_bytes": total(&pruned.kept),
        "freed_bytes": total(&pruned.removed),
    })
}

fn print_table(output: Output, pruned: &Pruned) {
    let kept = pruned.kept.iter().map(|fate| (fate, "keep"));
    let mut fates: Vec<_> = kept.chain(pruned.removed.iter().map(|fate| (fate, "remove"))).collect();
    fates.sort_by_key(|(fate, _)| fate.id);
    let mut table = output.table(&["ID", "KIND", "ON", "TAKEN AT", "BYTES", "FATE", "WHY"]);
    for (fate, what) in fates {
        table.add_row([
            number(fate.id),
            kind(fate).unwrap_or("damaged").into(),
            number(fate.parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string())),
            taken_at(fate).into(),
            number(bytes(fate.bytes)),
            what.into(),
            why(fate).into(),
        ]);
    }
    output.print_table(&table);
}

fn why(fate: &Fate) -> String {
    if fate.reasons.is_empty() && !fate.needed_by.is_empty() {
        let (one, ids) = (fate.needed_by.len() == 1, fate.needed_by.iter().map(ToString::to_string));
        return format!(
            "only because {} {} on it",
            ids.collect::<Vec<_>>().join(", "),
            if one { "builds" } else { "build" }
        );
    }
    let name = |reason: &Reason| match reason {
        Reason::Newest => "newest",
        Reason::NewestIntact => "newest intact",
        Reason::InUse => "the job's next delta builds on it",
        Reason::Last => "last",
        Reason::Hourly => "hourly",
        Reason::Daily => "daily",
        Reason::Weekly => "weekly",
        Reason::Bytes => "bytes",
    };
    fate.reasons.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn summary(pruned: &Pruned) -> String {
    let removed = match pruned.removed.len() {
        0 => "nothing to remove".to_owned(),
        1 => format!("1 checkpoint, {}", bytes(total(&pruned.removed))),
        n => format!("{n} checkpoints, {}", bytes(total(&pruned.removed))),
    };
    let removed = match (pruned.removed.is_empty(), pruned.dry_run) {
        (true, _) => removed,
        (false, true) => format!("would remove {removed}"),
        (false, false) => format!("removed {removed}"),
    };
    let mut stay = format!("{removed}; {} stay, {}", pruned.kept.len(), bytes(total(&pruned.kept)));
    match pruned.kept.iter().filter(|fate| fate.reasons.is_empty()).count() {
        0 => (),
        n => stay.extend([", ", &n.to_string(), " of them only because others build on them"]),
    }
    if pruned.dry_run {
        stay += "; nothing was changed";
    }
    stay
}
