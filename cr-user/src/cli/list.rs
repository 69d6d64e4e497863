//! `cr list`: the chain as a table.

use cr::bucket::Need;
use cr::describe::Checkpoint;
use serde::Serialize;

use super::common::StoreArg;
use super::output::{bytes, number};
use super::{Execute, Output};

const LONG: &str = "\
Lists the checkpoints of a store, oldest first: a row each.

DIRTY are pages (4 KiB) that had, or may have, changed since the checkpoint before; STORED those whose contents really \
did. FROZEN is how long the job stood still, TOTAL how long it took until the checkpoint was durable. NOTE says why more \
was read than the kernel said had changed. One that is compacted from another is the same as that one, in one image. Works while a controller writes to the store.";

const AFTER: &str = "\
Examples:
  cr list --store ckpt
  cr list --store ckpt --json | jq '.[-1].stored_bytes'
  cr list --store s3://ckpt/job42

With --json: an array of {\"id\", \"kind\", \"parent\", \"taken_at\", \"dirty_pages\", \"stored_pages\", \"stored_bytes\", \
\"frozen_ms\", \"total_ms\", \"pid\", \"widened\", \"compacted_from\", \"left_out\", \"missing\"}; a checkpoint that cannot be read is {\"id\", \"error\"}.

Exit codes: 0; 119 the store is sealed, and the key is missing or wrong; 122 it is no store, or one of its checkpoints cannot be read; \
124 the bucket cannot be reached";

/// List the checkpoints of a store.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArg,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Row {
    Good(Checkpoint),
    Bad { id: u64, error: String },
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let store = self.store.open(Need::Metadata)?;
        store.need_key()?;
        let mut rows = Vec::new();
        let mut code = 0;
        for id in store.ids()? {
            let image = match store.open_image(id) {
                // Pruned meanwhile.
                Err(cr::store::Error::NoCheckpoint { .. }) => continue,
                image => image,
            };
            let read = image.map_err(cr::Error::from).and_then(|image| Checkpoint::of_image(&image));
            rows.push(match read {
                Ok(checkpoint) => Row::Good(checkpoint),
                Err(e) => {
                    code = e.exit_code();
                    Row::Bad { id, error: e.to_string() }
                }
            });
        }
        if output.json {
            output.print_json(&rows);
        } else if rows.is_empty() {
            eprintln!("cr: {} holds no checkpoint yet", self.store.store.display());
        } else {
            print_table(output, &rows);
        }
        Ok(code)
    }
}

fn note(c: &Checkpoint) -> String {
    let partial = (!c.left_out.is_empty() || !c.missing.is_empty()).then(|| "partial: see cr show".to_owned());
    let compacted = c.compacted_from.map(|from| format!("compacted from {from}"));
    compacted.into_iter().chain(partial).chain(c.widened.iter().cloned()).collect::<Vec<_>>().join("; ")
}

fn print_table(output: Output, rows: &[Row]) {
    let titles = ["ID", "KIND", "ON", "TAKEN AT", "PID", "DIRTY", "STORED", "BYTES", "FROZEN", "TOTAL", "NOTE"];
    let mut table = output.table(&titles);
    for row in rows {
        match row {
            Row::Good(c) => table.add_row([
                number(c.id),
                c.kind.name().into(),
                number(c.parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string())),
                c.taken_at.as_str().into(),
                number(c.pid),
                number(c.dirty_pages),
                number(c.stored_pages),
                number(bytes(c.stored_bytes)),
                number(format!("{:.1} ms", c.frozen_ms)),
                number(format!("{:.1} ms", c.total_ms)),
                note(c).into(),
            ]),
            Row::Bad { id, .. } => table.add_row([number(id), output.judged("damaged", false)]),
        };
    }
    output.print_table(&table);
    for row in rows {
        if let Row::Bad { error, .. } = row {
            eprintln!("cr: {error}");
        }
    }
}
