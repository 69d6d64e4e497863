//! Finds the compiled eBPF programs and hands their path to the library, which embeds them.
//!
//! `CR_EBPF_OBJECT` names the object; without it, it is where `cargo xtask build-ebpf` puts it. Where there is none the
//! library is built without: it then says so when the programs are asked for, and `cr` works without them.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=CR_EBPF_OBJECT");
    let named = env::var_os("CR_EBPF_OBJECT").map(PathBuf::from);
    let usual =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../target/ebpf/cr-ebpf.o");
    let object = named.unwrap_or(usual);
    println!("cargo::rerun-if-changed={}", object.display());

    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("cr-ebpf.o");
    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!("cargo::warning=no eBPF programs at {}: `cargo xtask build-ebpf` makes them", object.display());
    }
    fs::write(&embedded, bytes).expect("cargo's output folder can be written");
    println!("cargo::rustc-env=CR_EBPF_EMBEDDED={}", embedded.display());
}
