//! A job that holds much memory and does next to nothing: what tracking costs it, and the machine. No checkpoint is taken meanwhile.

use std::fs;

use anyhow::{Context as _, Result};
use cr_bench::commands::{Attached, StoreDir};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const MIB: u64 = 4096;
const BOUND: f64 = 1.005;

/// One process, to which a controller comes and goes: it has the same physical pages in all rounds.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let options = strings(&[&"--mib", &MIB, &"--work", &20, &"--sleeps", &300]);
    let mut guest = Guest::start(setting.tmpfs.path(), "resident", &options, None)?;
    let [mut alone, mut tracked, mut alone_cpu, mut tracked_cpu, mut alone_late, mut tracked_late, mut controllers] =
        [(); 7].map(|()| Samples::default());
    guest.round()?;
    for _ in 0..setting.args.repetitions {
        alone.0.push(guest.round()?);
        alone_cpu.0.push(guest.said("cpu")?);
        alone_late.0.push(guest.said("late")? * 1e3);
        let store = StoreDir::new(setting.tmpfs.path());
        let controller = Attached::to(guest.pid, &store, &[])?;
        let before = cpu_ms(controller.pid())?;
        tracked.0.push(guest.round()?);
        controllers.0.push(cpu_ms(controller.pid())? - before);
        tracked_cpu.0.push(guest.said("cpu")?);
        tracked_late.0.push(guest.said("late")? * 1e3);
        controller.let_go()?;
    }
    guest.kill()?;
    Ok(vec![Row {
        name: format!(
            "running time of an idle job of {MIB} MiB (random reads, sleeps) while it is tracked: over alone"
        ),
        figures: tracked.over(&alone),
        bound: BOUND,
        unit: "×",
        behind: vec![
            ("tracked ms".to_owned(), tracked),
            ("alone ms".to_owned(), alone),
            ("its CPU ×".to_owned(), tracked_cpu.over(&alone_cpu)),
            ("sleeps late µs, tracked".to_owned(), tracked_late),
            ("alone µs".to_owned(), alone_late),
            ("controller's CPU ms".to_owned(), controllers),
        ],
    }])
}

/// CPU time of a process so far.
fn cpu_ms(pid: i32) -> Result<f64> {
    let schedstat = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("schedstat")).ok();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the controller's threads")?;
    let ns = tasks.flatten().filter_map(schedstat).filter_map(|text| text.split(' ').next()?.parse::<u64>().ok());
    Ok(ns.sum::<u64>() as f64 / 1e6)
}
