//! What the benches share: jobs, the commands of `cr` that are timed, samples, and the machine.

pub mod commands;
pub mod guest;
pub mod machine;
pub mod sample;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// What every bench of whole jobs begins with. Returns `target/`.
pub fn begin() -> Result<PathBuf> {
    ensure!(nix::unistd::geteuid().is_root(), "this needs root: use `cargo xtask bench`, or sudo");
    cr::sys::fd::close_on_exec_from(3).context("closing what was inherited")?;
    // The program lies in target/PROFILE/deps.
    Ok(std::env::current_exe()?.ancestors().nth(3).context("where is target/?")?.to_owned())
}

/// A folder in `dir` that goes with the bench.
pub fn folder(dir: &Path) -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix("cr-bench-").tempdir_in(dir);
    made.with_context(|| format!("making a folder in {}", dir.display()))
}

/// Arguments from anything that can be printed.
pub fn strings(args: &[&dyn std::fmt::Display]) -> Vec<String> {
    args.iter().map(ToString::to_string).collect()
}
