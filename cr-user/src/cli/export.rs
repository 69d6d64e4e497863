//! `cr export`: a process of a checkpoint as a core file.

use std::path::PathBuf;

use cr::bucket::Need;
use cr::export;
use cr::store::Chain;
use serde_json::json;

use super::common::StoreArg;
use super::output::{Progress, bytes};
use super::{Execute, Output};

const LONG: &str = "\
Writes one process of a checkpoint as an ELF core file, for a debugger: all its threads with their registers, and its memory as it was.

The file is sparse and has mode 0600: it is the job's memory. It must not exist yet. Pages that the process never wrote to are not in it \
where they are a file's: a debugger reads them from the file, which must be the same that the job ran. Memory that the process wants left \
out of core files (MADV_DONTDUMP), or that the checkpoint leaves out, is not in it either: gdb shows zeroes there.";

const AFTER: &str = "\
Examples:
  cr export --store ckpt --core core                      the job's first process, as of the newest checkpoint
  gdb ./solver core -ex 'thread apply all bt'
  cr export --store ckpt --id 3 --pid 4712 --core core.4712

With --json: {\"id\", \"pid\", \"core\", \"executable\", \"threads\", \"file_bytes\", \"memory_bytes\"}

Exit codes: 0; 121 the checkpoint holds no such process; 119 the store is sealed, and the key is missing or wrong; 122 it is no store, has no such checkpoint, or it is damaged; 124 the core \
file exists, or cannot be written (nothing of it is left)";

/// Write a process of a checkpoint as a core file.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArg,

    /// Which checkpoint; the newest if not given.
    #[arg(long, value_name = "N")]
    id: Option<u64>,

    /// Which of the job's processes; its first if not given.
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,

    /// The core file to be written.
    #[arg(long, value_name = "FILE")]
    core: PathBuf,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let store = self.store.open(Need::Checkpoint(self.id))?;
        let chain = Chain::open(&store, self.id)?;
        let progress = Progress::start(format!("writing {}", self.core.display()));
        let exported = export::core(&chain, self.pid, &self.core);
        progress.finish();
        let done = exported?;
        if output.json {
            output.print_json(&json!({
                "id": done.id,
                "pid": done.pid,
                "core": self.core.to_string_lossy(),
                "executable": done.executable,
                "threads": done.threads,
                "file_bytes": done.file_bytes,
                "memory_bytes": done.memory_bytes,
            }));
        } else {
            let (pid, id, memory) = (done.pid, done.id, bytes(done.memory_bytes));
            let threads = if done.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", done.threads) };
            let (core, executable) = (self.core.display(), &done.executable);
            output.print(&format!(
                "pid {pid} of checkpoint {id}: {threads}, {memory} of memory; gdb {executable} {core}"
            ));
        }
        Ok(0)
    }
}
