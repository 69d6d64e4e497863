//! Descriptors and connections that nobody uses: most of what a delta says of them is kept from the last one.

use cr_tests::{Pace, chain_and_back, full_and_back};

const ARGS: &[&str] = &["--connections", "40", "--epoll", "--files", "30", "--pipes", "5"];

#[test]
fn full() {
    full_and_back("idle", ARGS, Pace::default());
}

#[test]
fn chain() {
    chain_and_back("idle", ARGS, Pace::default());
}
