//! Unix-domain sockets: pairs, names, listeners, what is queued in them and who sent it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cr_tests::{Job, JobOptions, Pace, chain_and_back, full_and_back, in_pid_namespace, run};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

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

/// Whoever connects gets back what it sends, until the test ends.
fn echo(listener: UnixListener) {
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            std::thread::spawn(move || {
                let mut word = [0; 8];
                while client.read_exact(&mut word).is_ok() && client.write_all(&word).is_ok() {}
            });
        }
    });
}

#[track_caller]
fn talk(job: &Job, number: u64) {
    job.go(number);
    job.wait("the guest's talk with somebody outside", |job| job.read_link(&format!("say.{number}")).is_some());
}

/// Paths for sockets of somebody outside of the job.
struct Names(tempfile::TempDir);

impl Names {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("cr-test-").tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn words(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

#[test]
fn a_connection_to_somebody_outside_is_made_anew() {
    let names = Names::new();
    let [one, other] = ["one", "other"].map(|name| names.path(name));
    let key = format!("unix:{}", one.display());
    echo(UnixListener::bind(&one).expect("a listener"));
    let mut job = Job::start("external", &[words(&one)]);
    talk(&job, 1);
    // Nobody was named: both ends are.
    let me = format!("pid {} (", std::process::id());
    run(&mut job.checkpoint_command()).refuses(120, &["fd ", &me, "outside of the job", "--external", words(&one)]);
    job.advance(5);
    let taken = run(job.checkpoint_command().args(["--external", &key]));
    assert!(taken.code == Some(0), "{taken}");
    talk(&job, 2);
    job.kill();
    // What it has said last is undone, and said again.
    fs::remove_file(job.dir().join("say.2")).expect("it was said");
    job.restore();
    talk(&job, 2);
    // The chain goes on, and need not be told again.
    job.checkpoint();
    job.kill();

    fs::remove_file(&one).expect("the name goes");
    job.try_restore(&[]).refuses(123, &[words(&one), "nobody listens there", "--external"]);
    job.after_death();
    // Somebody who has the name, and to whom a stream cannot be connected.
    let elsewise = UnixDatagram::bind(&one).expect("a name");
    job.try_restore(&[]).refuses(123, &[words(&one), "nobody listens there for streams", "--external"]);
    job.after_death();
    drop(elsewise);
    echo(UnixListener::bind(&other).expect("another listener"));
    let wrong = format!("unix:/nowhere={}", other.display());
    job.try_restore(&["--external", &wrong]).refuses(123, &["/nowhere", "no connection"]);
    job.after_death();
    job.restore_with(&["--external", &format!("{key}={}", other.display())]);
    talk(&job, 3);
    job.checkpoint();
    job.kill();
    job.restore();
    talk(&job, 4);
    job.finish();
}

/// A client outside may have a name too: nobody can be connected to it.
#[test]
fn a_client_outside_that_has_a_name_is_none_to_connect_to() {
    let names = Names::new();
    let [own, name] = ["own", "client"].map(|name| names.path(name));
    let mut job = Job::start("external", &[words(&own), "--listen"]);
    let client = stream();
    bind(client.as_raw_fd(), &UnixAddr::new(&name).expect("a name")).expect("the client's name");
    connect(client.as_raw_fd(), &UnixAddr::new(&own).expect("a name")).expect("the guest listens");
    talk(&job, 1);
    let key = format!("unix:{}", name.display());
    let refused = run(job.checkpoint_command().args(["--external", &key]));
    refused.refuses(120, &["fd ", words(&name), "nobody outside of the job listens", "only to one that listens"]);
    job.finish();
}

fn stream() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket")
}

/// So it is with each that a restore has connected anew, for a moment.
#[test]
fn one_that_somebody_outside_has_not_accepted_yet_is_connected_anew() {
    let names = Names::new();
    let name = names.path("busy");
    let listener = UnixListener::bind(&name).expect("a listener");
    let mut job = Job::start("external", &[words(&name)]);
    run(&mut job.checkpoint_command()).refuses(120, &["fd ", words(&name), "outside of the job", "--external"]);
    let key = format!("unix:{}", name.display());
    run(job.checkpoint_command().args(["--external", &key])).expect(0);
    job.kill();
    job.restore();
    job.checkpoint();
    job.kill();
    job.restore();
    echo(listener);
    talk(&job, 1);
    job.finish();
}

/// Whoever listens there has no room for another client, and accepts none.
#[test]
fn one_that_accepts_nobody_is_not_waited_for() {
    let names = Names::new();
    let name = names.path("full");
    let listener = UnixListener::bind(&name).expect("a listener");
    // One may wait.
    listen(&listener, Backlog::new(0).expect("a number")).expect("it listens already");
    let mut job = Job::start("external", &[words(&name)]);
    let key = format!("unix:{}", name.display());
    run(job.checkpoint_command().args(["--external", &key])).expect(0);
    job.kill();
    // What it left in the queue is there until it is accepted.
    let refused = job.try_restore(&[]);
    refused.refuses(123, &[words(&name), "may wait", "accept"]);
    assert!(refused.took < Duration::from_secs(20), "{refused}");
    job.after_death();
    echo(listener);
    job.restore();
    talk(&job, 1);
    job.finish();
}

/// What `cr run` was told it is told again when the job goes on: the job may have closed that connection meanwhile.
#[test]
fn a_connection_that_was_closed_is_not_missed_by_a_job_that_goes_on() {
    let names = Names::new();
    let [one, other] = ["one", "other"].map(|name| names.path(name));
    echo(UnixListener::bind(&one).expect("a listener"));
    let key = format!("unix:{}={}", one.display(), other.display());
    let options = JobOptions {
        args: vec![words(&one).to_owned()],
        controller: Some("1h".to_owned()),
        controller_args: vec!["--external".to_owned(), key.clone()],
        ..JobOptions::default()
    };
    let mut job = Job::start_with("external", &options);
    (1..=9).for_each(|number| talk(&job, number));
    job.checkpoint();
    talk(&job, 10);
    job.checkpoint();
    job.kill();
    job.try_restore(&["--external", &key]).refuses(123, &[words(&one), "no connection"]);
    job.after_death();
    job.resume(&options);
    job.checkpoint();
    job.finish();
}

#[test]
fn an_answer_from_outside_is_read_before_the_checkpoint() {
    let name = format!("cr-test-external-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    echo(UnixListener::bind_addr(&address).expect("a listener"));
    let mut job = Job::start_resident("external", &[&format!("@{name}")]);
    for number in 1..=7 {
        talk(&job, number);
    }
    let key = format!("unix:@{name}");
    // Its answer is on its way, or there.
    job.advance(20);
    let refused = run(job.checkpoint_command().args(["--external", &key]));
    refused.refuses(120, &["fd ", "has not read", "try again"]);
    talk(&job, 8);
    // It was named for a checkpoint that there is not.
    run(&mut job.checkpoint_command()).refuses(120, &["fd ", "outside of the job", "--external"]);
    run(job.checkpoint_command().args(["--external", &key])).expect(0);
    // That of one that there is is taken so again.
    job.checkpoint();
    job.kill();
    job.restore();
    talk(&job, 9);
    job.finish();
}
