//! Each target over its corpus and, for a few seconds, over random changes of that: the part of fuzzing that every test run does.
//!
//! Each runs as a program of its own, so that one that is ended (a panic, too much memory, too long a time) leaves the input behind.
//! `CR_FUZZ_SECONDS` and `CR_FUZZ_SEED` change how long, and with which changes.
//!
//! And whether the fuzzer's own build, which is not part of the workspace, would still be made of what its lock file says.

use std::collections::BTreeSet;
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

#[test]
fn the_fuzzers_own_lock_file_knows_all_dependencies() {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let lock = read("fuzz/Cargo.lock");
    for package in ["cr-common", "cr-user", "cr-fuzz"] {
        let manifest = read(&format!("{package}/Cargo.toml"));
        let (_, section) = manifest.split_once("\n[dependencies]\n").expect("it has dependencies");
        let lines = section.lines().take_while(|line| !line.starts_with('['));
        let name = |line: &str| line.split(['.', ' ', '=']).next().map(str::to_owned).filter(|name| !name.is_empty());
        let wanted: BTreeSet<String> = lines.filter(|line| !line.starts_with('#')).filter_map(name).collect();
        let (_, entry) = lock.split_once(&format!("\nname = \"{package}\"\n")).expect("it is in the lock file");
        let (entry, _) = entry.split_once("\n]\n").expect("the end of a list");
        // With the version after the name where there are several.
        let listed = entry.lines().filter_map(|line| line.strip_prefix(" \"")?.split(['"', ' ']).next());
        let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
        assert!(wanted.len() > 1, "{package}");
        assert_eq!(wanted, listed, "{package}: run `cargo update --workspace --manifest-path fuzz/Cargo.toml`");
    }
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
