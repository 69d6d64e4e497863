//! `cargo xtask test`: every test, the privileged ones included.

use std::{
    env,
    io::{BufRead as _, BufReader, IsTerminal as _},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    build,
    command::{cargo, root, shown, target},
    setup,
};

/// Sets up, builds, and runs `cargo test --workspace` with `args` after it. Says at the end how many tests, or parts of
/// tests, could not run here.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    build::ebpf(&setup::run()?)?;
    let mut test = test_command(args);
    if env::var_os("CARGO_TERM_COLOR").is_none() && std::io::stderr().is_terminal() {
        test.env("CARGO_TERM_COLOR", "always");
    }
    let mut running = test.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", shown(&test)))?;
    let mut skipped = Vec::new();
    for line in BufReader::new(running.stderr.take().expect("it is piped")).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        eprintln!("{line}");
        if line.starts_with("skipped:") {
            skipped.push(line);
        }
    }
    let status = running.wait()?;
    if !skipped.is_empty() {
        println!("\nnot everything could be tested here, {} times:", skipped.len());
        for line in &skipped {
            println!("  {line}");
        }
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn test_command(args: &[String]) -> Command {
    let mut test = cargo();
    // A package named by the caller replaces "all of them".
    let named = args.iter().any(|arg| arg == "-p" || arg.starts_with("--package"));
    test.arg("test").args((!named).then_some("--workspace")).args(args);
    if nix::unistd::geteuid().is_root() {
        return test;
    }
    // sudo keeps the environment but not always PATH and HOME, by which cargo and rustup find themselves.
    let mut sudo = Command::new("sudo");
    sudo.args(["-E", "env"]);
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME"] {
        sudo.args(env::var(name).map(|value| format!("{name}={value}")));
    }
    sudo.arg(format!("CARGO_TARGET_DIR={}", target().display())).arg(test.get_program()).args(test.get_args());
    sudo.current_dir(root());
    sudo
}
