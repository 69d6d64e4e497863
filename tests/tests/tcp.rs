//! TCP over the loopback interface: listeners, connections with both ends in the job, what is queued in them.

use cr_tests::{Pace, chain_and_back, full_and_back};

#[test]
fn full() {
    full_and_back("tcp", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("tcp", &[], Pace::default());
}
