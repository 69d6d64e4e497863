//! The running time of a solver that keeps all cores busy and rewrites all of its memory in every step, with and without
//! checkpoints: as bad a case as there is.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cr_bench::commands::StoreDir;
use cr_bench::sample::{Samples, timed};
use cr_bench::strings;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::Setting;
use crate::report::Row;

const SLOWER: f64 = 1.02;
const INTERVAL: &str = "5s";

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let steps = steps_for(setting.args.solver_seconds)?;
    let places = [("disk", setting.disk.path()), ("tmpfs", setting.tmpfs.path())];
    places.into_iter().map(|(name, folder)| pairs(setting, name, folder, steps)).collect()
}

fn pairs(setting: &Setting, place: &str, folder: &Path, steps: u64) -> Result<Row> {
    let (mut alone, mut under, mut checkpoints) = (Samples::default(), Samples::default(), Samples::default());
    let (mut alone_cpu, mut under_cpu) = (Samples::default(), Samples::default());
    let mut run_alone = || -> Result<()> {
        let (ms, cpu) = run(solver(steps))?;
        alone.0.push(ms);
        alone_cpu.0.push(cpu);
        Ok(())
    };
    for pair in 0..setting.args.pairs {
        let alone_first = pair % 2 == 0;
        if alone_first {
            run_alone()?;
        }
        let store = StoreDir::new(folder);
        let mut command = cr_tests::cr();
        command.args(["run", "--interval", INTERVAL, "--store"]).arg(store.path()).arg("--");
        let job = solver(steps);
        command.arg(job.get_program()).args(job.get_args());
        let (ms, cpu) = run(command)?;
        under.0.push(ms);
        under_cpu.0.push(cpu);
        let images =
            std::fs::read_dir(store.path())?.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "cr"));
        checkpoints.0.push(images.count() as f64);
        drop(store);
        if !alone_first {
            run_alone()?;
        }
    }
    Ok(Row {
        name: format!("running time of the solver under cr run --interval {INTERVAL}, store on {place}: over without"),
        figures: under.over(&alone),
        bound: SLOWER,
        unit: "×",
        behind: vec![
            ("under cr ms".to_owned(), under),
            ("alone ms".to_owned(), alone),
            ("CPU under cr ms".to_owned(), under_cpu),
            ("CPU alone ms".to_owned(), alone_cpu),
            ("checkpoints".to_owned(), checkpoints),
        ],
    })
}

/// Steps that take about so long, by the difference of two short runs.
fn steps_for(seconds: f64) -> Result<u64> {
    let (few, many) = (20, 120);
    run(solver(few))?;
    let (start, more) = (run(solver(few))?.0, run(solver(many))?.0);
    let one = (more - start).max(1.0) / (many - few) as f64;
    Ok(((seconds * 1e3 - start) / one).max(1.0) as u64)
}

fn solver(steps: u64) -> Command {
    let mut command = Command::new(cr_tests::guest("solver"));
    command.args(strings(&[&"--mib", &256, &"--threads", &2, &"--steps", &steps]));
    command
}

/// Milliseconds from start to end, and of CPU time, that of its own children included.
fn run(mut command: Command) -> Result<(f64, f64)> {
    let cpu = cpu_of_children()?;
    let (ms, output) = timed(|| {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.spawn().and_then(std::process::Child::wait_with_output).with_context(|| format!("{command:?}"))
    })?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    ensure!(output.stdout.starts_with(b"answer "), "the solver has no answer");
    Ok((ms, cpu_of_children()? - cpu))
}

fn cpu_of_children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = usage.user_time() + usage.system_time();
    Ok(time.num_microseconds() as f64 / 1e3)
}
