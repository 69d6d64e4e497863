//! Pseudo-terminals of the job. See `tests/guests/pty.c`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, process_exists, run};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, posix_openpt, ptsname_r};

/// Who takes numbers away holds this.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn full() {
    let _alone = ALONE.lock();
    full_and_back("pty", &[], Pace::default());
}

#[test]
fn chain() {
    let _alone = ALONE.lock();
    chain_and_back("pty", &[], Pace::default());
}

/// The job knows the numbers of its terminals: where one is taken, that is said, and nothing is left of the restore.
#[test]
fn a_number_that_is_taken_is_named() {
    let _alone = ALONE.lock();
    let mut job = Job::start("pty", &[]);
    job.checkpoint();
    job.kill();
    let path = job.read_link("say.left").expect("the guest says its path");
    // The kernel gives the lowest that is free.
    let mut ours: Vec<PtyMaster> = Vec::new();
    while ours.last().is_none_or(|last| ptsname_r(last).expect("its name") != path) {
        ours.push(posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a terminal"));
    }
    let us = format!("pid {}", std::process::id());
    job.try_restore(&[]).refuses(123, &["/dev/pts/", &us, "in use", "the job knows it"]);
    assert!(!process_exists(job.pid()), "something is left of the restore");
    drop(ours);
    job.restore();
    job.finish();
}

/// A process outside that has an end of a pair open is named, and the job goes on.
#[test]
fn a_user_outside_is_named() {
    let _alone = ALONE.lock();
    let mut job = Job::start("pty", &[]);
    let path = job.read_link("say.left").expect("the guest says its path");
    let options = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let other: File =
        nix::fcntl::open(path.as_str(), options, nix::sys::stat::Mode::empty()).expect("to open it").into();
    let us = format!("pid {}", std::process::id());
    run(&mut job.checkpoint_command()).refuses(120, &["master", &path, &us, &format!("fd {}", other.as_raw_fd())]);
    drop(other);
    job.checkpoint();
    job.advance(5);
    job.kill();
    job.restore();
    job.finish();
}
