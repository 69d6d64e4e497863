//! Pseudo-terminals of the job. See `tests/guests/pty.c`.

use std::fs::File;
use std::os::fd::AsRawFd;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, process_exists, run};
use nix::pty::{PtyMaster, posix_openpt};

#[test]
fn full() {
    full_and_back("pty", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("pty", &[], Pace::default());
}

/// The job knows the numbers of its terminals: where one is taken, that is said, and nothing is left of the restore.
#[test]
fn a_number_that_is_taken_is_named() {
    let mut job = Job::start("pty", &[]);
    job.checkpoint();
    job.kill();
    // The kernel gives the lowest that is free: those of the job are among the first.
    let ours: Vec<PtyMaster> = (0..64)
        .map(|_| posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).expect("a terminal"))
        .collect();
    job.try_restore(&[]).refuses(123, &["/dev/pts/", "in use", "the job knows it"]);
    assert!(!process_exists(job.pid()), "something is left of the restore");
    drop(ours);
    job.restore();
    job.finish();
}

/// A process outside that has an end of a pair open is named, and the job goes on.
#[test]
fn a_user_outside_is_named() {
    let mut job = Job::start("pty", &[]);
    let path = job.read_link("say.left").expect("the guest says its path");
    let options = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY;
    let other: File = nix::fcntl::open(path.as_str(), options, nix::sys::stat::Mode::empty()).expect("to open it").into();
    let us = format!("pid {}", std::process::id());
    run(&mut job.checkpoint_command()).refuses(120, &["master", &path, &us, &format!("fd {}", other.as_raw_fd())]);
    drop(other);
    job.checkpoint();
    job.advance(5);
    job.kill();
    job.restore();
    job.finish();
}
