//! What jobs lose by being tracked and checkpointed: each runs with and without `cr`, in turn, several times.
//!
//! A job does a fixed amount of work and says itself how long that took, so neither its start nor its end counts. The amount is
//! chosen beforehand, so that it takes about `--seconds` alone. One pair is one run in each mode; the order changes from pair to pair,
//! and a ratio is always that of two runs of one pair. What is said of all pairs is the median, with the smallest and the largest.

mod jobs;
mod modes;
mod plot;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use cr_bench::machine;
use tempfile::TempDir;

use jobs::Job;
use modes::{Mode, Run};
use report::Outcome;

/// Measures what jobs lose under cr, as root.
#[derive(Parser)]
#[command(name = "cargo xtask bench overhead")]
struct Args {
    /// Only these jobs, separated by commas; all if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    jobs: Vec<Job>,

    /// Only these modes beside `alone`, separated by commas; all that a job has if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    modes: Vec<Mode>,

    /// Runs of each job in each mode.
    #[arg(long, default_value_t = 3)]
    pairs: usize,

    /// Seconds that one run of a job alone shall take.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,

    /// Time between checkpoints.
    #[arg(long, default_value = "3s")]
    interval: String,

    /// A directory for the stores, on whatever shall be measured with.
    #[arg(long, default_value = "/dev/shm")]
    store: PathBuf,

    /// Where plots and JSON go; `target/overhead` if nothing is given.
    #[arg(long)]
    output: Option<PathBuf>,

    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// Exit with 1 if a job misses its bound.
    #[arg(long)]
    check: bool,

    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What all measurements share.
struct Setting {
    args: Args,
    /// For what belongs to the jobs.
    tmpfs: TempDir,
    /// For the stores.
    stores: TempDir,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let target = cr_bench::begin()?;
    let output = args.output.clone().unwrap_or_else(|| target.join("overhead"));
    let setting =
        Setting { tmpfs: cr_bench::folder(Path::new("/dev/shm"))?, stores: cr_bench::folder(&args.store)?, args };

    let mut outcomes = Vec::new();
    for job in setting.args.chosen() {
        if let Err(why) = job.is_here() {
            eprintln!("skipped: {}: {why:#}", job.name());
            continue;
        }
        outcomes.push(measure(&setting, job).with_context(|| format!("measuring {}", job.name()))?);
    }
    let machine = machine::describe();
    let json = serde_json::to_string_pretty(&report::json(&setting.args, &machine, &outcomes))?;
    fs::create_dir_all(&output)?;
    fs::write(output.join("overhead.json"), &json)?;
    let plots = plot::all(&output, &machine, &outcomes)?;
    if setting.args.json {
        println!("{json}");
    } else {
        println!("{machine}\n{}", report::table(&outcomes));
        for plot in &plots {
            println!("{}", plot.display());
        }
    }
    let missed = outcomes.iter().any(Outcome::misses_a_bound);
    Ok(if setting.args.check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// All runs of one job.
fn measure(setting: &Setting, job: Job) -> Result<Outcome> {
    let wanted = |mode: &Mode| setting.args.modes.is_empty() || setting.args.modes.contains(mode);
    let modes: Vec<Mode> = job.modes().iter().copied().filter(|mode| *mode == Mode::Alone || wanted(mode)).collect();
    let work = job.work_for(setting, setting.args.seconds).context("finding out how much work to give it")?;
    let mut runs: Vec<(Mode, Vec<Run>)> = modes.iter().map(|mode| (*mode, Vec::new())).collect();
    for pair in 0..setting.args.pairs {
        for turn in 0..modes.len() {
            // Every mode is once the first.
            let (mode, of_mode) = &mut runs[(pair + turn) % modes.len()];
            eprintln!("measuring: {} {}, {} of {}", job.name(), mode.name(), pair + 1, setting.args.pairs);
            of_mode.push(mode.run(setting, job, work)?);
        }
    }
    Ok(Outcome { job, work, runs })
}

impl Args {
    fn chosen(&self) -> Vec<Job> {
        if self.jobs.is_empty() { Job::ALL.to_vec() } else { self.jobs.clone() }
    }
}
