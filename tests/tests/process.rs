//! What the process as a whole has: credentials, limits, directories, names, personality.

use cr_tests::{Pace, chain_and_back, full_and_back, in_pid_namespace};

#[test]
fn full_as_root() {
    full_and_back("process", &[], Pace::default());
}

#[test]
fn full_as_user() {
    full_and_back("process", &["--user"], Pace::default());
}

#[test]
fn full_not_dumpable() {
    full_and_back("process", &["--user", "--dumpable", "0", "--no-new-privs"], Pace::default());
}

#[test]
fn full_in_another_root_directory() {
    full_and_back("process", &["--chroot"], Pace::default());
}

#[test]
fn chain_as_root() {
    chain_and_back("process", &[], Pace::default());
}

#[test]
fn chain_as_user() {
    chain_and_back("process", &["--user", "--no-new-privs"], Pace::default());
}

#[test]
fn chain_as_user_in_a_pid_namespace() {
    in_pid_namespace("chain_as_user_in_a_pid_namespace", || chain_and_back("process", &["--user"], Pace::default()));
}
