//! `cargo xtask run`: the main job from beginning to end, or `cr` itself.
//!
//! A solver runs once without interruption. It runs again under `cr run`; halfway both it and its controller are killed;
//! `cr restore` takes it from its last checkpoint to its end. The two answers must be the same to the bit.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use crate::{
    build,
    command::{as_root, output, pass_on, root, run as run_command, shown, target},
    setup,
};

/// State of the solver in MiB: two grids.
const MIB: u32 = 256;
const THREADS: u32 = 2;
/// How long the uninterrupted run is to take: long enough for several checkpoints before the middle.
const DURATION: Duration = Duration::from_secs(16);
const INTERVAL: &str = "1s";
/// So many checkpoints are taken before the kill, a full one and deltas on it, if the machine is quick enough.
const CHECKPOINTS: usize = 3;

/// One checkpoint, as `cr list --json` tells it.
#[derive(Debug, Deserialize)]
struct Checkpoint {
    id: u64,
    kind: String,
    dirty_pages: u64,
    stored_bytes: u64,
    frozen_ms: f64,
    total_ms: f64,
    pid: i32,
}

/// Builds `cr` and runs it with `args`, passing on its exit code.
pub(crate) fn cr(args: &[String]) -> Result<ExitCode> {
    let cr = build::cr(&setup::run()?)?;
    pass_on(Command::new(cr).args(args))
}

/// Runs the main job. The exit code says whether the answers are the same.
pub(crate) fn main_job() -> Result<ExitCode> {
    let cr = build::cr(&setup::run()?)?;
    let solver = build_solver()?;
    close_inherited_files()?;
    let folder = tempfile::Builder::new().prefix("cr-main-job.").tempdir()?;
    let job = Job { cr, solver, folder: folder.path().into() };

    let steps = job.calibrate()?;
    println!("solver: {MIB} MiB, {THREADS} threads, {steps} steps");
    let (undisturbed, duration) = job.run_undisturbed(steps)?;
    println!("without interruption: {:.1} s", duration.as_secs_f64());
    let checkpoints = job.run_and_kill(steps, duration)?;
    println!(
        "under `cr run --interval {INTERVAL}`: killed, with its controller, after {} checkpoints\n",
        checkpoints.len()
    );
    println!("{}\n", table(&checkpoints));
    let restored = job.restore()?;

    println!("answer without interruption: {undisturbed}");
    println!("answer of the restored job:  {restored}");
    if undisturbed != restored {
        println!("the answers differ");
        return Ok(ExitCode::FAILURE);
    }
    println!("the same to the bit");
    Ok(ExitCode::SUCCESS)
}

struct Job {
    cr: PathBuf,
    solver: PathBuf,
    folder: PathBuf,
}

impl Job {
    /// How many steps take about [`DURATION`] on this machine.
    fn calibrate(&self) -> Result<u64> {
        const STEPS: u64 = 20;
        // What filling the grids and hashing them take is no step.
        let (_, overhead) = self.run_undisturbed(1)?;
        let (_, duration) = self.run_undisturbed(1 + STEPS)?;
        let step = duration.saturating_sub(overhead) / STEPS as u32;
        let left = DURATION.saturating_sub(overhead);
        Ok((left.as_secs_f64() / step.as_secs_f64().max(1e-6)) as u64)
    }

    fn run_undisturbed(&self, steps: u64) -> Result<(String, Duration)> {
        let answer = self.folder.join("undisturbed");
        let start = Instant::now();
        let mut command = Command::new(&self.solver);
        run_command(solver_arguments(&mut command, steps).stdout(File::create(&answer)?))?;
        Ok((read_answer(&answer)?, start.elapsed()))
    }

    /// Starts the solver under `cr run` and kills both in the middle of `duration`, but not before [`CHECKPOINTS`].
    fn run_and_kill(&self, steps: u64, duration: Duration) -> Result<Vec<Checkpoint>> {
        let mut command = as_root(&self.cr.to_string_lossy());
        command.args(["run", "--interval", INTERVAL, "--store"]).arg(self.store()).arg("--").arg(&self.solver);
        // Files, as in a batch system: the restored job writes on where the killed one stopped.
        solver_arguments(&mut command, steps).stdout(File::create(self.answer())?);
        let start = Instant::now();
        let mut controller = command.spawn().with_context(|| format!("cannot start {}", shown(&command)))?;
        let killed = self.wait_and_kill(&mut controller, start, duration);
        // Whatever went wrong, the controller must not stay.
        let _ = controller.kill();
        controller.wait()?;
        killed?;
        // A job that is being killed could still finish a checkpoint; what counts is what stands in the store now.
        self.list()
    }

    fn wait_and_kill(&self, controller: &mut Child, start: Instant, duration: Duration) -> Result<()> {
        let checkpoints = loop {
            if let Some(status) = controller.try_wait()? {
                bail!("the job ended too early under cr run ({status}); is the machine very busy?");
            }
            let checkpoints = self.list().unwrap_or_default();
            let (middle, late) = (start.elapsed() >= duration / 2, start.elapsed() >= duration * 4 / 5);
            if middle && checkpoints.len() >= CHECKPOINTS || late && !checkpoints.is_empty() {
                break checkpoints;
            }
            thread::sleep(Duration::from_millis(50));
        };
        let job = checkpoints[0].pid;
        kill_process(controller.id().cast_signed())?;
        controller.wait()?;
        kill_process(job)?;
        wait_until_gone(job)
    }

    fn restore(&self) -> Result<String> {
        let mut command = as_root(&self.cr.to_string_lossy());
        run_command(command.arg("restore").arg("--store").arg(self.store()).stdin(Stdio::null()))?;
        read_answer(&self.answer())
    }

    fn list(&self) -> Result<Vec<Checkpoint>> {
        let mut command = as_root(&self.cr.to_string_lossy());
        let listed = output(command.args(["list", "--json", "--store"]).arg(self.store()));
        let listed = listed.with_context(|| format!("{} failed", shown(&command)))?;
        serde_json::from_str(&listed).context("cr list --json does not say what it should")
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn answer(&self) -> PathBuf {
        self.folder.join("answer")
    }
}

/// Adds what every run of the solver has.
fn solver_arguments(command: &mut Command, steps: u64) -> &mut Command {
    command.args(["--mib", &MIB.to_string(), "--threads", &THREADS.to_string(), "--steps", &steps.to_string()]);
    command.stdin(Stdio::null())
}

/// Closes what this program's caller left open beside the standard streams. The job would inherit it, and a pipe to a
/// stranger (a terminal multiplexer, a CI runner, make's job server) cannot be restored, so `cr` refuses it.
fn close_inherited_files() -> Result<()> {
    let names: Vec<_> = fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    for name in names {
        let fd: i32 = name?.to_string_lossy().parse()?;
        if fd > 2 {
            // The folder that was just read has a number too, which is closed by now.
            let _ = nix::unistd::close(fd);
        }
    }
    Ok(())
}

fn build_solver() -> Result<PathBuf> {
    let program = target().join("guests/solver");
    fs::create_dir_all(target().join("guests"))?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu17", "-O2", "-pthread", "-o"]).arg(&program).arg(root().join("tests/guests/solver.c"));
    run_command(gcc.arg("-lrt"))?;
    Ok(program)
}

/// The solver's last line is `answer` and 16 hexadecimal digits.
fn read_answer(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file)?;
    let last = text.lines().last().unwrap_or_default();
    let answer = last.strip_prefix("answer ").with_context(|| format!("the solver gave no answer, but {last:?}"))?;
    ensure!(answer.len() == 16, "the solver's answer is not 16 digits: {answer}");
    Ok(answer.to_owned())
}

/// SIGKILL, by root where this is not root: the job may be root's.
fn kill_process(pid: i32) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("cannot kill {pid}"));
    }
    run_command(as_root("kill").args(["-KILL", &pid.to_string()]))
}

/// Its pid must be free before the job can be restored.
fn wait_until_gone(pid: i32) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    let start = Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() {
        ensure!(start.elapsed() < LIMIT, "the killed job {pid} is still there after {LIMIT:?}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn table(checkpoints: &[Checkpoint]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["checkpoint", "kind", "dirty pages", "stored bytes", "frozen ms", "total ms"]);
    for checkpoint in checkpoints {
        let numbers = [
            checkpoint.dirty_pages.to_string(),
            checkpoint.stored_bytes.to_string(),
            format!("{:.1}", checkpoint.frozen_ms),
            format!("{:.1}", checkpoint.total_ms),
        ];
        let words = [checkpoint.id.to_string(), checkpoint.kind.clone()];
        let right = |number: String| Cell::new(number).set_alignment(CellAlignment::Right);
        table.add_row(words.into_iter().map(Cell::new).chain(numbers.into_iter().map(right)));
    }
    table
}
