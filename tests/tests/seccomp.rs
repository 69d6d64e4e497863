//! Threads and processes under seccomp: chains of filters, shared or not, and strict mode.

use std::process::Command;

use cr_tests::{Job, Pace, chain_and_back, cr, full_and_back, guest, process_exists, run};

#[test]
fn full_filters_that_all_share() {
    full_and_back("seccomp", &["shared"], Pace::default());
}

#[test]
fn chain_filters_that_all_share() {
    chain_and_back("seccomp", &["shared"], Pace::default());
}

#[test]
fn full_filters_that_all_share_of_a_user() {
    full_and_back("seccomp", &["shared", "--user"], Pace::default());
}

#[test]
fn full_filters_of_their_own() {
    full_and_back("seccomp", &["own"], Pace::default());
}

#[test]
fn chain_filters_of_their_own_of_a_user() {
    chain_and_back("seccomp", &["own", "--user"], Pace::default());
}

#[test]
fn full_filters_that_would_end_the_job_for_our_calls() {
    full_and_back("seccomp", &["deadly"], Pace::default());
}

#[test]
fn chain_filters_that_would_end_the_job_for_our_calls() {
    chain_and_back("seccomp", &["deadly", "--user"], Pace::default());
}

#[test]
fn full_strict_thread() {
    full_and_back("seccomp", &["strict"], Pace::default());
}

#[test]
fn chain_strict_thread() {
    chain_and_back("seccomp", &["strict"], Pace::default());
}

#[test]
fn full_strict_process() {
    full_and_back("seccomp", &["process"], Pace::default());
}

#[test]
fn chain_strict_process() {
    chain_and_back("seccomp", &["process"], Pace::default());
}

/// What cannot be had is refused in advance, and the job goes on.
#[track_caller]
fn refused(kind: &str, words: &str) {
    let mut job = Job::start("seccomp", &[kind]);
    for finished in [run(&mut job.checkpoint_command()), run(cr().args(["check", &job.pid().to_string()]))] {
        assert_eq!(finished.code, Some(120), "{finished}");
        assert!(finished.said().contains(words), "it does not say {words:?}\n{finished}");
        assert!(finished.said().contains(&format!("thread {}", job.pid())), "it does not say where\n{finished}");
    }
    assert!(!job.store().join("00000001.cr").exists(), "there is an image in the store");
    job.advance(5);
    job.finish();
}

#[test]
fn a_filter_that_forbids_to_go_on_is_refused() {
    refused("refused.no-return", "forbids rt_sigreturn");
}

#[test]
fn a_filter_with_a_supervisor_is_refused() {
    refused("refused.supervised", "asks a supervisor");
}

// --------------------------------------------------------------------------------------------------- whatever happens

/// `cr` dies in the middle: the filters are in force again, and the job goes on all the same.
#[track_caller]
fn survives_our_death(kind: &str) {
    let points =
        ["remote.scratch", "remote.uffd-open", "remote.batch", "remote.end", "collect.process", "collect.threads"];
    let mut struck = 0;
    for point in points {
        for pass in 1..=3 {
            let mut job = Job::start("seccomp", &[kind]);
            let finished = run(job.checkpoint_command().env("CR_FAULT", format!("{point}:kill:{pass}")));
            assert!(matches!(finished.code, Some(0 | 137)), "{point}:{pass}\n{finished}");
            struck += usize::from(finished.code == Some(137));
            job.advance(3);
            job.finish();
        }
    }
    assert!(struck >= 8, "only {struck} times");
}

#[test]
fn filters_of_their_own_and_our_death() {
    survives_our_death("own");
}

#[test]
fn deadly_filters_and_our_death() {
    survives_our_death("deadly");
}

#[test]
fn strict_process_and_our_death() {
    survives_our_death("process");
}

/// A restore under a filter would hand it down to the job, and may be forbidden what it needs.
#[test]
fn a_restore_under_a_filter_is_refused() {
    let mut job = Job::start("seccomp", &["shared"]);
    job.checkpoint();
    job.kill();
    let mut restore = Command::new(guest("seccomp"));
    restore.args(["-", "exec"]).arg(cr().get_program()).args(["restore", "--detach", "--store"]).arg(job.store());
    run(&mut restore).refuses(123, &["seccomp", "inherit", "outside of any seccomp filter"]);
    assert!(!process_exists(job.pid()), "a part of the job was left behind");
    job.restore();
    job.finish();
}

/// So is a checkpoint of a job that has filters; one of a job without is none of the filter's business.
#[test]
fn a_checkpoint_under_a_filter_is_refused() {
    let mut job = Job::start("seccomp", &["own"]);
    let mut checkpoint = Command::new(guest("seccomp"));
    checkpoint.args(["-", "exec"]).arg(cr().get_program()).args(["checkpoint", &job.pid().to_string(), "--store"]);
    run(checkpoint.arg(job.store())).refuses(120, &["cr itself is under a seccomp filter"]);
    job.advance(3);
    job.finish();
}
