//! Sockets of networks that are no TCP ones: UDP, ping, raw, packet and netlink sockets, and what is refused by name.

use std::fs;

use cr_tests::{Pace, chain_and_back, enter_network_namespace, full_and_back, ip, note_skip};

type Way = fn(&str, &[&str], Pace);

const WAYS: [Way; 2] = [full_and_back, chain_and_back];

/// A network namespace of our own, in which pings are allowed; none where there can be none.
fn own_network() -> bool {
    if let Err(why) = enter_network_namespace() {
        note_skip(&format!("net: {why}"));
        return false;
    }
    if let Err(e) = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647") {
        note_skip(&format!("net: no ping sockets: {e}"));
    }
    true
}

/// The same with a second interface.
fn own_interfaces() -> bool {
    let made = || {
        ip(&["link", "add", "d0", "type", "veth", "peer", "name", "d1"])?;
        ip(&["address", "add", "10.99.0.1/24", "dev", "d0"])?;
        ip(&["link", "set", "d1", "up"])?;
        ip(&["link", "set", "d0", "up"])
    };
    own_network() && made().inspect_err(|why| note_skip(&format!("net: no second interface: {why}"))).is_ok()
}

#[test]
fn udp_full() {
    full_and_back("net_udp", &[], Pace::default());
}

#[test]
fn udp_chain() {
    chain_and_back("net_udp", &[], Pace::default());
}

#[test]
fn raw_and_back() {
    if own_network() {
        WAYS.iter().for_each(|way| way("net_raw", &[], Pace::default()));
    }
}

#[test]
fn groups_and_back() {
    if own_interfaces() {
        WAYS.iter().for_each(|way| way("net_groups", &[], Pace::default()));
    }
}
