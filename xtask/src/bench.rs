//! `cargo xtask bench`: the benches of the package `cr-bench`.

use std::{path::Path, process::ExitCode};

use anyhow::Result;

use crate::{
    build,
    command::{cargo, pass_on},
    setup,
};

/// Sets up, builds `cr` for release, and runs the promised figures with `args`; with `hot-paths` as the first argument the
/// criterion benches of hot paths instead, with `overhead` what jobs lose under `cr`, and without any argument the first two.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let cr = build::cr(&setup::run()?)?;
    match args.split_first() {
        None => match bench("figures", &cr, &[])? {
            ExitCode::SUCCESS => bench("hot_paths", &cr, &[]),
            failed => Ok(failed),
        },
        Some((first, rest)) if first == "hot-paths" => bench("hot_paths", &cr, rest),
        Some((first, rest)) if first == "overhead" => {
            setup::bench_programs();
            bench("overhead", &cr, rest)
        }
        Some((first, rest)) if first == "figures" => bench("figures", &cr, rest),
        Some(_) => bench("figures", &cr, args),
    }
}

fn bench(name: &str, cr: &Path, args: &[String]) -> Result<ExitCode> {
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--package", "cr-bench", "--bench", name]).env("CR_BIN", cr);
    if !nix::unistd::geteuid().is_root() {
        // The benches run as root; cargo stays the user's.
        bench.args(["--config", "target.'cfg(all())'.runner = ['sudo', '-E']"]);
    }
    pass_on(bench.arg("--").args(args))
}
