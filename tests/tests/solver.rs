//! The main job: a multi-threaded solver gives the same answer, to the bit, whatever happens to it on the way.

use std::process::Command;

use cr_tests::{Job, JobOptions, guest, in_pid_namespace, run};

const ARGS: [&str; 6] = ["--mib", "64", "--threads", "2", "--steps", "900"];

/// The last line of an uninterrupted run.
fn answer(args: &[&str]) -> String {
    last_line(&run(Command::new(guest("solver")).args(args)).expect(0).stdout)
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().to_owned()
}

#[track_caller]
fn expect_answer(job: &Job, args: &[&str]) {
    let (interrupted, uninterrupted) = (last_line(&job.stdout()), answer(args));
    assert!(uninterrupted.starts_with("answer "), "the uninterrupted run said {uninterrupted:?}");
    assert!(
        interrupted == uninterrupted,
        "the interrupted run said {interrupted:?}, the uninterrupted one {uninterrupted:?}"
    );
}

#[test]
fn full() {
    // Started as from a shell: in the session and process group of its parent.
    let options = JobOptions { args: ARGS.map(str::to_owned).to_vec(), shared_session: true, ..JobOptions::default() };
    let mut job = Job::start_with("solver", &options);
    job.advance(30);
    job.checkpoint();
    job.advance(30);
    job.kill();
    job.restore();
    job.finish();
    expect_answer(&job, &ARGS);
}

fn chain_and_answer() {
    let mut job = Job::start_resident("solver", &ARGS);
    let mut last = job.checkpoint();
    for round in 0..2 {
        for _ in 0..3 {
            job.advance(20);
            let next = job.checkpoint();
            next.expect_delta_on(&last);
            last = next;
        }
        job.advance(20);
        job.kill();
        job.restore();
        assert!(job.step() < 800, "the job was nearly done in round {round}: nothing was tested");
    }
    job.finish();
    expect_answer(&job, &ARGS);
    job.verify();
}

#[test]
fn chain() {
    chain_and_answer();
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", chain_and_answer);
}

/// `cr run` takes checkpoints by itself; `cr run --resume` goes on after a crash of everything.
#[test]
fn periodic_checkpoints_and_resume() {
    // So long that a quiet checkpoint, which leaves the job its cores, is done before it.
    let args = ["--mib", "32", "--threads", "2", "--steps", "5000"];
    let options = JobOptions {
        args: args.map(str::to_owned).to_vec(),
        controller: Some("250ms".into()),
        ..JobOptions::default()
    };
    let mut job = Job::start_with("solver", &options);
    job.wait("three checkpoints are taken", |job| job.list().len() >= 3);
    let first = job.list();
    assert!(!first[0].is_delta && first[1].is_delta && first[2].is_delta, "the chain is {first:?}");
    job.kill();
    job.resume(&options);
    let count = job.list().len();
    job.wait("one more checkpoint is taken", |job| job.list().len() > count);
    let chain = job.list();
    chain[count].expect_delta_on(&chain[count - 1]);
    job.finish();
    expect_answer(&job, &args);
}
