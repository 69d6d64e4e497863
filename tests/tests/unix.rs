//! Unix-domain sockets: pairs, names, listeners, what is queued in them and who sent it.

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use cr_tests::{Job, Pace, chain_and_back, full_and_back, in_pid_namespace, run};

#[test]
fn full() {
    full_and_back("unix", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("unix", &[], Pace::default());
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("unix", &[], Pace::default()));
}

#[test]
fn two_that_never_stop_talking() {
    full_and_back("unix_talk", &[], Pace::default());
    chain_and_back("unix_talk", &[], Pace::default());
}

#[test]
fn other_users_at_the_other_end() {
    full_and_back("unix_talk", &["--part", "users"], Pace::default());
    chain_and_back("unix_talk", &["--part", "users"], Pace::default());
}

/// The guest's listener has a path, which may be something else by the time of the restore.
#[test]
fn a_name_that_is_taken_meanwhile() {
    let mut job = Job::start("unix", &[]);
    job.advance(5);
    job.checkpoint();
    job.kill();
    let path = job.dir().join("listener");
    let name = path.to_string_lossy().into_owned();

    fs::remove_file(&path).expect("the listener's file is still there");
    fs::write(&path, "precious").expect("a file in its place");
    job.try_restore(&[]).refuses(123, &[&name, "no socket", "move it away"]);
    job.after_death();
    assert_eq!(fs::read(&path).expect("the file"), b"precious");

    fs::remove_file(&path).expect("away with it");
    let other = UnixListener::bind(&path).expect("another listener");
    job.try_restore(&[]).refuses(123, &[&name, "another program's socket"]);
    job.after_death();
    UnixStream::connect(&path).expect("the other one still listens");

    // Now nobody listens at that file.
    drop(other);
    job.restore();
    job.advance(5);
    job.finish();
}

#[test]
fn a_client_from_outside_is_refused_by_name() {
    let job = Job::start("unix", &[]);
    let client = UnixStream::connect(job.dir().join("listener")).expect("the guest listens");
    let me = format!("pid {} (", std::process::id());
    run(&mut job.checkpoint_command()).refuses(120, &["fd ", "unaccepted connection", &me, "outside of the job"]);
    job.advance(5);
    drop(client);
    run(&mut job.checkpoint_command()).refuses(120, &["unaccepted connection", "has ended", "accepted"]);
    job.advance(5);
}

#[test]
fn a_letter_from_outside_is_refused_by_name() {
    let job = Job::start("unix", &[]);
    let name = job.dir().join("stranger");
    let stranger = UnixDatagram::bind(&name).expect("a socket of ours");
    stranger.send_to(b"hello", job.dir().join("relative")).expect("the guest has that name");
    run(&mut job.checkpoint_command()).refuses(120, &["fd ", "a message of", "stranger", "no socket of the job"]);
    job.advance(5);
}

/// A timer that lies in a message and is open nowhere else.
#[test]
fn what_cannot_be_in_a_message_is_refused_at_the_socket() {
    let mut job = Job::start("unix_talk", &["--part", "timer"]);
    job.advance(5);
    let place = job.read_link("say.where").expect("the guest says where");
    let root = job.pid().to_string();
    run(&mut job.checkpoint_command()).refuses(120, &[&root, &place, "a message", "timerfd"]);
    job.advance(5);
    job.go(1);
    job.wait("the message to be received", |job| job.read_link("say.received").is_some());
    job.checkpoint();
    job.kill();
    job.restore();
    job.advance(5);
    job.finish();
}
