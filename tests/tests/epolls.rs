//! Epoll sets: levels, edges, one-shot watches, sets of sets, dead members, threads that wait.

use cr_tests::{Pace, chain_and_back, full_and_back, in_pid_namespace};

#[test]
fn full() {
    full_and_back("epolls", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("epolls", &[], Pace::default());
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("epolls", &[], Pace::default()));
}
