//! Commands of `cr` that are timed, and the stores that they write to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A store that is made by `cr` and removed with all it holds.
#[derive(Debug)]
pub struct StoreDir(PathBuf);

impl StoreDir {
    /// A name for a store in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self(folder.join("store"))
    }

    /// A name for a store in a new folder `name` in `folder`.
    pub fn within(folder: &Path, name: &str) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        Ok(Self::new(&folder))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// As an argument.
    pub fn arg(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }

    /// What the resident controller's journal says of each checkpoint that was taken, the oldest first.
    pub fn journal(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.0.join("log.jsonl")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line.get("checkpoint").cloned()).collect()
    }
}

impl Drop for StoreDir {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A controller that is attached to a job, which runs on when this is dropped.
#[derive(Debug)]
pub struct Attached(Child);

impl Attached {
    /// Attaches to the job and takes a first checkpoint, so that its pages are protected from now on; no other is taken by itself.
    pub fn to(pid: i32, store: &StoreDir, more: &[String]) -> Result<Self> {
        Self::with(pid, store, more, &[])
    }

    /// The same with options for the first checkpoint.
    pub fn with(pid: i32, store: &StoreDir, more: &[String], first: &[String]) -> Result<Self> {
        let mut command = cr_tests::cr();
        command.args(["attach", &pid.to_string(), "--interval", "1h", "--store"]).arg(store.path()).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let attached = Self(child);
        let start = Instant::now();
        while !store.path().join("control.sock").exists() {
            ensure!(start.elapsed() < Duration::from_secs(30), "cr attach does not hold pid {pid}");
            std::thread::sleep(Duration::from_millis(5));
        }
        checkpoint(pid, store, first)?;
        Ok(attached)
    }

    /// The controller's pid.
    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// Lets the job go, and waits until nothing of it is tracked any more.
    pub fn let_go(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.0.try_wait()?.is_none() {
            kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?;
            self.0.wait()?;
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Nobody can be told any more.
        let _ = self.end();
    }
}

/// `cr checkpoint PID --store STORE --json`.
pub fn checkpoint(pid: i32, store: &StoreDir, more: &[String]) -> Result<Value> {
    let pid = pid.to_string();
    let output =
        cr_tests::cr().args(["checkpoint", &pid, "--json", "--store"]).arg(store.path()).args(more).output()?;
    json(&output)
}

/// `cr compact --store STORE --json`, where nobody holds the store.
pub fn compact(store: &StoreDir) -> Result<Value> {
    json(&cr_tests::cr().args(["compact", "--json", "--store"]).arg(store.path()).output()?)
}

/// `cr restore --detach`: returns once the job runs, and gives its pid.
pub fn restore(store: &StoreDir, more: &[String]) -> Result<i32> {
    let output =
        cr_tests::cr().args(["restore", "--detach", "--json", "--store"]).arg(store.path()).args(more).output()?;
    let pid = json(&output)?["pid"].as_i64().context("no pid")?;
    Ok(i32::try_from(pid)?)
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
