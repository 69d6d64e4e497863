//! Runs the fuzzer's targets without the fuzzer: over its corpus, and then over random changes of that for a while.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, abort};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use cr_fuzz::{Random, Target, mutate, seeds};
use nix::sys::resource::{Resource, setrlimit};

/// No input may take longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// All memory that this program may have: inputs are a few hundred kilobytes at most.
const MEMORY: u64 = 1 << 30;
/// Inputs do not grow beyond this many bytes.
const LONGEST: usize = 1 << 18;

/// Runs the fuzzer's targets without the fuzzer.
#[derive(Parser)]
enum Task {
    /// Runs a target over files (those of a folder in the order of their names), then over changes of them.
    Run {
        /// `image`, `chain`, `records` or `control`.
        target: String,
        /// Inputs, or folders of them.
        files: Vec<PathBuf>,
        /// For how long changes of them are tried.
        #[arg(long, default_value_t = 0)]
        seconds: u64,
        /// The seed of the changes.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where each input is written before it is tried, so that it is still there if this program is not.
        #[arg(long)]
        last: Option<PathBuf>,
    },
    /// Makes the inputs that the fuzzer starts with; those of `records` from checkpoints of real jobs.
    Seeds {
        /// Stores; their names become those of the inputs.
        stores: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Run { target, files, seconds, seed, last } => run(&target, &files, seconds, seed, last.as_deref()),
        Task::Seeds { stores } => {
            let package = Path::new(env!("CARGO_MANIFEST_DIR"));
            seeds::write(&package.join("../fuzz/corpus"), &package.join("base.records"), &stores)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cr-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(target: &str, files: &[PathBuf], seconds: u64, seed: u64, last: Option<&Path>) -> Result<()> {
    let target = Target::find(target).with_context(|| format!("there is no target {target}"))?;
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).context("cannot limit the memory")?;
    let inputs = read_inputs(files)?;
    let (mut tried, mut made_sense) = (0_u64, 0_u64);
    let mut try_one = |input: &[u8]| -> Result<bool> {
        if let Some(last) = last {
            fs::write(last, input).with_context(|| format!("cannot write {}", last.display()))?;
        }
        let sense = (target.run)(input);
        TRIED.fetch_add(1, Ordering::Relaxed);
        tried += 1;
        made_sense += u64::from(sense);
        Ok(sense)
    };
    watch_over();
    for (path, input) in &inputs {
        let sense = try_one(input)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        anyhow::ensure!(sense || !name.starts_with(seeds::VALID), "{} is not accepted, and should be", path.display());
    }
    let (until, mut random) = (Instant::now() + Duration::from_secs(seconds), Random::new(seed));
    let mut input = Vec::new();
    while Instant::now() < until && !inputs.is_empty() {
        // Several changes after each other, now and then.
        if input.is_empty() || random.below(3) > 0 {
            input.clone_from(&inputs[random.below(inputs.len())].1);
        }
        mutate(&mut input, LONGEST, &mut random);
        try_one(&input)?;
    }
    println!("{}: {} files, {tried} inputs, {made_sense} of them made sense (seed {seed})", target.name, inputs.len());
    Ok(())
}

/// The inputs in files and folders.
fn read_inputs(files: &[PathBuf]) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths = Vec::new();
    for file in files {
        if file.is_dir() {
            let entries = fs::read_dir(file).with_context(|| format!("cannot list {}", file.display()))?;
            let mut inside = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
            inside.sort();
            paths.extend(inside);
        } else {
            paths.push(file.clone());
        }
    }
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((path, bytes))
    };
    paths.into_iter().map(read).collect()
}

/// Inputs that are done with.
static TRIED: AtomicU64 = AtomicU64::new(0);

/// Ends this program if one input takes too long.
fn watch_over() {
    thread::spawn(|| {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            thread::sleep(Duration::from_millis(500));
            let tried = TRIED.load(Ordering::Relaxed);
            if tried != seen {
                (seen, since) = (tried, Instant::now());
            } else if since.elapsed() > PATIENCE {
                eprintln!("input {tried} takes longer than {} s", PATIENCE.as_secs());
                abort();
            }
        }
    });
}
