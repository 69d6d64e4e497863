//! System calls that the freeze interrupts: sleeps, timed waits, endless waits.

use std::time::Duration;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, in_pid_namespace};

/// Dead for long enough that a sleep which counted the dead time, or started over, would be noticed.
const PACE: Pace = Pace { steps: 30, dead: Duration::from_millis(1500) };

#[test]
fn full() {
    full_and_back("sleeps", &[], PACE);
}

#[test]
fn chain() {
    chain_and_back("sleeps", &[], PACE);
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("sleeps", &[], PACE));
}

/// Without any restore: many freezes alone must neither end nor lengthen a wait.
#[test]
fn many_freezes() {
    let mut job = Job::start_resident("sleeps", &[]);
    for _ in 0..25 {
        job.advance(5);
        job.checkpoint();
    }
    job.finish();
}
