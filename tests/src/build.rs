//! The programs under test: `cr` itself and the guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::{close_inherited, run_for};

/// A command that runs the `cr` under test: `$CR_BIN` if set; otherwise the workspace's, brought up to date first by
/// `cargo build --package cr-user` in the profile of the tests (once per test program).
pub fn cr() -> Command {
    close_inherited();
    Command::new(cr_path())
}

fn cr_path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os("CR_BIN").map_or_else(build_cr, PathBuf::from))
}

fn build_cr() -> PathBuf {
    let profile = profile_dir();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "cr-user"]).current_dir(workspace());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo builds cr (or set CR_BIN to a built one)");
    assert!(status.success(), "cargo build --package cr-user: {status} (or set CR_BIN to a built one)");
    profile.join("cr")
}

/// The guest program `name`, compiled from `tests/guests/NAME.c` if it is missing or older than its sources.
pub fn guest(name: &str) -> PathBuf {
    let sources = workspace().join("tests/guests");
    let source = sources.join(format!("{name}.c"));
    let built = target_dir().join("guests");
    let program = built.join(name);
    fs::create_dir_all(&built).expect("a folder for the guests under target/");
    // Test programs run side by side, and so do the tests in each.
    let lock = fs::File::create(built.join(".lock")).expect("the guests' lock file");
    lock.lock().expect("the lock of the guests' folder");
    let newest_header =
        files_in(&sources).filter(|path| path.extension().is_some_and(|e| e == "h")).map(|h| modified(&h)).max();
    let newest_source = modified(&source).max(newest_header.flatten());
    assert!(newest_source.is_some(), "no source for the guest {}", source.display());
    if modified(&program) <= newest_source {
        let fresh = built.join(format!("{name}.new"));
        let output = Command::new(compiler(name))
            .args(["-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
            .args([&fresh, &source])
            .arg("-lrt")
            .output()
            .unwrap_or_else(|error| panic!("{} compiles the guests: {error}", compiler(name)));
        assert!(
            output.status.success(),
            "compiling {}:\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        fs::rename(&fresh, &program).expect("the compiled guest is put into place");
    }
    program
}

/// Guests that use MPI are compiled by its wrapper, which knows where it is installed.
fn compiler(guest: &str) -> &'static str {
    if guest.starts_with("mpi_") { "mpicc" } else { "gcc" }
}

/// Whether `program` can be run, after its Debian packages were installed if it could not.
pub fn install(program: &str, packages: &[&str]) -> bool {
    let there = || Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there() {
        let mut apt = Command::new("apt-get");
        // Another test may be installing something.
        apt.args(["-o", "DPkg::Lock::Timeout=100", "install", "--yes", "--no-install-recommends"]).args(packages);
        run_for(apt.env("DEBIAN_FRONTEND", "noninteractive"), Duration::from_secs(300));
    }
    there()
}

/// A program from a crate, which `cargo xtask setup` has built into `target/tools`; none if it has not.
pub fn tool(name: &str) -> Option<PathBuf> {
    Some(target_dir().join("tools/bin").join(name)).filter(|program| program.exists())
}

/// The names that a guest with many parts lists itself (`trap - list`, `unsupported - list`).
pub fn guest_names(name: &str) -> Vec<String> {
    let output = Command::new(guest(name)).args(["-", "list"]).output().expect("the guest lists its parts");
    String::from_utf8(output.stdout).expect("names in UTF-8").lines().map(str::to_owned).collect()
}

fn files_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).expect("the guests' folder").flatten().map(|entry| entry.path())
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' crate lies in the workspace")
}

/// `target/PROFILE`: the test program lies in its `deps`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the test program's path");
    test.parent().and_then(Path::parent).expect("the test program lies in target/PROFILE/deps").to_owned()
}

fn target_dir() -> PathBuf {
    profile_dir().parent().expect("the profile's folder lies in target/").to_owned()
}
