//! `cargo xtask test`: every test, the privileged ones included.

use std::{
    env,
    io::{BufRead as _, BufReader, IsTerminal as _, Read},
    process::{Command, ExitCode, Stdio},
    thread,
};

use anyhow::{Context as _, Result};

use crate::{
    build,
    command::{cargo, root, run as run_command, shown, target},
    setup,
};

/// Sets up, builds, and runs `cargo test --workspace` with `args` after it. Ends with what failed tests said first, and the sum of all
/// test programs' counts; skipped are tests, or parts of tests, that could not run here.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    build::ebpf(&setup::run()?)?;
    let mut test = test_command(args);
    if args.is_empty() {
        // All programs at once: else the first test that needs `cr` would build it, for itself and with other features.
        run_command(&mut test_command(&["--no-run".to_owned()]))?;
        test.env("CR_BIN", target().join("debug/cr"));
    }
    if env::var_os("CARGO_TERM_COLOR").is_none() && std::io::stderr().is_terminal() {
        test.env("CARGO_TERM_COLOR", "always");
    }
    test.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = test.spawn().with_context(|| format!("cannot start {}", shown(&test)))?;
    let stdout = running.stdout.take().expect("it is piped");
    let counting = thread::spawn(move || {
        let mut failures = Failures::default();
        let counted = pass_on(
            stdout,
            |line| println!("{line}"),
            |line| {
                failures.read(line);
                counts(line)
            },
        );
        counted.map(|counted| (counted, failures))
    });
    let stderr = running.stderr.take().expect("it is piped");
    let skipped =
        pass_on(stderr, |line| eprintln!("{line}"), |line| line.starts_with("skipped:").then(|| line.to_owned()))?;
    let (counted, failures) = counting.join().expect("the thread that reads the tests' output does not panic")?;
    let status = running.wait()?;
    for failed in &failures.all {
        println!("\n{}", failed.join("\n"));
    }
    if !skipped.is_empty() {
        println!("\nnot everything could be tested here:");
        for line in &skipped {
            println!("  {line}");
        }
    }
    let [passed, failed, ignored] = counted.iter().fold([0; 3], |sum, c| [0, 1, 2].map(|i| sum[i] + c[i]));
    println!("\n{passed} passed, {failed} failed, {} skipped", skipped.len() as u64 + ignored);
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows each line, and keeps what `pick` makes of it.
fn pass_on<T>(from: impl Read, show: impl Fn(&str), mut pick: impl FnMut(&str) -> Option<T>) -> Result<Vec<T>> {
    let mut picked = Vec::new();
    for line in BufReader::new(from).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        show(&line);
        picked.extend(pick(&line));
    }
    Ok(picked)
}

/// Passed, failed and ignored of a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn counts(line: &str) -> Option<[u64; 3]> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| counts.split("; ").find_map(|c| c.strip_suffix(what)?.trim().parse().ok());
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

/// What failed tests said, each from its headline on. Who reads a long log finds it at the end once more.
#[derive(Default)]
struct Failures {
    all: Vec<Vec<String>>,
    /// Whether the lines are those of a failed test.
    reads: bool,
}

impl Failures {
    /// Lines of one test that are kept.
    const MOST: usize = 30;

    fn read(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.reads = true;
            self.all.push(Vec::new());
        }
        self.reads &= line != "failures:" && line != "stack backtrace:" && !line.starts_with("test result: ");
        if self.reads
            && let Some(last) = self.all.last_mut()
            && last.len() < Self::MOST
        {
            last.push(line.to_owned());
        }
    }
}

fn test_command(args: &[String]) -> Command {
    let mut test = cargo();
    // A package named by the caller replaces "all of them".
    let named = args.iter().any(|arg| arg == "-p" || arg.starts_with("--package"));
    test.args(["test", "--no-fail-fast"]).args((!named).then_some("--workspace")).args(args);
    if nix::unistd::geteuid().is_root() {
        return test;
    }
    // sudo keeps the environment but not always PATH and HOME, by which cargo and rustup find themselves.
    let mut sudo = Command::new("sudo");
    sudo.args(["-E", "env"]);
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME"] {
        sudo.args(env::var(name).map(|value| format!("{name}={value}")));
    }
    sudo.arg(format!("CARGO_TARGET_DIR={}", target().display())).arg(test.get_program()).args(test.get_args());
    sudo.current_dir(root());
    sudo
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_test_programs_result_is_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        assert_eq!(super::counts(line), Some([12, 3, 1]));
        assert_eq!(super::counts("test a ... ok"), None);
    }

    #[test]
    fn what_failed_tests_said_is_kept() {
        let mut failures = super::Failures::default();
        let log = "test a ... FAILED\nfailures:\n---- a stdout ----\nwhy\nstack backtrace:\n 0: f\n---- b stdout ----\nfailures:\n    a";
        log.lines().for_each(|line| failures.read(line));
        assert_eq!(failures.all, [vec!["---- a stdout ----", "why"], vec!["---- b stdout ----"]]);
    }
}
