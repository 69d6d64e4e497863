//! Locks as others see them: each part of a range, who has it, who shares a table with whom, and who waits. See
//! `tests/guests/lockers.c`.

use cr_tests::{Pace, chain_and_back, full_and_back, in_pid_namespace};

#[test]
fn full() {
    full_and_back("lockers", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("lockers", &[], Pace::default());
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("lockers", &[], Pace::default()));
}
