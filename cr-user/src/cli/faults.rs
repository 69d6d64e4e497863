//! `cr fault-points`: where tests can make cr fail.

use cr::fault;

use super::{Execute, Output};

/// Lists the points that `CR_FAULT` can name, one a line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

impl Execute for Args {
    fn json(&self) -> bool {
        false
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        output.print(&fault::POINTS.join("\n"));
        Ok(0)
    }
}
