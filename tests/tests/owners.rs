//! Owners, signals and `O_ASYNC` of descriptors. See `tests/guests/owners.c`.

use cr_tests::{Pace, chain_and_back, full_and_back};

#[test]
fn full() {
    full_and_back("owners", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("owners", &[], Pace::default());
}
