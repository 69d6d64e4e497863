//! Descriptors of kernel objects without a name: counters, timers, signals, watches of files, pidfds, namespaces, files of /proc.

use std::time::Duration;

use cr_tests::{Pace, chain_and_back, full_and_back, in_pid_namespace};

/// Dead for long enough that a timer which counted the dead time would be noticed.
const PACE: Pace = Pace { steps: 15, dead: Duration::from_millis(1800) };

#[test]
fn full() {
    full_and_back("events", &[], PACE);
}

#[test]
fn chain() {
    chain_and_back("events", &[], PACE);
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("events", &[], PACE));
}
