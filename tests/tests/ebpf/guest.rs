//! The process whose doings are known.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use cr_tests::guest;
use nix::{
    sys::{signal::Signal, wait},
    unistd::Pid,
};

pub(crate) const PAGE: u64 = 4096;

/// What the guest does is in `guests/ebpf.c`: it obeys one command a line and answers each with one line.
pub(crate) struct Guest {
    child: Child,
    pub(crate) commands: ChildStdin,
    pub(crate) answers: BufReader<ChildStdout>,
    /// `name=value` pairs of its first line.
    told: Vec<(String, u64)>,
}

impl Guest {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(guest("ebpf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the guest can be started");
        let commands = child.stdin.take().expect("piped");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("the guest's first line");
        let told = line.split_whitespace().map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("not name=value: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line}")))
        });
        let told = told.collect();
        Self { child, commands, answers, told }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn told(&self, name: &str) -> u64 {
        self.told.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("the guest told no {name}")).1
    }

    pub(crate) fn page(&self, index: u64) -> u64 {
        self.told("memory") + index * PAGE
    }

    pub(crate) fn obey(&mut self, command: &str) -> i64 {
        writeln!(self.commands, "{command}").expect("the guest listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the guest answers");
        line.trim().parse().unwrap_or_else(|_| panic!("{command}: the guest answered {line:?}"))
    }

    pub(crate) fn stop(&self) {
        let pid = Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, Signal::SIGSTOP).expect("our own child");
        let status = wait::waitpid(pid, Some(wait::WaitPidFlag::WUNTRACED)).expect("our own child");
        assert!(matches!(status, wait::WaitStatus::Stopped(..)), "{status:?}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
