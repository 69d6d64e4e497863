//! A job on a terminal comes back on the terminal that `cr restore` is called from.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use cr_tests::{close_inherited, cr, guest, process_exists, run, skip, wait_until};
use tempfile::TempDir;

/// Runs a command line on a terminal of its own whose output goes to `log`: util-linux's script(1) provides it.
fn on_a_terminal(line: &str, log: &Path) -> Option<Child> {
    close_inherited();
    Command::new("script")
        .args(["--quiet", "--flush", "--return", "--command", line])
        .arg(log)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

/// A guest on a terminal, and where it will be restored.
struct OnTerminal {
    folder: TempDir,
    pid: i32,
    script: Child,
}

impl OnTerminal {
    /// Starts what `line` makes of the guest's command line. None: nothing provides terminals here.
    fn start(line: impl Fn(&str) -> String) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("job");
        fs::create_dir(&dir).expect("the guest's folder");
        let guest = format!("{} {}", guest("terminal").display(), dir.display());
        let script = on_a_terminal(&line(&guest), &folder.path().join("first.log"))?;
        let mut job = Self { folder, pid: 0, script };
        job.wait("the guest is ready", || job.said("ready").is_some());
        job.pid = job.said("ready").expect("just seen").parse().expect("a pid");
        job.wait("it has taken some steps", || job.step() > 10);
        Some(job)
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("job")
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn said(&self, name: &str) -> Option<String> {
        fs::read_link(self.dir().join(name)).ok().map(|text| text.to_string_lossy().into_owned())
    }

    fn step(&self) -> u64 {
        fs::metadata(self.dir().join("step")).map_or(0, |step| step.len())
    }

    /// Waits until `done`, or the guest gives its verdict early.
    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        wait_until(what, || done() || self.said("result").is_some());
    }

    /// Takes the one checkpoint, and ends the job with it.
    fn checkpoint_and_end(&mut self) {
        run(cr().args(["checkpoint", "--kill", "--store"]).arg(self.store()).arg(self.pid.to_string())).expect(0);
        wait_until("the job is gone", || !process_exists(self.pid));
        self.script.wait().expect("script ends with the job");
        let step = fs::File::options().write(true).open(self.dir().join("step"));
        step.and_then(|file| file.set_len(0)).expect("the step file");
    }

    /// Restores it by what `line` makes of the command line.
    fn restore(&mut self, line: impl Fn(&str) -> String) {
        let restore = format!("{} restore --store {}", cr().get_program().display(), self.store().display());
        let script = on_a_terminal(&line(&restore), &self.folder.path().join("second.log"));
        self.script = script.expect("script was there a moment ago");
    }

    /// Has the guest give its verdict, and says how script ended and what the second terminal shows.
    fn finish(&mut self) -> (ExitStatus, String) {
        fs::File::create(self.dir().join("finish")).expect("the finish file");
        let mut status = None;
        wait_until("cr restore has ended", || {
            status = self.script.try_wait().expect("wait for script");
            status.is_some()
        });
        let log = fs::read_to_string(self.folder.path().join("second.log")).unwrap_or_default();
        let verdict = self.said("result");
        assert!(verdict.as_deref() == Some("ok"), "verdict {verdict:?}; the second terminal shows:\n{log}");
        (status.expect("just seen"), log)
    }
}

#[test]
fn moves_to_the_terminal_of_the_restore() {
    let Some(mut job) = OnTerminal::start(|guest| format!("exec {guest}")) else {
        skip!("no script(1) to provide a terminal");
    };
    job.checkpoint_and_end();
    job.restore(|restore| format!("exec {restore}"));
    job.wait("the restored job steps", || job.step() > 0);
    let (ended, log) = job.finish();
    assert!(ended.success(), "cr restore ended with {ended}; the second terminal shows:\n{log}");
    assert!(log.contains("step ") && log.contains("answer "), "the second terminal shows:\n{log}");
}

/// A job in the foreground has settings of its own, and its group gets what is typed. So it is after a restore; and when it ends,
/// the terminal is the caller's again.
#[test]
fn comes_back_into_the_foreground() {
    // A shell with job control gives each command a group.
    let Some(mut job) = OnTerminal::start(|guest| format!("set -m; {guest} --raw; true")) else {
        skip!("no script(1) to provide a terminal");
    };
    job.checkpoint_and_end();
    let after = job.folder.path().join("settings");
    job.restore(|restore| format!("stty rows 30; {restore}; echo ended $?; stty -a >{}", after.display()));
    job.wait("the restored job steps", || job.step() > 3);
    let mut keys = job.script.stdin.take().expect("it is a pipe");
    keys.write_all(b"k").expect("a key");
    job.wait("the key has come", || job.said("say.key").is_some());
    keys.write_all(b"\x03").expect("Ctrl-C");
    job.wait("Ctrl-C has come", || job.said("say.interrupts").is_some());
    // Ctrl-Z stops the job, and cr with it; nobody but us is there to let them go on.
    keys.write_all(b"\x1a").expect("Ctrl-Z");
    let state = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_stopped = |pid: i32| state(pid).rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'));
    wait_until("the job stops", || is_stopped(job.pid));
    let parent: i32 = {
        let stat = state(job.pid);
        let rest = stat.rsplit(") ").next().expect("fields").to_owned();
        rest.split(' ').nth(1).expect("its parent").parse().expect("a pid")
    };
    wait_until("cr stops", || is_stopped(parent));
    let stopped_at = job.step();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::Signal::SIGCONT).expect("SIGCONT");
    job.wait("both go on", || job.step() > stopped_at + 3);
    let (_, log) = job.finish();
    assert!(log.contains("ended 0"), "the second terminal shows:\n{log}");
    let settings = fs::read_to_string(&after).expect("the settings afterwards");
    assert!(settings.contains("rows 30") && settings.contains(" icanon") && settings.contains(" echo "), "{settings}");
}
