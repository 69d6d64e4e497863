//! `cargo xtask fuzz`: the fuzzer, with coverage and `AddressSanitizer`. What every test run does of it is in `cr-fuzz/tests`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    build,
    command::{cargo, forget_package, output, root, run as run_command, target as target_folder},
    setup,
};

const CARGO_FUZZ: &str = "0.13.2";
const TARGETS: [&str; 4] = ["image", "chain", "records", "control"];

/// Sets up, builds, and fuzzes one target, or each; in no time at all, what was found before. Ends with the first finding, whose input
/// libFuzzer names.
pub(crate) fn run(target: Option<&str>, seconds: u64) -> Result<ExitCode> {
    build::ebpf(&setup::run()?)?;
    let cargo_fuzz = set_up()?;
    // cargo-fuzz would change it without a word.
    run_command(cargo().args(["fetch", "--quiet", "--locked", "--manifest-path", "fuzz/Cargo.toml"]))
        .context("fuzz/Cargo.lock does not fit: `cargo update --workspace --manifest-path fuzz/Cargo.toml` makes it")?;
    // libFuzzer takes 0 seconds for as long as it likes.
    let length = if seconds == 0 { "-runs=0".to_owned() } else { format!("-max_total_time={seconds}") };
    let targets = target.map_or_else(|| TARGETS.to_vec(), |target| vec![target]);
    for target in targets {
        // What is found on the way goes to the first folder; the one in the repository is only read.
        let found = target_folder().join("fuzz-corpus").join(target);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        let mut fuzz = Command::new(&cargo_fuzz);
        fuzz.args(["fuzz", "run", "--target-dir"]).arg(target_folder().join("fuzz")).arg(target).arg(&found);
        fuzz.arg(root().join("fuzz/corpus").join(target));
        fuzz.args(["--", &length, "-timeout=20", "-rss_limit_mb=2048"]);
        // No input needs a quarter of this at once; some have 160 KiB.
        fuzz.args(["-malloc_limit_mb=256", "-max_len=262144", "-print_final_stats=1"]);
        // Rustup's nightly, and not what runs this program.
        fuzz.current_dir(root()).env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO").env_remove("RUSTC");
        forget_package(&mut fuzz);
        run_command(&mut fuzz)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing: rustup's nightly, and cargo-fuzz under target/. Returns the latter.
fn set_up() -> Result<PathBuf> {
    if output(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])).is_none() {
        println!("setup: installing the nightly toolchain with rustup, for its AddressSanitizer");
        run_command(Command::new("rustup").args(["toolchain", "install", "nightly", "--profile", "minimal"]))?;
    }
    let folder = target_folder().join("cargo-fuzz");
    let program = folder.join("bin/cargo-fuzz");
    let version = output(Command::new(&program).args(["fuzz", "--version"]));
    if !version.is_some_and(|version| version.ends_with(CARGO_FUZZ)) {
        println!("setup: building cargo-fuzz {CARGO_FUZZ} into target/cargo-fuzz (about a minute)");
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--force", "--version", CARGO_FUZZ, "cargo-fuzz", "--root"]);
        run_command(install.arg(&folder).env_remove("CARGO_TARGET_DIR"))?;
    }
    Ok(program)
}
