//! Named FIFOs. See `tests/guests/fifos.c`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, run};

#[test]
fn full() {
    full_and_back("fifos", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("fifos", &[], Pace::default());
}

/// A process outside that has a FIFO of the job open is named, and the job goes on.
#[test]
fn a_peer_outside_is_named() {
    let mut job = Job::start("fifos", &[]);
    let path = job.dir().join("both");
    let ours = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("the FIFO");
    let us = format!("pid {}", std::process::id());
    run(&mut job.checkpoint_command()).refuses(120, &["FIFO", "both", &us, "open too"]);
    drop(ours);
    job.checkpoint();
    job.advance(5);
    job.kill();
    job.restore();
    job.finish();
}

/// A FIFO that is gone, or something else now, is named; nothing is left of the restore.
#[test]
fn a_fifo_that_is_not_there_is_named() {
    let mut job = Job::start("fifos", &[]);
    job.checkpoint();
    job.kill();
    let (path, aside) = (job.dir().join("left"), job.dir().join("aside"));
    std::fs::rename(&path, &aside).expect("to put it aside");
    job.try_restore(&[]).refuses(123, &["FIFO", "left", "cannot be found", "mkfifo"]);
    std::fs::write(&path, "").expect("to put a file there");
    job.try_restore(&[]).refuses(123, &["FIFO", "left", "a regular file now"]);
    assert!(!std::fs::exists(format!("/proc/{}", job.pid())).unwrap_or(true), "something is left of the restore");
    std::fs::rename(&aside, &path).expect("to put it back");
    job.restore();
    job.finish();
}
