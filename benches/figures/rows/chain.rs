//! Restores of a chain that its controller has kept short, against one full image of the same checkpoint.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cr_bench::commands::{Attached, StoreDir, checkpoint, compact, number, restore};
use cr_bench::guest::Guest;
use cr_bench::sample::{Samples, timed};
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

/// How much longer it may take.
const LONGER: f64 = 1.3;
/// Checkpoints under the controller.
const CHECKPOINTS: usize = 16;
/// Time between them, in which the job overwrites about a fiftieth of its pages, at random.
const PAUSE: Duration = Duration::from_millis(200);

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mib = setting.args.mib;
    let store = StoreDir::new(setting.tmpfs.path());
    let rate = mib / 10;
    let mut guest = Guest::start(setting.tmpfs.path(), "writer", &strings(&[&"--mib", &mib, &"--rate", &rate]), None)?;
    let attached = Attached::to(guest.pid, &store, &strings(&[&"--compact-bandwidth", &"4G/s"]))?;
    for _ in 1..CHECKPOINTS {
        sleep(PAUSE);
        checkpoint(guest.pid, &store, &[])?;
    }
    // What it has begun it shall complete: it is not to be measured by chance.
    let began = Instant::now();
    while store.path().join("compacted.tmp").exists() {
        ensure!(began.elapsed() < Duration::from_secs(60), "a compaction does not end");
        sleep(Duration::from_millis(20));
    }
    attached.let_go()?;
    guest.kill()?;
    let report = compact(&store)?;
    let full = number(&report, "id")?;
    let newest = report["compacted_from"].as_f64().unwrap_or(full);

    let (mut chain, mut single) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let mut once = |id: f64| -> Result<f64> {
            let (took, pid) = timed(|| restore(&store, &strings(&[&"--id", &id])))?;
            guest.pid = pid;
            guest.kill()?;
            Ok(took)
        };
        let (of_one, of_many) = (once(full)?, once(newest)?);
        if repetition > 0 {
            single.0.push(of_one);
            chain.0.push(of_many);
        }
    }
    Ok(vec![Row {
        name: format!(
            "restore of {mib} MiB after {CHECKPOINTS} checkpoints of 2 % each, scattered: over that of one full image"
        ),
        figures: chain.over(&single),
        bound: LONGER,
        unit: "×",
        behind: vec![("chain ms".to_owned(), chain), ("full image ms".to_owned(), single)],
    }])
}
