//! Jobs of several processes as people run them, through a chain of deltas, killed and restored in the middle: what they print is
//! what they print undisturbed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use cr_tests::{Finished, Job, cr, guest, install, run, run_for, skip, work_through_a_chain};

/// How long a job shall work undisturbed.
const WORK: Duration = Duration::from_secs(8);
/// They are measured by the clock: one job at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Takes the job through its chain, of which it works for a twentieth of its time between two checkpoints, and compares what it
/// prints.
#[track_caller]
fn prints_the_same(name: &str, command: impl Fn() -> Command, processes: usize) -> Job {
    let alone = alone(&command());
    let mut in_session = Command::new("setsid"); // as a batch system starts it; executes in place
    let command = command();
    in_session.arg(command.get_program()).args(command.get_args());
    in_session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut job = Job::start_foreign(name, &mut in_session);
    job.wait("all of its processes run", |job| job.processes().len() >= processes);
    work_through_a_chain(&mut job, alone.took.min(WORK * 2) / 20, || ());
    assert!(alone.stdout.lines().last().is_some_and(|line| line.starts_with("answer ")), "no answer\n{alone}");
    assert_eq!(job.stdout(), alone.stdout, "the interrupted job printed something else");
    job
}

/// The undisturbed run.
#[track_caller]
fn alone(command: &Command) -> Finished {
    let folder = tempfile::tempdir().expect("a folder");
    let mut again = Command::new(command.get_program());
    again.args(command.get_args()).current_dir(folder.path());
    again.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let finished = run_for(&mut again, Duration::from_secs(100));
    finished.expect(0);
    finished
}

/// How many units of work take about as long as the job shall work, by runs of some and of more: what it takes to start is not work.
#[track_caller]
fn measured(some: u32, command: impl Fn(u32) -> Command) -> u32 {
    const MORE: u32 = 5;
    let [few, many] = [some, some * MORE].map(|units| alone(&command(units)).took.as_secs_f64());
    let unit = (many - few) / f64::from(some * (MORE - 1));
    // Where the machine did something else meanwhile, the longer run counts alone.
    let unit = unit.max(many / f64::from(some * MORE) / 4.0);
    (WORK.as_secs_f64() / unit) as u32
}

/// A file of `tests/guests` that is run by an interpreter.
fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(name);
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Two ranks and `mpirun`: memory shared by the ranks, sockets, pseudo-terminals, FIFOs and events between them and `mpirun`.
#[test]
fn open_mpi() {
    let _alone = ALONE.lock();
    if !install("mpirun", &["openmpi-bin", "libopenmpi-dev"]) || !install("mpicc", &["libopenmpi-dev"]) {
        skip!("no Open MPI (openmpi-bin, libopenmpi-dev), and it cannot be installed");
    }
    let solver = guest("mpi_solver");
    // Between ranks on one machine Open MPI needs no network: they share memory.
    let line = |steps: u32| {
        let mut command = Command::new("mpirun");
        command.args([
            "--allow-run-as-root",
            "--oversubscribe",
            "--mca",
            "pml",
            "ob1",
            "--mca",
            "btl",
            "self,vader",
            "-n",
            "2",
        ]);
        command.arg(&solver).args([".", "--cells", "200000", "--steps", &steps.to_string()]);
        command
    };
    let steps = measured(500, line);
    // Its daemons talk by TCP on the loopback interface, which no parameter changes.
    if let Some(refusal) = refused("mpirun", 3, || line(steps)) {
        skip!("an Open MPI job cannot be checkpointed yet: {refusal}");
    }
    prints_the_same("mpirun", || line(steps), 3);
}

/// Starts the job, and gives the first reason why no checkpoint of it can be taken, if that is a socket of a network or a terminal.
/// A job that is still being started has not opened all of them yet: it is asked again until all processes are there and work.
fn refused(name: &str, processes: usize, line: impl Fn() -> Command) -> Option<String> {
    let job = Job::start_foreign(name, &mut line());
    job.wait("all of its processes run", |job| job.processes().len() >= processes);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        let check = run(cr().args(["check", &job.pid().to_string(), "--json"]));
        let found = serde_json::from_str::<serde_json::Value>(&check.stdout).unwrap_or_default();
        let reasons = found["refusals"].as_array().into_iter().flatten();
        let mut reasons = reasons.map(|r| r["why"].as_str().unwrap_or_default().to_owned());
        if let Some(why) = reasons.find(|why| why.contains("socket") || why.contains("pseudo-terminal")) {
            return Some(why);
        }
    }
    None
}

/// Numbers go through four programs, each with a state of its own; `sort` keeps all of them.
#[test]
fn pipeline_of_four() {
    let _alone = ALONE.lock();
    let line = |numbers: u32| {
        let scramble = "{ for (i = 0; i < 20; i++) s = (s * 31 + $1 + i) % 1000003; print s, NR }";
        let digest = "{ h = (h * 131 + $1 * 7 + $2) % 2147483647 } END { print \"answer\", h, NR }";
        let mut command = Command::new("sh");
        command.args(["-c", &format!("seq {numbers} | awk '{scramble}' | sort -n -S 16M | awk '{digest}'; exit $?")]);
        command.env("LC_ALL", "C");
        command
    };
    let numbers = measured(100_000, line);
    prints_the_same("sh", || line(numbers), 5);
}

/// Three workers and the threads that feed them: pipes, and POSIX semaphores in shared memory that has no name any more.
#[test]
fn python_multiprocessing_pool() {
    let _alone = ALONE.lock();
    if !install("/usr/bin/python3", &["python3"]) {
        skip!("no python3, and it cannot be installed");
    }
    let line = |tasks: u32| {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script("pool.py")).args([&tasks.to_string(), "3000"]);
        command
    };
    let tasks = measured(500, line);
    prints_the_same("pool.py", || line(tasks), 4);
}

/// A writer and a reader: a file that both map, and locks that say who reads and who writes.
#[test]
fn sqlite_in_wal_mode() {
    let _alone = ALONE.lock();
    let has_sqlite = || run(Command::new("/usr/bin/python3").args(["-c", "import sqlite3"])).code == Some(0);
    if !install("/usr/bin/python3", &["python3"]) || !has_sqlite() {
        skip!("no python3 with sqlite3, and it cannot be installed");
    }
    let line = |transactions: u32| {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script("wal.py")).arg(transactions.to_string());
        command
    };
    let transactions = measured(500, line);
    let job = prints_the_same("wal.py", || line(transactions), 2);
    // The answer says that all rows are there. And the database is whole for others as well.
    let look = "import sqlite3; d = sqlite3.connect('wal.db'); \
                print(d.execute('PRAGMA integrity_check').fetchone()[0], d.execute('SELECT count(*) FROM rows').fetchone()[0])";
    let seen = run(Command::new("/usr/bin/python3").args(["-c", look]).current_dir(job.dir()));
    assert_eq!(seen.expect(0).stdout.trim(), format!("ok {}", transactions * 5));
    assert!(fs::metadata(job.dir().join("wal.db-wal")).map_or(true, |log| log.len() == 0), "the log was not moved");
}
