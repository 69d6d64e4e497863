//! The builds: the eBPF programs with their own toolchain, then the controller with the stable one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    command::{cargo, root, run, target},
    setup::Tools,
};

/// Builds the eBPF programs and returns the object's path, `target/ebpf/cr-ebpf.o`.
pub(crate) fn ebpf(tools: &Tools) -> Result<PathBuf> {
    let folder = target().join("ebpf");
    let mut build = tools.toolchain.cargo();
    build.current_dir(root().join("cr-ebpf"));
    build.args(["build", "--quiet", "--release", "--locked", "-Zbuild-std=core", "--target", "bpfel-unknown-none"]);
    build.arg("--target-dir").arg(&folder).env("CARGO_ENCODED_RUSTFLAGS", flags(&tools.bpf_linker));
    run(&mut build).context("cannot build the eBPF programs")?;

    let object = folder.join("cr-ebpf.o");
    copy_if_changed(&folder.join("bpfel-unknown-none/release/cr-ebpf"), &object)?;
    Ok(object)
}

/// Builds `cr` for release, eBPF programs included, and returns its path.
pub(crate) fn cr(tools: &Tools) -> Result<PathBuf> {
    ebpf(tools)?;
    run(cargo().args(["build", "--quiet", "--release", "--package", "cr-user", "--bin", "cr"]))?;
    Ok(target().join("release/cr"))
}

/// No `--btf`: bpf-linker 0.10 leaves the name of the union `MaybeUninit<u8>` in aya's `Global` as it is, and the kernel
/// refuses type information with such a name. The programs need only the kernel's own.
fn flags(linker: &Path) -> String {
    let linker = format!("-Clinker={}", linker.display());
    [
        "--cfg=bpf_target_arch=\"x86_64\"",
        // The instruction set with atomic bit operations; kernels have it since 5.12.
        "-Ctarget-cpu=v3",
        &linker,
    ]
    .join("\x1f")
}

/// Leaves the copy's time alone when nothing changed, so that cargo does not rebuild `cr` around it.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
