//! A large job that goes on writing while checkpoints of it are taken: what pre-copy leaves for the frozen window.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const MIB: u64 = 4096;
const RATE: u64 = 50;
const BOUND_MS: f64 = 10.0;
/// Between two deltas.
const PAUSE: Duration = Duration::from_secs(2);

/// First full checkpoints, each by a controller that knows nothing of the job yet; then deltas by one that stays.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let options = strings(&[&"--mib", &MIB, &"--rate", &RATE, &"--filled", &16]);
    let start = |under| Guest::start(setting.tmpfs.path(), "writer", &options, under);
    let mut full = Samples::default();
    let mut guest = start(None)?;
    for _ in 0..setting.args.repetitions.div_ceil(2) {
        let store = StoreDir::new(setting.tmpfs.path());
        full.0.push(number(&checkpoint(guest.pid, &store, &[])?, "frozen_ms")?);
    }
    guest.kill()?;

    let store = StoreDir::new(setting.tmpfs.path());
    let under = strings(&[&"--store", &store.arg(), &"--interval", &"1h"]);
    let mut guest = start(Some(&under))?;
    full.0.push(number(&checkpoint(guest.pid, &store, &[])?, "frozen_ms")?);
    let (mut deltas, mut stored) = (Samples::default(), Samples::default());
    for _ in 0..setting.args.repetitions {
        sleep(PAUSE);
        let taken = checkpoint(guest.pid, &store, &[])?;
        deltas.0.push(number(&taken, "frozen_ms")?);
        stored.0.push(number(&taken, "stored_bytes")? / f64::from(1 << 20));
    }
    guest.kill()?;
    let row = |what: &str, figures: Samples, behind| Row {
        name: format!("frozen time of {what}, {MIB} MiB, writing {RATE} MiB/s"),
        figures,
        bound: BOUND_MS,
        unit: "ms",
        behind,
    };
    Ok(vec![
        row("first full checkpoints", full, Vec::new()),
        row("deltas", deltas, vec![("stored MiB".to_owned(), stored)]),
    ])
}
