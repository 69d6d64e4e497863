//! The jobs: guests of the tests, or programs that keep to the same protocol (`tests/guests/guest.h`).

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cr_tests::Tree;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long anything may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(120);

/// A guest that runs, alone or under `cr run`. Dropped, it is killed, unless it has ended.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    dir: TempDir,
    /// Its pid, which outlives restores.
    pub pid: i32,
    rounds: u32,
    ended: bool,
}

impl Guest {
    /// Starts a guest with these options, its folder in `folder`, and waits until its memory is set up. With `under`, arguments of
    /// `cr run` up to the `--`, it has a resident controller.
    pub fn start(folder: &Path, name: &str, options: &[String], under: Option<&[String]>) -> Result<Self> {
        let program = cr_tests::guest(name);
        Self::launch(folder, under, |dir| {
            let mut command = Command::new(program);
            command.arg(dir).args(options);
            Ok(command)
        })
    }

    /// As [`start`](Self::start), with any command that keeps to the guests' protocol in the folder that it is told.
    pub fn launch(folder: &Path, under: Option<&[String]>, job: impl FnOnce(&Path) -> Result<Command>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("guest-").tempdir_in(folder)?;
        let job = job(dir.path())?;
        let mut command = match under {
            None => job,
            Some(args) => {
                let mut command = cr_tests::cr();
                command.arg("run").args(args).arg("--").arg(job.get_program()).args(job.get_args());
                command.envs(job.get_envs().filter_map(|(name, value)| Some((name, value?))));
                command
            }
        };
        // Nothing of ours is the job's: not the terminal, not the output.
        let child = command
            .env(cr_tests::MARK, dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("stderr"))?)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let mut guest = Self { child, dir, pid: 0, rounds: 0, ended: false };
        let ready = guest.dir.path().join("ready");
        guest.wait("it is ready", |_| ready.is_symlink())?;
        guest.pid = fs::read_link(&ready)?.to_string_lossy().parse().context("the guest's pid")?;
        Ok(guest)
    }

    /// The pid of the process that was started: the controller's, for a guest under one.
    pub fn child_pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        fs::metadata(self.dir.path().join("step")).map_or(0, |m| m.len())
    }

    /// Something that the guest alone knows, and says.
    pub fn says(&self, what: &str) -> Result<String> {
        let said = fs::read_link(self.dir.path().join(format!("say.{what}")))?;
        Ok(said.to_string_lossy().into_owned())
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Has a guest of `bench.h` do its work once more, and gives the milliseconds that this took, by its own account.
    pub fn round(&mut self) -> Result<f64> {
        self.go()?;
        let said = format!("say.ns.{}", self.rounds);
        self.wait_every(Duration::from_millis(20), "it has done its work", |guest| {
            guest.dir().join(&said).is_symlink()
        })?;
        self.said("ns")
    }

    /// Tells it to do its work once more.
    pub fn go(&mut self) -> Result<()> {
        self.rounds += 1;
        fs::write(self.dir.path().join(format!("go.{}", self.rounds)), "")?;
        Ok(())
    }

    /// Milliseconds that a guest of `bench.h` has said of its last round, under this name.
    pub fn said(&self, what: &str) -> Result<f64> {
        let ns: f64 = self.says(&format!("{what}.{}", self.rounds))?.parse()?;
        Ok(ns / 1e6)
    }

    /// Has the writer overwrite its next `--once-mib`, and waits until it has.
    pub fn write_once(&mut self) -> Result<()> {
        self.signal(Signal::SIGUSR1)?;
        // One step may be under way, the next one writes, and the third shows that it is over.
        let until = self.steps() + 3;
        self.wait("it has written", |guest| guest.steps() >= until)
    }

    /// Does something while the guest stands still.
    pub fn paused<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.signal(Signal::SIGSTOP)?;
        let done = work();
        self.signal(Signal::SIGCONT)?;
        done
    }

    /// Has the guest check everything and end, and is sure that it found nothing wrong. Programs that are no guests end by themselves.
    pub fn finish(mut self) -> Result<()> {
        fs::write(self.dir.path().join("finish"), "")?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(start.elapsed() < LIMIT, "waiting until the job has ended: time is up");
            sleep(Duration::from_millis(5));
        };
        self.ended = true;
        let verdict = fs::read_link(self.dir.path().join("result")).unwrap_or_default();
        ensure!(status.success(), "the job has ended with {status}: {}", verdict.display());
        Ok(())
    }

    /// Kills the guest, all of its processes, and waits until their pids are free and its controller gone.
    pub fn kill(&mut self) -> Result<()> {
        let tree = Tree::kill(self.pid, &self.dir.path().to_string_lossy());
        self.child.wait()?;
        let start = Instant::now();
        while !tree.is_gone() {
            ensure!(start.elapsed() < LIMIT, "waiting until its pids are free: time is up");
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Where the guest's own memory begins: its largest anonymous mapping.
    pub fn memory_start(&self) -> Result<u64> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let ranges = maps.lines().filter_map(|line| {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        });
        ranges.max_by_key(|(start, end)| end - start).map(|(start, _)| start).context("no mapping")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to the guest"))
    }

    fn wait(&mut self, what: &str, done: impl FnMut(&Self) -> bool) -> Result<()> {
        self.wait_every(Duration::from_millis(2), what, done)
    }

    /// Waits until something has become of it, which is looked for so often.
    pub fn wait_every(&mut self, pause: Duration, what: &str, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !done(self) {
            let said = || fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
            let verdict = fs::read_link(self.dir.path().join("result")).unwrap_or_default();
            let gone = self.child.try_wait()?.is_some() && !done(self);
            ensure!(!gone, "waiting until {what}: it has ended ({})\n{}", verdict.display(), said());
            ensure!(start.elapsed() < LIMIT, "waiting until {what}: time is up\n{}", said());
            sleep(pause);
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !self.ended {
            // Nobody can be told any more.
            let _ = self.kill();
        }
    }
}

/// Milliseconds that it takes to fork the processes that these options of the grove say, and for each to touch its memory.
pub fn fork_and_touch(folder: &Path, options: &[String]) -> Result<f64> {
    let dir = tempfile::Builder::new().prefix("forks-").tempdir_in(folder)?;
    let status = Command::new(cr_tests::guest("grove")).arg(dir.path()).args(options).arg("--fork-only").status()?;
    ensure!(status.success(), "the grove: {status}");
    fs::read_link(dir.path().join("say.ms"))?.to_string_lossy().parse().context("the grove's time")
}
