//! Unix-domain sockets: pairs, names, listeners, what is queued in them and who sent it.

use cr_tests::{Pace, chain_and_back, full_and_back, in_pid_namespace};

#[test]
fn full() {
    full_and_back("unix", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("unix", &[], Pace::default());
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("unix", &[], Pace::default()));
}

#[test]
fn two_that_never_stop_talking() {
    full_and_back("unix_talk", &[], Pace::default());
    chain_and_back("unix_talk", &[], Pace::default());
}

#[test]
fn other_users_at_the_other_end() {
    full_and_back("unix_talk", &["--part", "users"], Pace::default());
    chain_and_back("unix_talk", &["--part", "users"], Pace::default());
}
