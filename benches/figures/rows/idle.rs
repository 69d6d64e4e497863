//! Deltas of a job that holds many descriptors which nobody uses, against one that holds few or none: alone, and with memory
//! written in between, as in other deltas.

use anyhow::Result;
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const MANY: u64 = 1000;
const FEW: u64 = 10;
const WRITTEN_MIB: u64 = 64;
const BOUND: f64 = 1.3;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let connections = [&"--connections" as &dyn std::fmt::Display, &MANY];
    let kinds = [
        (format!("{MANY} idle connections within the job"), strings(&connections), Vec::new()),
        (
            format!("{MANY} idle connections that an epoll set watches"),
            [strings(&connections), strings(&[&"--epoll", &1])].concat(),
            Vec::new(),
        ),
        (format!("{MANY} open files over {FEW}"), strings(&[&"--files", &MANY]), strings(&[&"--files", &FEW])),
    ];
    let mut rows = Vec::new();
    for (what, many, few) in kinds {
        for mib in [0, WRITTEN_MIB] {
            rows.push(ratio(setting, &what, mib, [&many, &few])?);
        }
    }
    Ok(rows)
}

/// Descriptors of several kinds and mappings that cannot be joined, of which nothing changes.
pub fn things(setting: &Setting) -> Result<Vec<Row>> {
    let options = |each: u64| {
        // A pipe is two descriptors.
        let (files, pipes) = (each * 9 / 10, each / 20);
        strings(&[&"--files", &files, &"--pipes", &pipes, &"--mappings", &each])
    };
    let what = format!("{MANY} descriptors and {MANY} mappings over {FEW} of each");
    let row = |mib| ratio(setting, &what, mib, [&options(MANY), &options(FEW)]);
    Ok(vec![row(0)?, row(WRITTEN_MIB)?])
}

/// Frozen times of both jobs, which exist side by side, so that both are measured in the same minutes.
fn ratio(setting: &Setting, what: &str, mib: u64, options: [&Vec<String>; 2]) -> Result<Row> {
    let mut jobs = Vec::new();
    for (name, options) in ["many", "few"].iter().zip(options) {
        let folder = setting.tmpfs.path().join(name);
        std::fs::create_dir_all(&folder)?;
        let store = StoreDir::new(&folder);
        let options = [options.clone(), strings(&[&"--once-mib", &mib])].concat();
        let under = strings(&[&"--store", &store.arg(), &"--interval", &"1h"]);
        let guest = Guest::start(setting.tmpfs.path(), "idle", &options, Some(&under))?;
        checkpoint(guest.pid, &store, &[])?;
        jobs.push((guest, store, Samples::default()));
    }
    for repetition in 0..=setting.args.repetitions.max(5) {
        for (guest, store, frozen) in &mut jobs {
            guest.write_once()?;
            let taken = checkpoint(guest.pid, store, &[])?;
            if repetition > 0 {
                frozen.0.push(number(&taken, "frozen_ms")?);
            }
        }
    }
    let frozen: Vec<Samples> = jobs.iter().map(|(_, _, frozen)| frozen.clone()).collect();
    for (guest, ..) in &mut jobs {
        guest.kill()?;
    }
    let written = if mib == 0 { "nothing written".to_owned() } else { format!("{mib} MiB written") };
    Ok(Row {
        name: format!("frozen time of a delta, {written}: {what}"),
        figures: frozen[0].over(&frozen[1]),
        bound: BOUND,
        unit: "×",
        behind: vec![("many ms".to_owned(), frozen[0].clone()), ("few ms".to_owned(), frozen[1].clone())],
    })
}
