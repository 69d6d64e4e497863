//! Each target over its corpus and, for a few seconds, over random changes of that: the part of fuzzing that every test run does.
//!
//! Each runs as a program of its own, so that one that is ended (a panic, too much memory, too long a time) leaves the input behind.
//! `CR_FUZZ_SECONDS` and `CR_FUZZ_SEED` change how long, and with which changes.

use std::env;
use std::path::Path;
use std::process::Command;

#[test]
fn image() {
    run("image");
}

#[test]
fn chain() {
    run("chain");
}

#[test]
fn records() {
    run("records");
}

#[test]
fn control() {
    run("control");
}

fn run(target: &str) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let last = folder.join(format!("{target}.{}", std::process::id()));
    let given = |name: &str, otherwise: &str| env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let seed = given("CR_FUZZ_SEED", "1");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cr-fuzz"));
    command.args(["run", target, "--seed", &seed, "--seconds", &given("CR_FUZZ_SECONDS", "8"), "--last"]);
    command.arg(&last).arg(package.join("../fuzz/corpus").join(target));
    let output = command.output().expect("cr-fuzz runs");
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    assert!(
        output.status.success(),
        "target {target}, seed {seed}: {}\n{wrong}\nThe input is {}: keep it in fuzz/corpus/{target} once the defect is mended, and run \
         it alone with\n  cargo run -p cr-fuzz -- run {target} {0}",
        output.status,
        last.display()
    );
    std::fs::remove_file(&last).expect("the last input was written there");
    let tried: u64 = said.split_whitespace().nth(3).and_then(|word| word.parse().ok()).expect("how many inputs");
    assert!(tried > 50, "only {tried} inputs were tried: {said}");
}
