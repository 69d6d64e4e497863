//! The promised figures (`SPECIFICATION.md`), each measured beside its baseline within one run.
//!
//! Only ratios hold on a shared machine, so ours and the baseline alternate, and the figure is the median of the ratios of
//! neighbours. Before anything is timed, memory that this machine has not backed yet is touched once, and each measurement
//! is done once untimed. Files are removed after each measurement, ours and the baseline's alike: both write to fresh pages.

mod baseline;
mod report;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use tempfile::TempDir;

use report::Row;

/// Measures what SPECIFICATION.md promises, beside baselines, as root.
#[derive(Parser)]
#[command(name = "cargo xtask bench figures")]
struct Args {
    /// Only these groups; all if none is named.
    #[arg(value_enum)]
    groups: Vec<rows::Group>,

    /// Timed repetitions of each short measurement, after one that is not timed.
    #[arg(long, default_value_t = 7)]
    repetitions: usize,

    /// Pairs of runs of the solver, with and without checkpoints.
    #[arg(long, default_value_t = 3)]
    pairs: usize,

    /// Seconds that one run of the solver shall take.
    #[arg(long, default_value_t = 21.0)]
    solver_seconds: f64,

    /// MiB of job memory where the figure does not say another size.
    #[arg(long, default_value_t = 1024)]
    mib: u64,

    /// A directory on a tmpfs.
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,

    /// A directory on a disk; `target/` if none is given.
    #[arg(long)]
    disk: Option<PathBuf>,

    /// Do not touch memory beforehand (it takes a minute where the machine backs it late).
    #[arg(long)]
    no_warm_up: bool,

    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// Exit with 1 if a figure misses its bound.
    #[arg(long)]
    check: bool,

    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What all measurements share.
struct Setting {
    args: Args,
    tmpfs: TempDir,
    disk: TempDir,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let target = cr_bench::begin()?;
    let disk = cr_bench::folder(args.disk.as_ref().unwrap_or(&target))?;
    let setting = Setting { tmpfs: cr_bench::folder(&args.tmpfs)?, disk, args };
    if !setting.args.no_warm_up {
        baseline::touch_free_memory()?;
    }
    let mut all: Vec<Row> = Vec::new();
    for group in setting.args.chosen() {
        eprintln!("measuring: {}", group.what());
        all.extend(group.measure(&setting).with_context(|| group.what())?);
    }
    let machine = cr_bench::machine::describe();
    if setting.args.json {
        println!("{}", serde_json::to_string_pretty(&report::json(&machine, &all))?);
    } else {
        println!("{machine}\n{}", report::table(&all));
    }
    let missed = all.iter().any(|row| !row.is_met());
    Ok(if setting.args.check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Args {
    fn chosen(&self) -> Vec<rows::Group> {
        if self.groups.is_empty() { rows::Group::ALL.to_vec() } else { self.groups.clone() }
    }
}
