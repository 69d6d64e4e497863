//! First checkpoints of a job of random data, against `cat` of as many bytes to the same place.

use anyhow::Result;
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::{Samples, timed};
use cr_bench::strings;

use crate::Setting;
use crate::baseline;
use crate::report::Row;

/// Whole time, of the command from its start to its end.
const WHOLE: f64 = 1.5;
/// Frozen time in percent of the whole.
const FROZEN: f64 = 10.0;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let source = setting.disk.path().join("random");
    baseline::random_file(&source, setting.args.mib << 20)?;
    let mut rows = Vec::new();
    for rate in [0, 20] {
        let guest = Guest::start(
            setting.tmpfs.path(),
            "writer",
            &strings(&[&"--mib", &setting.args.mib, &"--rate", &rate]),
            None,
        )?;
        let (mut cat, mut whole, mut frozen) = (Samples::default(), Samples::default(), Samples::default());
        for repetition in 0..=setting.args.repetitions {
            // The job must not slow the baseline down.
            let copied = guest.paused(|| baseline::cat(&source, &setting.tmpfs.path().join("copy")))?;
            let store = StoreDir::new(setting.tmpfs.path());
            let (took, taken) = timed(|| checkpoint(guest.pid, &store, &[]))?;
            if repetition > 0 {
                cat.0.push(copied);
                whole.0.push(took);
                frozen.0.push(number(&taken, "frozen_ms")?);
            }
        }
        let behind = vec![
            ("cr ms".to_owned(), whole.clone()),
            ("cat ms".to_owned(), cat.clone()),
            ("frozen ms".to_owned(), frozen.clone()),
        ];
        rows.push(Row {
            name: format!("first full checkpoint to tmpfs, job writing {rate} MiB/s: whole time over cat"),
            figures: whole.over(&cat),
            bound: WHOLE,
            unit: "×",
            behind: behind.clone(),
        });
        if rate > 0 {
            rows.push(Row {
                name: format!("its frozen time, job writing {rate} MiB/s: of the whole"),
                figures: Samples(frozen.over(&whole).0.iter().map(|part| part * 100.0).collect()),
                bound: FROZEN,
                unit: "%",
                behind,
            });
        }
    }
    std::fs::remove_file(source)?;
    Ok(rows)
}
