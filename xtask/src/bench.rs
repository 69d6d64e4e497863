//! `cargo xtask bench`: the benches of the package `cr-bench`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    build,
    command::{cargo, pass_on},
    setup,
};

/// Sets up, builds `cr` for release, and runs `cargo bench -p cr-bench` with `args` after it.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    build::cr(&setup::run()?)?;
    pass_on(cargo().args(["bench", "--package", "cr-bench"]).args(args))
}
