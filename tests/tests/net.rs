//! Sockets of networks that are no TCP ones: UDP, ping, raw, packet and netlink sockets, and what is refused by name.

use cr_tests::{Pace, chain_and_back, full_and_back};

#[test]
fn udp_full() {
    full_and_back("net_udp", &[], Pace::default());
}

#[test]
fn udp_chain() {
    chain_and_back("net_udp", &[], Pace::default());
}
