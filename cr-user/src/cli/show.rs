//! `cr show`: one checkpoint in detail.

use cr::bucket::Need;
use cr::describe::Details;
use cr::store::Chain;

use super::common::StoreArg;
use super::output::{bytes, number};
use super::{Execute, Output};

const LONG: &str = "\
Shows one checkpoint in detail: the job, its processes and threads, its mappings with the number of pages that the chain stores of each, \
and its open files.

With --json everything that the image holds is shown, but for the bytes of pages: besides the above the files of the chain \
(images), the pages of each content space and which checkpoint has them (spaces), and every record as it is stored (records), \
with its version and size (record_places). docs/show.md says what is where.

Everything but the pages themselves is validated; `cr verify` checks those too.";

const AFTER: &str = "\
Examples:
  cr show --store ckpt             the newest checkpoint
  cr show --store ckpt --id 3
  cr show --store ckpt --json | jq '.files[].path'
  cr show --store ckpt --json | jq '.records.signals[0].actions'

Exit codes: 0; 119 the store is sealed, and the key is missing or wrong; 122 it is no store, has no such checkpoint, or it (or one that it builds on) is damaged";

/// Show one checkpoint in detail.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArg,

    /// Which checkpoint; the newest if not given.
    #[arg(long, value_name = "N")]
    id: Option<u64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let details = Details::of_chain(&Chain::open(&*self.store.open(Need::Metadata)?, self.id)?)?;
        if output.json {
            output.print_json(&details);
        } else {
            print(output, &details);
        }
        Ok(0)
    }
}

fn print(output: Output, details: &Details) {
    let c = &details.checkpoint;
    let on = c.parent.map_or_else(String::new, |parent| format!(" on checkpoint {parent}"));
    let on = c.compacted_from.map_or(on, |from| format!(" (compacted from {from})"));
    let mut facts = vec![
        ("checkpoint", format!("{}, a {}{on}", c.id, c.kind.name())),
        ("taken at", c.taken_at.clone()),
        ("job", details.job.clone()),
        ("pid", c.pid.to_string()),
        ("command", details.command.clone()),
        ("directory", details.cwd.clone()),
        ("kernel", details.kernel.clone()),
        ("pages", format!("{} dirty, {} stored", c.dirty_pages, c.stored_pages)),
        ("file", bytes(c.stored_bytes)),
        ("time", format!("frozen {:.1} ms of {:.1} ms", c.frozen_ms, c.total_ms)),
    ];
    facts.extend(c.left_out.iter().map(|what| ("left out", what.clone())));
    facts.extend(c.missing.iter().map(|what| ("missing", what.clone())));
    facts.extend(c.widened.iter().map(|reason| ("note", reason.clone())));
    for (name, value) in facts {
        output.print(&format!("{name:<11}{value}"));
    }

    output.print("");
    let mut processes = output.table(&["PID", "PARENT", "COMMAND"]);
    for process in &details.processes {
        let command = if process.ended { format!("{} (ended)", process.command) } else { process.command.clone() };
        processes.add_row([number(process.pid), number(process.ppid), command.into()]);
    }
    output.print_table(&processes);

    output.print("");
    let mut threads = output.table(&["PID", "TID", "NAME", "RIP"]);
    for thread in &details.threads {
        threads.add_row([
            number(thread.pid),
            number(thread.tid),
            thread.name.as_str().into(),
            thread.rip.as_str().into(),
        ]);
    }
    output.print_table(&threads);

    output.print("");
    let mut mappings = output.table(&["PID", "START", "END", "PERMS", "KIND", "STORED", "PATH"]);
    for m in &details.mappings {
        let words = [m.start.as_str(), &m.end, &m.perms, m.kind].map(comfy_table::Cell::from);
        let (first, last) = ([number(m.pid)], [number(m.stored_pages), m.path.as_str().into()]);
        mappings.add_row(first.into_iter().chain(words).chain(last));
    }
    output.print_table(&mappings);

    output.print("");
    let mut files = output.table(&["FD", "KIND", "POS", "PATH"]);
    for file in &details.files {
        let fds = file.fds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let pos = file.pos.map_or_else(|| "-".to_owned(), |pos| pos.to_string());
        files.add_row([number(fds), file.kind.into(), number(pos), file.path.as_str().into()]);
    }
    output.print_table(&files);
}
