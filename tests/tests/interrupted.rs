//! What happens in the middle of a checkpoint or a restore: ^C at any moment, a job that exits, forks, execs, or rearranges its memory.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use cr::family::Family;
use cr::remote::Frozen;
use cr_tests::{Finished, Job, process_exists, run, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Starts `command`, sends SIGINT after `delay`, and waits for the end.
fn interrupt(command: &mut std::process::Command, delay: Duration) -> std::process::ExitStatus {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cr starts");
    sleep(delay);
    let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
    let mut status = None;
    wait_until("the interrupted cr has ended", || {
        status = child.try_wait().expect("wait for cr");
        status.is_some()
    });
    status.expect("just seen")
}

/// Delays that lie densely where a short command is at work.
fn delays() -> impl Iterator<Item = Duration> {
    (0..24).map(|index| Duration::from_millis(index * index / 3 + index))
}

fn leftovers(job: &Job) -> Vec<String> {
    let files = fs::read_dir(job.store()).into_iter().flatten().flatten().map(|file| file.path());
    let leftovers = files.filter(|file| file.extension().is_some_and(|extension| extension == "tmp"));
    leftovers.map(|file| file.display().to_string()).collect()
}

#[test]
fn checkpoint_by_ctrl_c() {
    let mut job = Job::start("writer", &["--mib", "48", "--threads", "2"]);
    let mut taken = 0;
    for delay in delays() {
        taken += u32::from(interrupt(&mut job.checkpoint_command(), delay).success());
        job.advance(1);
        assert_eq!(leftovers(&job), Vec::<String>::new(), "interrupted after {delay:?}");
    }
    if taken > 0 {
        job.verify();
    }
    job.checkpoint();
    job.advance(3);
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
}

#[test]
fn resident_checkpoint_by_ctrl_c() {
    let mut job = Job::start_resident("writer", &["--mib", "48", "--threads", "2"]);
    job.checkpoint();
    for delay in delays() {
        interrupt(&mut job.checkpoint_command(), delay);
        job.advance(1);
    }
    job.checkpoint();
    job.verify();
    job.advance(3);
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
}

/// Whenever ^C comes, the job is either not there at all, or it runs and the signal was passed on to it.
#[test]
fn restore_by_ctrl_c() {
    let mut job = Job::start("writer", &["--mib", "48", "--threads", "2"]);
    job.checkpoint();
    job.kill();
    for delay in delays() {
        interrupt(&mut job.cr("restore"), delay);
        wait_until("nothing is left of the job", || !process_exists(job.pid()));
        assert!(job.read_link("result").is_none(), "interrupted after {delay:?}: {:?}", job.read_link("result"));
    }
    job.after_death();
    job.restore();
    job.advance(3);
    job.finish();
}

/// Takes checkpoints one after the other; each must succeed or be refused for a reason that the job gave.
#[track_caller]
fn many_checkpoints(job: &Job, count: u32, acceptable: &[i32]) -> u32 {
    let mut taken = 0;
    for _ in 0..count {
        let finished: Finished = run(&mut job.checkpoint_command());
        match finished.code {
            Some(0) => taken += 1,
            Some(code) if acceptable.contains(&code) => drop(finished.refuses(code, &[])),
            _ => panic!("{finished}\n{}", job.diagnosis()),
        }
    }
    taken
}

/// A job whose checkpoints are taken while it does what is awkward; the last one is restored.
#[track_caller]
fn restless(mode: &str, acceptable: &[i32]) {
    for resident in [false, true] {
        let mut job = if resident { Job::start_resident("restless", &[mode]) } else { Job::start("restless", &[mode]) };
        let taken = many_checkpoints(&job, 20, acceptable);
        assert!(
            taken > 0,
            "not one of 20 checkpoints was taken (resident controller: {resident})\n{}",
            job.diagnosis()
        );
        job.advance(3);
        job.kill();
        job.verify();
        job.restore();
        job.advance(3);
        job.finish();
    }
}

#[test]
fn job_that_forks() {
    restless("fork", &[]);
}

/// However the stop that we ask for and the one at a fork fall together: nobody waits for the other.
#[test]
fn job_that_is_stopped_at_a_fork() {
    const STOPS: u32 = 3000;
    let mut job = Job::start("restless", &["quick-fork"]);
    let family = Family { root: job.pid(), reaper: None, only: None };
    for _ in 0..STOPS {
        let frozen = Frozen::freeze(&family, &mut Vec::new).expect("the job stands still");
        frozen.thaw().expect("the job goes on");
    }
    job.finish();
}

#[test]
fn job_that_execs() {
    restless("exec", &[120, 121, 125]);
}

#[test]
fn job_that_starts_and_ends_threads() {
    restless("threads", &[]);
}

#[test]
fn job_that_maps_and_unmaps() {
    restless("mappings", &[]);
}

/// However far the checkpoint has come when the job ends: an answer, an intact chain, the job's own exit code.
#[test]
fn job_that_exits() {
    for steps in [1, 4, 8, 12, 20] {
        let mut job = Job::start("restless", &["exit", &steps.to_string()]);
        many_checkpoints(&job, 12, &[120, 121]);
        job.finish();
        if job.store().join("00000001.cr").exists() {
            job.verify();
        }
        assert_eq!(leftovers(&job), Vec::<String>::new());
    }
}

/// A job that is killed while it is being checkpointed.
#[test]
fn job_that_is_killed() {
    for delay in delays().step_by(3) {
        let mut job = Job::start("writer", &["--mib", "48"]);
        let mut checkpoint = job.checkpoint_command();
        let child = checkpoint.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("cr checkpoint starts");
        sleep(delay);
        kill(Pid::from_raw(job.pid()), Signal::SIGKILL).expect("the job is killed");
        wait_until("cr checkpoint has ended", || child.try_wait().expect("wait for cr").is_some());
        job.kill();
        if job.store().join("00000001.cr").exists() {
            job.verify();
        }
        assert_eq!(leftovers(&job), Vec::<String>::new(), "killed after {delay:?}");
    }
}

/// A job that is stopped (SIGSTOP) stays stopped over checkpoint and restore, until SIGCONT.
#[test]
fn job_that_is_stopped() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    kill(Pid::from_raw(job.pid()), Signal::SIGSTOP).expect("stop the job");
    let stopped = |job: &Job| {
        let status = fs::read_to_string(format!("/proc/{}/status", job.pid())).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:\tT"))
    };
    job.wait("it is stopped", stopped);
    let steps = job.step();
    let finished = run(&mut job.checkpoint_command());
    if finished.code == Some(0) {
        // Each thread stops again by itself, and takes the moment that it needs.
        job.wait("it is stopped again", stopped);
        assert_eq!(job.step(), steps, "the checkpoint has made the stopped job run");
        kill(Pid::from_raw(job.pid()), Signal::SIGCONT).expect("let the job go on");
        job.advance(3);
        job.kill();
        job.restore_detached();
        kill(Pid::from_raw(job.pid()), Signal::SIGCONT).expect("let the job go on");
    } else {
        finished.refuses(120, &["stop"]);
        kill(Pid::from_raw(job.pid()), Signal::SIGCONT).expect("let the job go on");
    }
    job.advance(3);
    job.finish();
}
