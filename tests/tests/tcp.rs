//! TCP over the loopback interface: listeners, connections with both ends in the job, what is queued in them.

use std::time::Duration;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, run};

#[test]
fn full() {
    full_and_back("tcp", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("tcp", &[], Pace::default());
}

/// Whatever becomes of `cr` while sockets of the job are under repair, they are as they were afterwards: the guest uses all of its
/// connections in each step.
#[test]
fn repair_ends_with_cr() {
    for (fault, code) in [("kill", 128 + 9), ("error", 125)] {
        let mut job = Job::start("tcp", &[]);
        job.advance(10);
        let failed = run(job.checkpoint_command().env("CR_FAULT", format!("collect.sockets:{fault}")));
        assert_eq!(failed.code, Some(code), "no socket was under repair\n{failed}");
        job.advance(10);
        job.checkpoint();
        job.kill();
        job.restore();
        job.advance(10);
        job.finish();
    }
}

/// Nor is anything else of the job disturbed, though the kernel lets it go at the moment at which somebody begins to end the repair:
/// threads in all kinds of waits go on with what was left of their time, which the guest has measured.
fn waits_go_on(fault: &str, code: i32) {
    let mut job = Job::start("parked", &[]);
    // What begins anew must be late by more than a busy machine is.
    std::thread::sleep(Duration::from_secs(3));
    let done = run(job.checkpoint_command().env("CR_FAULT", format!("collect.sockets:{fault}")));
    assert_eq!(done.code, Some(code), "no socket was under repair\n{done}\n{:?}", job.read_link("result"));
    job.advance(10);
    job.finish();
}

#[test]
fn waits_go_on_when_cr_dies() {
    waits_go_on("kill", 128 + 9);
}

#[test]
fn waits_go_on_when_cr_fails() {
    waits_go_on("error", 125);
}

#[test]
fn waits_go_on_after_a_checkpoint() {
    waits_go_on("none", 0);
}
