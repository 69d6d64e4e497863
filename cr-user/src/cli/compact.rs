//! `cr compact`: one full image of the newest checkpoint.

use cr::bucket::Need;
use cr::compact::Options;
use cr::object;
use cr::seal::Keys;
use cr::store::Store;
use cr::supervise;

use super::common::{StoreArg, parse_bandwidth, parse_size};
use super::keys::SignArg;
use super::output::{Progress, bytes};
use super::{Execute, Output};

const LONG: &str = "\
Makes one full image of the newest checkpoint and of all that it builds on, and adds it to the store as a checkpoint of its own: a \
restore from it is the same job, and reads one file. It is sealed if the store is, and signed if --sign-key (of the controller, if there is \
one) says so. Nothing else is changed; `cr prune` then removes what is not to be kept.

Pages are not copied where the file system can share them between files (XFS, Btrfs). Each is compared with its checksum on the way: from \
a damaged chain nothing is made.

Where a controller holds the store, it is asked to do it, between checkpoints and within its own --memory-limit; the job's next delta \
then builds on the new image. By itself it does the same once a chain is long or heavy (`--compact-after` of `cr run`). A checkpoint that \
is taken meanwhile is taken along. An interruption at any moment leaves the store as it was.";

const AFTER: &str = "\
Examples:
  cr compact --store ckpt
  cr compact --store ckpt --bandwidth 50M/s
  cr compact --store ckpt && cr prune --store ckpt --keep-last 1

With --json: {\"id\", \"compacted_from\", \"images\", \"stored_pages\", \"stored_bytes\", \"copied_pages\", \"shared_pages\", \"total_ms\"}; \
compacted_from is null if the newest checkpoint is a full one already, and nothing was done.

Exit codes: 0 done, or nothing to do; 2 it needs more than --memory-limit; 119 the store is sealed, and the key is missing or wrong; 122 it is no store, holds no checkpoint, somebody else writes \
to it, or the chain is damaged; 124 it could not be read or written (a full disk, say)";

/// Make one full image of the newest checkpoint and all that it builds on.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArg,

    #[command(flatten)]
    sign: SignArg,

    /// Most memory to use: `64M`, `1G`. Pages on their way take 2 MiB of it, and keeping account of them 8 bytes a page and 160 a run.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    memory_limit: u64,

    /// Most bytes a second: `50M/s`. Without it, as many as there can be.
    #[arg(long, value_name = "SIZE/s", value_parser = parse_bandwidth)]
    bandwidth: Option<u64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let place = self.store.place()?;
        place.refresh(Need::Checkpoint(None))?;
        let keys = Keys { signer: self.sign.signer()?, ..place.keys.clone() };
        let store = Store::open_existing_with(&place.dir, object::KINDS, &keys)?;
        let options = Options { memory_limit: self.memory_limit, bandwidth: self.bandwidth };
        let progress = Progress::start(format!("compacting {}", self.store.store.display()));
        let report = supervise::compact(&store, &options);
        let settled = if report.is_ok() { place.settle() } else { Ok(()) };
        progress.finish();
        let report = report?;
        settled?;
        if output.json {
            output.print_json(&report);
        } else if let Some(from) = report.compacted_from {
            let (id, images, size) = (report.id, report.images, bytes(report.stored_bytes));
            let shared = match report.shared_pages {
                0 => String::new(),
                pages => format!(", {} of them shared with the older images", bytes(pages * 4096)),
            };
            output.print(&format!("checkpoint {id}: full, {size}{shared}; compacted from {from} ({images} images)"));
        } else {
            output.print(&format!("checkpoint {} is a full one already: nothing to compact", report.id));
        }
        Ok(0)
    }
}
