//! Restores from images in the page cache, against getting as much memory and copying as much into it.

use anyhow::Result;
use cr_bench::commands::{StoreDir, checkpoint, restore};
use cr_bench::guest::Guest;
use cr_bench::sample::{Samples, timed};
use cr_bench::strings;

use crate::Setting;
use crate::baseline;
use crate::report::Row;

const WHOLE: f64 = 1.5;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let source = setting.tmpfs.path().join("random");
    baseline::random_file(&source, setting.args.mib << 20)?;
    let map = baseline::mapped(&source)?;
    let store = StoreDir::new(setting.tmpfs.path());
    let mut guest =
        Guest::start(setting.tmpfs.path(), "writer", &strings(&[&"--mib", &setting.args.mib, &"--rate", &0]), None)?;
    checkpoint(guest.pid, &store, &[])?;
    guest.kill()?;

    let (mut copy, mut whole) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let copied = baseline::populate_and_copy(&map)?;
        let (took, pid) = timed(|| restore(&store, &[]))?;
        guest.pid = pid;
        guest.kill()?;
        if repetition > 0 {
            copy.0.push(copied);
            whole.0.push(took);
        }
    }
    drop(map);
    std::fs::remove_file(source)?;
    Ok(vec![Row {
        name: format!("restore of {} MiB from page cache: over populate and memcpy", setting.args.mib),
        figures: whole.over(&copy),
        bound: WHOLE,
        unit: "×",
        behind: vec![("cr ms".to_owned(), whole), ("populate and memcpy ms".to_owned(), copy)],
    }])
}
