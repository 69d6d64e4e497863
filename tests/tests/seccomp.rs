//! Threads and processes under seccomp: chains of filters, shared or not, and strict mode.

use cr_tests::{Job, Pace, chain_and_back, cr, full_and_back, run};

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
