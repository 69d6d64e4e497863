//! Deltas of a large job of several threads that has written nothing: what stopping them costs, and looking around.

use anyhow::Result;
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const MIB: u64 = 4096;
const THREADS: u64 = 8;
const BOUND_MS: f64 = 2.0;
const BOUND_MS_PER_THREAD: f64 = 0.1;

/// The writer, which writes no page of its memory, and whose threads all wake up every 10 ms.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let store = StoreDir::new(setting.tmpfs.path());
    let options = strings(&[&"--mib", &MIB, &"--rate", &0, &"--threads", &THREADS, &"--filled", &16]);
    let under = strings(&[&"--store", &store.arg(), &"--interval", &"1h"]);
    let mut guest = Guest::start(setting.tmpfs.path(), "writer", &options, Some(&under))?;
    checkpoint(guest.pid, &store, &[])?;
    let (mut frozen, mut whole) = (Samples::default(), Samples::default());
    for repetition in 0..=2 * setting.args.repetitions {
        let taken = checkpoint(guest.pid, &store, &[])?;
        if repetition > 0 {
            frozen.0.push(number(&taken, "frozen_ms")?);
            whole.0.push(number(&taken, "total_ms")?);
        }
    }
    guest.kill()?;
    Ok(vec![Row {
        name: format!("frozen time of a delta, nothing written, {MIB} MiB, {THREADS} threads"),
        figures: frozen,
        bound: BOUND_MS + BOUND_MS_PER_THREAD * THREADS as f64,
        unit: "ms",
        behind: vec![("whole ms".to_owned(), whole)],
    }])
}
