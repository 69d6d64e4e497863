//! `cr restore --pid-namespace`: a job whose pids are taken by others goes on in a pid namespace of its own.

use std::fs;
use std::process::{Child, Stdio};

use cr_tests::{Job, run, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Starts the restore, and waits until the job steps.
fn restore(job: &Job) -> Child {
    let mut command = job.cr("restore");
    command.arg("--pid-namespace").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let child = command.spawn().expect("cr restore");
    job.wait("it steps in its namespace", |job| job.step() > 0);
    child
}

#[test]
fn a_tree_whose_pids_are_taken_goes_on_in_a_namespace() {
    for part in ["deep", "sessions", "zombies", "files"] {
        // The job that is checkpointed goes on: its pids are taken by itself.
        let mut job = Job::start("family", &["--part", part]);
        job.advance(5);
        job.checkpoint();
        run(job.cr("restore").arg("--detach")).refuses(123, &["pid", "--pid-namespace"]);
        job.kill();
        let mut controller = restore(&job);
        job.advance(5);
        fs::File::create(job.dir().join("finish")).expect("the finish file");
        job.wait("it has a verdict", |job| job.read_link("result").is_some());
        assert_eq!(job.read_link("result").as_deref(), Some("ok"), "{part}");
        let status = controller.wait().expect("to wait for cr restore");
        assert!(status.success(), "{part}: cr restore ended with {status}");
    }
}

/// Two of one job at once: the second one could not have the pids but in a namespace.
#[test]
fn beside_the_job_itself_and_signals_reach_it() {
    let job = Job::start("writer", &[]);
    job.advance(5);
    job.checkpoint();
    let mut controller = restore(&job);
    let outside = Pid::from_raw(controller.id().cast_signed());
    // Of any of its threads.
    let child_of = |pid: &str| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).next()
    };
    let inside = || child_of(&child_of(&outside.to_string())?);
    // While it is built it is traced, and before that it is a copy of cr.
    let runs = |pid: String| {
        let is_guest = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("writer"));
        is_guest && fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains("TracerPid:\t0\n"))
    };
    wait_until("the job runs inside", || inside().is_some_and(runs));
    kill(outside, Signal::SIGTERM).expect("to send a signal to cr");
    let status = controller.wait().expect("to wait for cr restore");
    // The guest does not handle SIGTERM: it ends by it, and cr says so as a shell does.
    assert_eq!(status.code(), Some(128 + 15), "cr restore ended with {status}");
    assert_eq!(inside(), None);
}
