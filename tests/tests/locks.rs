//! Locks on files. See `tests/guests/locks.c`.

use std::process::Command;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, wait_until};

#[test]
fn full() {
    full_and_back("locks", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("locks", &[], Pace::default());
}

/// Whoever has taken a lock meanwhile keeps it and is named; nothing is left of the restore.
#[test]
fn a_lock_that_somebody_else_has_now_is_named() {
    let mut job = Job::start("locks", &[]);
    job.checkpoint();
    job.kill();
    let file = job.dir().join("exclusive");
    let mut other = Command::new("flock").arg(&file).args(["sleep", "100"]).spawn().expect("flock(1)");
    let lock_is_held = || !Command::new("flock").arg("-n").arg(&file).arg("true").status().is_ok_and(|s| s.success());
    wait_until("somebody else has the lock", lock_is_held);
    job.try_restore(&[]).refuses(123, &["exclusive", "holds the lock", "release"]);
    assert!(!std::fs::exists(format!("/proc/{}", job.pid())).unwrap_or(true), "something is left of the restore");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", other.id())).unwrap_or_default();
    other.kill().expect("to end flock(1)");
    other.wait().expect("to wait for flock(1)");
    for child in children.split_whitespace() {
        let pid = nix::unistd::Pid::from_raw(child.parse().expect("a pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    wait_until("the lock is free", || !lock_is_held());
    job.restore();
    job.finish();
}
