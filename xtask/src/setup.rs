//! `cargo xtask setup`: everything that a fresh Debian 12 with rustup's stable Rust lacks. Says one line for each
//! thing that it has to do, and nothing when all is there.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{as_root, cargo, output, run as run_command, target},
    toolchain::Toolchain,
};

/// The linker's version; its LLVM major version is the one that [`Toolchain::find`] asks for.
const BPF_LINKER: &str = "0.10.0";
/// A compiler for Rust with LLVM 22 and the source of `core`, from Debian 12's security suite.
const RUST_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// What compiles the tests' guests.
const C_PACKAGES: [&str; 2] = ["gcc", "libc6-dev"];
/// Programs that tests run as jobs, or need for their networks or to look at core files, how they are asked for their version, and where they come from.
/// Without them these tests say that they were skipped.
const JOB_PROGRAMS: [(&str, &str, &str); 8] = [
    ("mpirun", "--version", "openmpi-bin"),
    ("mpicc", "--version", "libopenmpi-dev"),
    ("python3", "--version", "python3"),
    ("redis-server", "--version", "redis-server"),
    ("nginx", "-v", "nginx-light"),
    ("ip", "-V", "iproute2"),
    ("nft", "--version", "nftables"),
    ("gdb", "--version", "gdb"),
];
/// Programs from crates that tests use, their versions and features: a server of S3 that keeps its objects in files.
const TOOLS: [(&str, &str, &str); 1] = [("s3s-fs", "0.14.1", "binary")];
/// Real programs that `cargo xtask bench overhead` runs as jobs; without them it says that they were skipped.
const BENCH_PROGRAMS: [(&str, &str, &str); 2] = [("lmp", "-h", "lammps"), ("mpirun", "--version", "openmpi-bin")];
/// Installs packages, but lets none of them start a service (invoke-rc.d(8)): they are wanted as programs only.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" || exit 1
fi
apt-get -qq install -y --no-install-recommends "$@"
"#;

/// The tools that building the eBPF programs takes.
pub(crate) struct Tools {
    pub(crate) toolchain: Toolchain,
    pub(crate) bpf_linker: PathBuf,
}

/// Sets up what is missing.
pub(crate) fn run() -> Result<Tools> {
    if output(Command::new("gcc").arg("--version")).is_none() {
        println!("setup: installing gcc with apt");
        apt_install(&C_PACKAGES).context("the tests' guests are C programs: install gcc and try again")?;
    }
    install_programs(&JOB_PROGRAMS, "tests");
    install_tools(&TOOLS);
    let toolchain = match Toolchain::find() {
        Some(toolchain) => toolchain,
        None => install_toolchain()?,
    };
    let bpf_linker = target().join("bpf-linker/bin/bpf-linker");
    if !linker_works(&bpf_linker, &toolchain) {
        println!("setup: building bpf-linker {BPF_LINKER} into target/bpf-linker (about two minutes)");
        install_linker(&bpf_linker, &toolchain)?;
    }
    Ok(Tools { toolchain, bpf_linker })
}

/// Builds programs from crates into `target/tools`, for tests.
fn install_tools(tools: &[(&str, &str, &str)]) {
    for (name, version, features) in tools {
        let root = target().join("tools");
        let program = root.join("bin").join(name);
        if output(Command::new(&program).arg("--version")).is_some_and(|found| found.ends_with(version)) {
            continue;
        }
        println!("setup: building {name} {version} into target/tools (some minutes)");
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--force", "--version", version, name, "--features", features]);
        install.arg("--root").arg(&root).env_remove("CARGO_TARGET_DIR");
        if let Err(error) = run_command(&mut install) {
            println!("setup: {error:#}; going on without: the tests that need it will be skipped");
        }
    }
}

/// Sets up what only the bench of overheads runs.
pub(crate) fn bench_programs() {
    install_programs(&BENCH_PROGRAMS, "benches");
}

/// Installs the packages of programs that are missing; `what` runs them as jobs.
fn install_programs(programs: &[(&str, &str, &str)], what: &str) {
    let is_missing = |program: &str, version: &str| output(Command::new(program).arg(version)).is_none();
    let missing = programs.iter().filter(|(program, version, _)| is_missing(program, version));
    let packages: Vec<&str> = missing.map(|(_, _, package)| *package).collect();
    if packages.is_empty() {
        return;
    }
    println!("setup: installing {} with apt, for {what} with real jobs", packages.join(", "));
    if let Err(error) = apt_install(&packages) {
        println!("setup: {error:#}; going on without: the {what} that need them will be skipped");
    }
}

fn install_toolchain() -> Result<Toolchain> {
    const ELSE: &str = "another way: `rustup toolchain install nightly --component rust-src`, with LLVM 22";
    println!("setup: no toolchain here builds for BPF; installing {} with apt", RUST_PACKAGES.join(", "));
    apt_install(&RUST_PACKAGES).context(ELSE)?;
    Toolchain::find().with_context(|| format!("apt installed {RUST_PACKAGES:?}, but they do not fit; {ELSE}"))
}

fn apt_install(packages: &[&str]) -> Result<()> {
    // Through `env`, because sudo drops the variables of its caller.
    let as_root = |arguments: &[&str]| {
        let mut command = as_root("env");
        command.arg("DEBIAN_FRONTEND=noninteractive").args(arguments);
        run_command(&mut command)
    };
    // A source of packages that cannot be reached is no reason to stop: the ones needed may come from another.
    if let Err(error) = as_root(&["apt-get", "-qq", "update"]) {
        println!("setup: {error:#}; going on with the package lists that are here");
    }
    as_root(&[&["sh", "-c", INSTALL, "sh"], packages].concat())
}

fn linker_works(linker: &Path, toolchain: &Toolchain) -> bool {
    let version = output(Command::new(linker).arg("--version").env("LD_LIBRARY_PATH", toolchain.llvm_folder()));
    version.is_some_and(|version| version.ends_with(BPF_LINKER))
}

fn install_linker(linker: &Path, toolchain: &Toolchain) -> Result<()> {
    let mut install = cargo();
    // Its build goes to a temporary folder of cargo's, so that this repository's profiles and flags do not reach it.
    install.args(["install", "--quiet", "--locked", "--force", "--version", BPF_LINKER, "bpf-linker", "--root"]);
    install.arg(target().join("bpf-linker")).env_remove("CARGO_TARGET_DIR");
    run_command(&mut install)?;
    if !linker_works(linker, toolchain) {
        bail!("{} was built but does not run; is libstdc++ or zlib missing?", linker.display());
    }
    Ok(())
}
