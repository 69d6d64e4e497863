//! Child processes: run them, and say which one failed.

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// Where everything that is built goes.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The stable cargo that runs this program, working in the repository's root and building into [`target`].
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("CARGO_TARGET_DIR", target());
    forget_package(&mut command);
    command
}

/// Takes out what `cargo run` has told this program about its own package. ring's build script looks at variables of these names: with
/// ours it would run again, and all that is built on it, whenever `cargo` and `cargo xtask` take turns.
pub(crate) fn forget_package(command: &mut Command) {
    let names = env::vars_os().map(|(name, _)| name);
    let ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    names.filter(ours).for_each(|name| {
        command.env_remove(name);
    });
}

/// `program`, with `sudo` before it unless this already runs as root.
pub(crate) fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Runs `command` with this program's own output; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command` and passes on its exit code; 128 + N if signal N ended it, as a shell does.
pub(crate) fn pass_on(command: &mut Command) -> Result<ExitCode> {
    use std::os::unix::process::ExitStatusExt as _;
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The standard output of `command`, or nothing if it cannot be run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
