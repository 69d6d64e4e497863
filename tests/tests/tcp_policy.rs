//! `--tcp keep|close|refuse`: what becomes of connections with somebody outside of the job, as chosen at the checkpoint or at the
//! restore.

use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use cr_tests::{Job, JobOptions, Network, run, stream_client, stream_server};

/// Connections that the guest `lost` makes.
const CONNECTIONS: usize = 6;

/// Somebody outside who accepts the guest's connections and keeps still.
struct Still {
    port: String,
    accepting: JoinHandle<Vec<TcpStream>>,
}

impl Still {
    fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = listener.local_addr().expect("its address").port().to_string();
        let accept = move || (0..CONNECTIONS).map(|_| listener.accept().expect("the guest's connection").0).collect();
        Self { port, accepting: thread::spawn(accept) }
    }

    fn accepted(self) -> Vec<TcpStream> {
        self.accepting.join().expect("all connections were accepted")
    }
}

/// The guest checks what it sees of its connections after it was restored with `at_restore`, of a checkpoint with `at_checkpoint`.
#[track_caller]
fn is_reset(at_checkpoint: &[&str], at_restore: &[&str]) {
    let Some(network) = Network::own() else { return };
    let outside = Still::listen();
    let mut job = Job::start("lost", &["--connect", &outside.port]);
    let _kept_open = outside.accepted();
    // One that does not end the job does not touch its connections.
    run(job.checkpoint_command().args(at_checkpoint)).expect(0);
    job.advance(10);
    job.checkpoint_and_kill(at_checkpoint);
    job.restore_with(at_restore);
    job.advance(10);
    job.finish();
    network.expect_no_rules();
}

#[test]
fn close_at_the_checkpoint() {
    is_reset(&["--tcp", "close"], &[]);
}

#[test]
fn close_at_the_restore() {
    is_reset(&[], &["--tcp", "close"]);
    is_reset(&["--tcp", "keep"], &["--tcp", "close"]);
}

/// Everybody that is started with a policy keeps to it.
#[test]
fn close_by_whom_the_job_is_held() {
    let Some(network) = Network::own() else { return };
    for attached in [false, true] {
        let outside = Still::listen();
        let mut job = if attached {
            let job = Job::start("lost", &["--connect", &outside.port]);
            let pid = job.pid().to_string();
            run(job.cr("attach").args([&pid, "--detach", "--interval", "1h", "--tcp", "close"])).expect(0);
            job
        } else {
            let options = JobOptions {
                args: vec!["--connect".into(), outside.port.clone()],
                controller: Some("1h".into()),
                controller_args: vec!["--tcp".into(), "close".into()],
                ..JobOptions::default()
            };
            Job::start_with("lost", &options)
        };
        let _kept_open = outside.accepted();
        job.checkpoint();
        job.advance(10);
        job.checkpoint_and_kill(&[]);
        job.restore();
        job.advance(10);
        job.finish();
        network.expect_no_rules();
    }
}

/// A program that has not looked at its connections since they were reset can be checkpointed again, and sees it afterwards.
#[test]
fn checkpointed_again_before_the_program_looks() {
    let Some(network) = Network::own() else { return };
    let outside = Still::listen();
    let mut job = Job::start("lost", &["--connect", &outside.port]);
    let _kept_open = outside.accepted();
    for policy in [&["--tcp", "close"][..], &[]] {
        job.checkpoint_and_kill(policy);
        job.restore();
        job.advance(10);
    }
    job.finish();
    network.expect_no_rules();
}

/// What was taken to be closed cannot be kept afterwards: the restore says so, and one that closes succeeds.
#[test]
fn keep_comes_too_late() {
    let Some(network) = Network::own() else { return };
    let outside = Still::listen();
    let end = format!("127.0.0.1:{}", outside.port);
    let mut job = Job::start("lost", &["--connect", &outside.port]);
    let _kept_open = outside.accepted();
    job.checkpoint_and_kill(&["--tcp", "close"]);
    job.try_restore(&["--tcp", "keep"]).refuses(123, &[&end, "--tcp close"]);
    job.restore();
    job.advance(10);
    job.finish();
    network.expect_no_rules();
}

/// With `refuse` the checkpoint names the connection, and job and connection go on.
#[test]
fn refuse_at_the_checkpoint() {
    let Some(network) = Network::own() else { return };
    let (mut server, port) = stream_server(&[]);
    let end = format!("127.0.0.1:{port}");
    // Without connections there is nothing to refuse.
    run(server.checkpoint_command().args(["--tcp", "refuse"])).expect(0);
    let mut client = stream_client(&port, &["--connections", "2"]);
    client.advance(20);
    for more in [&[][..], &["--kill"]] {
        let refused = run(server.checkpoint_command().args(["--tcp", "refuse"]).args(more));
        refused.refuses(120, &[&server.pid().to_string(), "fd ", &end, "outside of the job"]);
        client.advance(20);
    }
    assert_eq!(server.list().len(), 1, "a refused checkpoint was published");
    server.checkpoint_and_kill(&["--tcp", "keep"]);
    // Nor does a restore begin.
    server.try_restore(&["--tcp", "refuse"]).refuses(123, &[&end, "--tcp"]);
    server.restore();
    client.advance(20);
    server.let_finish();
    client.finish();
    server.finish();
    network.expect_no_rules();
}

#[test]
fn no_such_policy() {
    let Some(_network) = Network::own() else { return };
    let (mut server, _) = stream_server(&[]);
    let refused = run(server.checkpoint_command().args(["--tcp", "hope"]));
    refused.refuses(2, &["hope", "keep", "close", "refuse"]);
    server.kill();
}
