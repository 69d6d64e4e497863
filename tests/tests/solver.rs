//! The main job: a multi-threaded solver gives the same answer, to the bit, whatever happens to it on the way.

use std::process::Command;

use cr_tests::{Job, JobOptions, guest, in_pid_namespace, run};

/// More steps than it takes until it is told to finish, on however slow a machine.
const ARGS: [&str; 6] = ["--mib", "64", "--threads", "2", "--steps", "1000000"];

/// The last line that begins with a word, without the word.
fn said<'t>(text: &'t str, word: &str) -> &'t str {
    let line = text.lines().rev().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("there is no `{word}` in {text:?}")).trim()
}

/// An uninterrupted run of as many steps gives the same answer.
#[track_caller]
fn expect_answer(job: &Job, args: &[&str]) {
    let interrupted = job.stdout();
    let uninterrupted = run(Command::new(guest("solver")).args(args).args(["--steps", said(&interrupted, "steps")]));
    let uninterrupted = uninterrupted.expect(0).stdout.clone();
    assert_eq!(said(&interrupted, "answer"), said(&uninterrupted, "answer"), "{interrupted} and {uninterrupted}");
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
    expect_answer(&job, &ARGS[..4]);
}

fn chain_and_answer() {
    let mut job = Job::start_resident("solver", &ARGS);
    let mut last = job.checkpoint();
    for _ in 0..2 {
        for _ in 0..3 {
            job.advance(20);
            let next = job.checkpoint();
            next.expect_delta_on(&last);
            last = next;
        }
        job.advance(20);
        job.kill();
        job.restore();
    }
    job.finish();
    expect_answer(&job, &ARGS[..4]);
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
    let args = ["--mib", "32", "--threads", "2", "--steps", "1000000"];
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
    expect_answer(&job, &args[..4]);
}
