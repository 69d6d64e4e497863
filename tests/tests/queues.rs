//! POSIX message queues. See `tests/guests/queues.c`.

use std::process::Command;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, guest};

#[test]
fn full() {
    full_and_back("queues", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("queues", &[], Pace::default());
}

/// A queue that has messages now is named and left as it is; one that is gone is made again.
#[test]
fn a_queue_that_has_messages_now_is_named() {
    let mut job = Job::start("queues", &[]);
    job.checkpoint();
    let pid = job.pid();
    job.kill();
    let name = format!("/cr-guest-{pid}");
    let act = |what: &str| {
        let status = Command::new(guest("queues")).args(["-", what, &name]).status().expect("the guest");
        assert!(status.success(), "cannot {what} {name}");
    };
    act("send");
    job.try_restore(&[]).refuses(123, &["message queue", &name, "holds 1 messages", "mq_unlink"]);
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap_or(true), "something is left of the restore");
    act("unlink");
    job.restore();
    job.finish();
}
