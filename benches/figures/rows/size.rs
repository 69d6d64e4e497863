//! Deltas of jobs that hold much more than they write: their frozen time must be that of a small job that writes as much.

use anyhow::Result;
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::machine::kib;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const WRITTEN_MIB: u64 = 64;
const SMALL_MIB: u64 = 1024;
const LARGE_MIB: [u64; 2] = [4096, 12288];
/// Of so many MiB one is random and thereby stored; the others are there, and zero.
const FILLED: u64 = 16;
const BOUND: f64 = 1.2;

/// A small job and larger ones, with small pages and with huge ones.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for pages in ["small", "huge"] {
        for mib in LARGE_MIB {
            let (needed, free) = ((mib + SMALL_MIB) / 10 * 12, kib("/proc/meminfo", "MemAvailable") >> 10);
            if free < needed {
                eprintln!("skipped: {mib} MiB resident, {pages} pages: {needed} MiB must be free, and {free} are");
                continue;
            }
            rows.push(against_small(setting, mib, pages)?);
        }
    }
    Ok(rows)
}

/// Both jobs live side by side, each under a resident controller of its own, and are measured in turn.
fn against_small(setting: &Setting, mib: u64, pages: &str) -> Result<Row> {
    let start = |mib: u64, name: &str| -> Result<(Guest, StoreDir)> {
        let store = StoreDir::within(setting.tmpfs.path(), name)?;
        let mut options = strings(&[&"--mib", &mib, &"--rate", &0, &"--once-mib", &WRITTEN_MIB, &"--filled", &FILLED]);
        options.extend((pages == "huge").then(|| "--huge".to_owned()));
        let under = strings(&[&"--store", &store.arg(), &"--interval", &"1h"]);
        let guest = Guest::start(setting.tmpfs.path(), "writer", &options, Some(&under))?;
        checkpoint(guest.pid, &store, &[])?;
        Ok((guest, store))
    };
    let (mut large, large_store) = start(mib, "large")?;
    let (mut small, small_store) = start(SMALL_MIB, "small")?;
    let frozen = |guest: &mut Guest, store: &StoreDir| -> Result<f64> {
        guest.write_once()?;
        number(&checkpoint(guest.pid, store, &[])?, "frozen_ms")
    };
    let (mut of_large, mut of_small) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let (large_ms, small_ms) = (frozen(&mut large, &large_store)?, frozen(&mut small, &small_store)?);
        if repetition > 0 {
            of_large.0.push(large_ms);
            of_small.0.push(small_ms);
        }
    }
    large.kill()?;
    small.kill()?;
    Ok(Row {
        name: format!(
            "frozen time of a delta, {WRITTEN_MIB} MiB written, {pages} pages: {mib} MiB resident over {SMALL_MIB}"
        ),
        figures: of_large.over(&of_small),
        bound: BOUND,
        unit: "×",
        behind: vec![(format!("{mib} MiB ms"), of_large), (format!("{SMALL_MIB} MiB ms"), of_small)],
    })
}
