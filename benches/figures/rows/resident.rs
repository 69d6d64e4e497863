//! The controller's resident memory: its peak (`VmHWM`), which counts pages of mapped files too. The job writes faster than
//! copying while it runs can catch up with, so that the frozen window has as much to hold as it may.

use anyhow::{Result, ensure};
use cr_bench::commands::{StoreDir, checkpoint, restore};
use cr_bench::guest::Guest;
use cr_bench::machine::kib;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

/// MiB beyond the limit that was set.
const BEYOND: u64 = 64;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (mib, limit) in [(1024, 256), (3072, 256), (1024, 64), (3072, 64)] {
        rows.push(one(setting, mib, limit)?);
    }
    Ok(rows)
}

/// A full checkpoint and two deltas, of which the second is found after the job has written everything it writes at once.
fn one(setting: &Setting, mib: u64, limit: u64) -> Result<Row> {
    let store = StoreDir::new(setting.tmpfs.path());
    let options = strings(&[&"--mib", &mib, &"--rate", &800, &"--once-mib", &(mib / 2)]);
    let limited = strings(&[&"--memory-limit", &format!("{limit}M")]);
    let under = [strings(&[&"--store", &store.arg(), &"--interval", &"1h"]), limited.clone()].concat();
    let mut guest = Guest::start(setting.tmpfs.path(), "writer", &options, Some(&under))?;
    checkpoint(guest.pid, &store, &[])?;
    guest.write_once()?;
    checkpoint(guest.pid, &store, &[])?;
    guest.write_once()?;
    checkpoint(guest.pid, &store, &[])?;
    let running = peak(&guest.child_pid().to_string())?;
    guest.kill()?;
    guest.pid = restore(&store, &limited)?;
    checkpoint(guest.pid, &store, &[])?;
    // The lock holds the pid of the controller that came with the restore.
    let restored = peak(std::fs::read_to_string(store.path().join("lock"))?.trim())?;
    guest.kill()?;
    Ok(Row {
        name: format!("controller's peak memory, job of {mib} MiB, --memory-limit {limit}M"),
        figures: Samples(vec![running.max(restored)]),
        bound: (limit + BEYOND) as f64,
        unit: "MiB",
        behind: vec![
            ("from the start on MiB".to_owned(), Samples(vec![running])),
            ("from a restore on MiB".to_owned(), Samples(vec![restored])),
        ],
    })
}

fn peak(pid: &str) -> Result<f64> {
    let peak = kib(&format!("/proc/{pid}/status"), "VmHWM");
    ensure!(peak > 0, "the controller (pid {pid}) has gone");
    Ok(peak as f64 / 1024.0)
}
