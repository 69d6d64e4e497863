//! Finds a Rust toolchain that can build `core` for the BPF target.
//!
//! Two kinds can: rustup's nightly with the component `rust-src`, and Debian's packages `rustc-web`, `cargo-web` and
//! `rust-web-src`. Either must bring the LLVM that bpf-linker was made for, because bpf-linker borrows it at run time
//! and reads the bitcode that the compiler wrote.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::command::output;

/// bpf-linker 0.10 is written against this major version of LLVM.
const LLVM: &str = "22";

/// A toolchain that can build the eBPF programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    kind: Kind,
    /// The folder of its LLVM, which bpf-linker loads.
    llvm_folder: PathBuf,
}

#[derive(Debug)]
enum Kind {
    /// A toolchain of rustup's, by name.
    Rustup(String),
    /// `/usr/bin/cargo` and `/usr/bin/rustc`.
    Debian,
}

impl Toolchain {
    /// The first toolchain that fits: rustup's nightlies, then Debian's.
    pub(crate) fn find() -> Option<Self> {
        rustup_nightlies().into_iter().find_map(Self::rustup).or_else(Self::debian)
    }

    fn rustup(name: String) -> Option<Self> {
        let rustc = || {
            let mut rustc = clean("rustup");
            rustc.args(["run", &name, "rustc"]);
            rustc
        };
        let sysroot = usable_sysroot(rustc)?;
        Some(Self { kind: Kind::Rustup(name), llvm_folder: sysroot.join("lib") })
    }

    fn debian() -> Option<Self> {
        usable_sysroot(|| clean("/usr/bin/rustc"))?;
        let cargo = Path::new("/usr/bin/cargo").exists();
        cargo.then(|| Self { kind: Kind::Debian, llvm_folder: "/usr/lib/x86_64-linux-gnu".into() })
    }

    /// Its cargo, free of what the cargo that runs this program put into the environment.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match &self.kind {
            Kind::Rustup(name) => {
                let mut rustup = clean("rustup");
                rustup.args(["run", name, "cargo"]);
                rustup
            }
            Kind::Debian => {
                let mut cargo = clean("/usr/bin/cargo");
                // Debian's is a stable release; building `core` needs the gate of nightly features open.
                cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        command.env("LD_LIBRARY_PATH", &self.llvm_folder);
        command
    }

    /// Where its LLVM lies.
    pub(crate) fn llvm_folder(&self) -> &Path {
        &self.llvm_folder
    }
}

fn rustup_nightlies() -> Vec<String> {
    let listed = output(clean("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect()
}

/// The sysroot of a compiler, if it has the right LLVM and the source of `core`.
fn usable_sysroot(rustc: impl Fn() -> Command) -> Option<PathBuf> {
    let version = output(rustc().args(["--version", "--verbose"]))?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    if llvm.split('.').next() != Some(LLVM) {
        return None;
    }
    let sysroot = PathBuf::from(output(rustc().args(["--print", "sysroot"]))?);
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists().then_some(sysroot)
}

/// A command without the variables by which an outer cargo or rustup would steer it.
fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in ["CARGO", "RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET").env_remove("LD_LIBRARY_PATH");
    command
}
