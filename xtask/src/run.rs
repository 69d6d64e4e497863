//! `cargo xtask run`.
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{build, command::pass_on, setup};

pub(crate) fn main_job() -> Result<ExitCode> {
    anyhow::bail!("not yet")
}

/// Builds `cr` and runs it with `args`, passing on its exit code.
pub(crate) fn cr(args: &[String]) -> Result<ExitCode> {
    let cr = build::cr(&setup::run()?)?;
    pass_on(Command::new(cr).args(args))
}
