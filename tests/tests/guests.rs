//! The guests by themselves, without `cr`: they must find nothing wrong, also when they are stopped and continued. A guest that
//! complains here would prove nothing elsewhere.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use cr_tests::{Job, JobOptions, guest, guest_names, in_pid_namespace, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[track_caller]
fn alone(name: &str, args: &[&str]) {
    let mut job = Job::start(name, args);
    for _ in 0..5 {
        job.advance(3);
        kill(Pid::from_raw(job.pid()), Signal::SIGSTOP).expect("stop the guest");
        sleep(Duration::from_millis(30));
        kill(Pid::from_raw(job.pid()), Signal::SIGCONT).expect("continue the guest");
    }
    job.advance(3);
    job.finish();
}

#[test]
fn that_step_by_themselves() {
    for name in ["memory", "threads", "signals", "timers", "sleeps", "files", "events", "writer"] {
        alone(name, &[]);
    }
    for name in ["locks", "owners", "fifos", "names", "queues"] {
        alone(name, &[]);
    }
    alone("epolls", &["--stopped"]);
    alone("process", &[]);
    alone("process", &["--user", "--no-new-privs"]);
    alone("process", &["--user", "--dumpable", "0"]);
    alone("process", &["--chroot"]);
    for mode in ["fork", "quick-fork", "exec", "threads", "mappings"] {
        alone("restless", &[mode]);
    }
}

#[test]
fn in_a_pid_namespace_too() {
    in_pid_namespace("in_a_pid_namespace_too", || alone("threads", &[]));
}

#[test]
fn traps() {
    // The last two are sprung by a test.
    for name in guest_names("trap").iter().filter(|name| *name != "process-vm-writev" && *name != "proc-mem") {
        let mut job = Job::start("trap", &[name]);
        (1..=4).for_each(|action| job.go(action));
        job.finish();
    }
}

#[test]
fn trees() {
    for guest in ["tree", "tree_jobs", "tree_shares", "tree_memory"] {
        for part in guest_names(guest) {
            alone(guest, &[&part]);
        }
    }
    alone("grove", &["--processes", "5"]);
    alone("only", &["--pipe", "--shared"]);
}

#[test]
fn unsupported() {
    for name in guest_names("unsupported") {
        let piped_stdin = name == "outside-pipe";
        let options = JobOptions { args: vec![name], piped_stdin, ..JobOptions::default() };
        let mut job = Job::start_with("unsupported", &options);
        job.advance(2);
        job.finish();
    }
}

/// The solver's answer depends neither on the number of threads nor on being stopped.
#[test]
fn solver() {
    let answer = |threads: &str| {
        let said = run(Command::new(guest("solver")).args(["--mib", "8", "--steps", "300", "--threads", threads]));
        said.expect(0);
        said.stdout.lines().last().unwrap_or_default().to_owned()
    };
    let one = answer("1");
    assert!(one.starts_with("answer ") && one.len() == 23, "{one}");
    assert_eq!(one, answer("2"));
    assert_eq!(one, answer("5"));
    let mut job = Job::start("solver", &["--mib", "8", "--steps", "300", "--threads", "3"]);
    kill(Pid::from_raw(job.pid()), Signal::SIGSTOP).expect("stop the solver");
    sleep(Duration::from_millis(50));
    kill(Pid::from_raw(job.pid()), Signal::SIGCONT).expect("continue the solver");
    job.wait("it has taken all its steps", |job| job.read_link("result").is_some());
    job.finish();
    assert_eq!(job.stdout().lines().last(), Some(one.as_str()));
}
