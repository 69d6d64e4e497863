//! Commands with a time limit, and what came of them.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{LIMIT, close_inherited};

/// A command that has ended, by itself or by its time limit.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// The exit code, 128 + signal if a signal ended it, or `None` if it had to be killed at its time limit.
    pub code: Option<i32>,
    /// Standard output, as far as it is UTF-8.
    pub stdout: String,
    /// Standard error, as far as it is UTF-8.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

/// Runs a command to its end, for at most [`LIMIT`]. Standard input is `/dev/null`.
pub fn run(command: &mut Command) -> Finished {
    run_for(command, LIMIT)
}

/// Runs a command to its end, for at most `limit`; then it is killed and the code is `None`.
pub fn run_for(command: &mut Command, limit: Duration) -> Finished {
    close_inherited();
    let line = format!("{command:?}");
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let mut stdout = child.stdout.take().expect("piped");
    let mut stderr = child.stderr.take().expect("piped");
    let (out_sender, out) = std::sync::mpsc::channel();
    let (err_sender, err) = std::sync::mpsc::channel();
    // A job left behind may hold the pipes open: the readers are given up then, not waited for.
    thread::spawn(move || out_sender.send(read_all(&mut stdout)));
    thread::spawn(move || err_sender.send(read_all(&mut stderr)));
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for the command") {
            break Some(status);
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(Duration::from_millis(2));
    };
    let took = start.elapsed();
    let grace = Duration::from_secs(1);
    Finished {
        command: line,
        code: status.and_then(|status| status.code().or(status.signal().map(|signal| 128 + signal))),
        stdout: out.recv_timeout(grace).unwrap_or_default(),
        stderr: err.recv_timeout(grace).unwrap_or_default(),
        took,
    }
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Finished {
    /// Panics, with everything there is to know, unless the exit code is `code`.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert!(self.code == Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// Exit code 0 and JSON on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert!(self.code == Some(0), "expected success\n{self}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error})\n{self}"))
    }

    /// Everything it said: `cr`'s error may be in the JSON on standard output or in the text on standard error.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Panics unless the exit code is `code` and what was said contains each of `words` (in any case).
    /// A refusal must be one for people: so a backtrace or a Rust panic in it is wrong as well.
    #[track_caller]
    pub fn refuses(&self, code: i32, words: &[&str]) -> &Self {
        let finished = self.expect(code);
        let said = finished.said().to_lowercase();
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "the message does not mention {word:?}\n{finished}");
        }
        assert!(!said.contains("panicked at") && !said.contains("rust_backtrace"), "a panic is no message\n{finished}");
        assert!(!said.trim().is_empty(), "there is no message\n{finished}");
        finished
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self.code.map_or_else(|| "killed at its time limit".into(), |code| format!("exit code {code}"));
        write!(
            f,
            "{}: {code} after {:?}\n-- stdout:\n{}\n-- stderr:\n{}",
            self.command, self.took, self.stdout, self.stderr
        )
    }
}
