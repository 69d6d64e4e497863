//! Event counters, timers and signals as files, epoll sets, pidfds. See `tests/guests/events.c`.

use cr_tests::{Pace, chain_and_back, full_and_back, in_pid_namespace};

#[test]
fn full() {
    full_and_back("events", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("events", &[], Pace::default());
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("events", &[], Pace::default()));
}
