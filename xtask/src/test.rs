//! `cargo xtask test`: every test, the privileged ones included.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    build,
    command::{cargo, pass_on, root, target},
    setup,
};

/// Sets up, builds, and runs `cargo test --workspace` with `args` after it.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    build::ebpf(&setup::run()?)?;
    let mut test = cargo();
    // A package named by the caller replaces "all of them".
    let named = args.iter().any(|arg| arg == "-p" || arg.starts_with("--package"));
    test.arg("test").args((!named).then_some("--workspace")).args(args);
    if nix::unistd::geteuid().is_root() {
        return pass_on(&mut test);
    }
    // sudo keeps the environment but not always PATH and HOME, by which cargo and rustup find themselves.
    let mut sudo = std::process::Command::new("sudo");
    sudo.args(["-E", "env"]);
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME"] {
        sudo.args(std::env::var(name).map(|value| format!("{name}={value}")));
    }
    sudo.arg(format!("CARGO_TARGET_DIR={}", target().display())).arg(test.get_program()).args(test.get_args());
    pass_on(sudo.current_dir(root()))
}
