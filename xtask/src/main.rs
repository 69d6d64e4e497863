//! Set-up, build, run, test and bench of cr: `cargo xtask <command>`.

mod bench;
mod build;
mod command;
mod fuzz;
mod run;
mod setup;
mod test;
mod toolchain;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Set-up, build, run, test and bench of cr.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install what is missing: gcc, a toolchain that builds for BPF, and bpf-linker (under target/).
    Setup,
    /// Build the eBPF programs to target/ebpf/cr-ebpf.o.
    BuildEbpf,
    /// Set up, build, and run the main job: checkpoint a solver, kill it, restore it, compare the answers.
    ///
    /// With arguments after `--`: set up, build, and run `cr` with these arguments.
    Run {
        /// Arguments for `cr`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Set up, build, and run every test, the privileged ones included (with sudo where not root).
    Test {
        /// Arguments for `cargo test`, for example `-p cr-tests --test ebpf -- --nocapture`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Set up what fuzzing takes, build with `AddressSanitizer`, and fuzz what reads a store (fuzz/README.md).
    Fuzz {
        /// `image`, `chain`, `records` or `control`; all of them, one after the other, if none is named.
        target: Option<String>,
        /// For how long each is fuzzed; 0: what is in the corpus, and no more.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Set up, build for release, and measure the promised figures (as root, with sudo where not root), then the hot paths.
    ///
    /// With `overhead`: what jobs lose by being tracked and checkpointed.
    Bench {
        /// Arguments for the figures (`--help`, `--check`, `--json`, `full`, …); `overhead` and arguments for that (`--help`); or
        /// `hot-paths` and arguments for criterion.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup => setup::run().map(|_| ExitCode::SUCCESS),
        Task::BuildEbpf => build_ebpf(),
        Task::Run { args } if args.is_empty() => run::main_job(),
        Task::Run { args } => run::cr(&args),
        Task::Test { args } => test::run(&args),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Bench { args } => bench::run(&args),
    };
    done.unwrap_or_else(|error| {
        // One line of causes; where it happened within this program helps nobody.
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn build_ebpf() -> Result<ExitCode> {
    let object = build::ebpf(&setup::run()?)?;
    println!("{}", object.display());
    Ok(ExitCode::SUCCESS)
}
