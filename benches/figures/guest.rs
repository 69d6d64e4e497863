//! The jobs, and the commands that are timed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cr_tests::Tree;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::Setting;

/// How long anything may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(120);

/// A guest that runs, alone or under `cr run`. Dropped, it is killed.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    dir: TempDir,
    /// Its pid, which outlives restores.
    pub pid: i32,
}

impl Guest {
    /// Starts the writer with these options: see [`Guest::start`].
    pub fn writer(setting: &Setting, options: &[String], under: Option<&[String]>) -> Result<Self> {
        Self::start(setting, "writer", options, under)
    }

    /// Starts a guest with these options and waits until its memory is set up. With `under`, arguments of `cr run` up to the
    /// `--`, it has a resident controller.
    pub fn start(setting: &Setting, name: &str, options: &[String], under: Option<&[String]>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("guest-").tempdir_in(setting.tmpfs.path())?;
        let program = cr_tests::guest(name);
        let mut command = match under {
            None => Command::new(&program),
            Some(args) => {
                let mut command = cr_tests::cr();
                command.arg("run").args(args).arg("--").arg(&program);
                command
            }
        };
        // Nothing of ours is the job's: not the terminal, not the output.
        command.arg(dir.path()).args(options).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command
            .env(cr_tests::MARK, dir.path())
            .stderr(fs::File::create(dir.path().join("stderr"))?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let mut guest = Self { child, dir, pid: 0 };
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

    /// Kills the guest, all of its processes, and waits until their pids are free and its controller gone.
    pub fn kill(&mut self) -> Result<()> {
        let tree = Tree::kill(self.pid, &self.dir.path().to_string_lossy());
        self.child.wait()?;
        self.wait("its pids are free", |_| tree.is_gone())
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

    fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !done(self) {
            let said = || fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
            ensure!(start.elapsed() < LIMIT, "waiting until {what}: time is up\n{}", said());
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Nobody can be told any more.
        let _ = self.kill();
    }
}

/// A store that is made by `cr` and removed with all it holds.
#[derive(Debug)]
pub struct StoreDir(PathBuf);

impl StoreDir {
    /// A name for a store in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self(folder.join("store"))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// As an argument.
    pub fn arg(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

impl Drop for StoreDir {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `cr checkpoint PID --store STORE --json`.
pub fn checkpoint(pid: i32, store: &StoreDir, more: &[String]) -> Result<Value> {
    let pid = pid.to_string();
    let output =
        cr_tests::cr().args(["checkpoint", &pid, "--json", "--store"]).arg(store.path()).args(more).output()?;
    json(&output)
}

/// `cr restore --detach`: returns once the job runs, and gives its pid.
pub fn restore(store: &StoreDir, more: &[String]) -> Result<i32> {
    let output =
        cr_tests::cr().args(["restore", "--detach", "--json", "--store"]).arg(store.path()).args(more).output()?;
    let pid = json(&output)?["pid"].as_i64().context("no pid")?;
    Ok(i32::try_from(pid)?)
}

/// Milliseconds that it takes to fork the processes that these options of the grove say, and for each to touch its memory.
pub fn fork_and_touch(setting: &Setting, options: &[String]) -> Result<f64> {
    let dir = tempfile::Builder::new().prefix("forks-").tempdir_in(setting.tmpfs.path())?;
    let status = Command::new(cr_tests::guest("grove")).arg(dir.path()).args(options).arg("--fork-only").status()?;
    ensure!(status.success(), "the grove: {status}");
    fs::read_link(dir.path().join("say.ms"))?.to_string_lossy().parse().context("the grove's time")
}

/// A number in what `cr` printed.
pub fn number(json: &Value, name: &str) -> Result<f64> {
    json[name].as_f64().with_context(|| format!("no {name} in {json}"))
}

fn json(output: &Output) -> Result<Value> {
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("cr: {}\n{out}{err}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
