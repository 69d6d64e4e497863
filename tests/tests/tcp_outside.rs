//! TCP connections with somebody outside of the job, who neither stops nor notices anything but silence.
//!
//! The guest `stream` is at both ends; which of them is the job, and which runs beside it, is a matter of the test. It judges for
//! itself that every record arrives once and in order, and that no connection has an error.

use std::thread::sleep;
use std::time::Duration;

use cr_tests::{Job, Network, stream_client, stream_server};

/// How long the job is gone.
const SILENCE: Duration = Duration::from_secs(2);
/// On 200 connections the kernel's own buffers would be a gigabyte.
const SMALL: [&str; 2] = ["--buffers", "16384"];

/// Takes a full checkpoint and a delta a second, the last with `--kill`, and restores after a while; then, twice, one more with
/// `--kill`. `beside` is the other end, if that is not in the job too; of `job` and `beside`, one is the client that is seen to go on.
#[track_caller]
fn through_kills(job: &mut Job, beside: Option<&Job>, job_is_server: bool) {
    let goes_on = |job: &Job| if job_is_server { beside.expect("a client").advance(20) } else { job.advance(20) };
    goes_on(job);
    job.attach(&[]);
    job.wait_for_controller();
    let mut last = job.checkpoint();
    for _ in 0..3 {
        sleep(Duration::from_secs(1));
        let next = job.checkpoint();
        next.expect_delta_on(&last);
        last = next;
        goes_on(job);
    }
    for _ in 0..3 {
        sleep(Duration::from_secs(1));
        kill_and_come_back(job, beside);
        goes_on(job);
    }
    job.verify();
}

#[track_caller]
fn kill_and_come_back(job: &mut Job, beside: Option<&Job>) {
    job.checkpoint_and_kill(&[]);
    sleep(SILENCE);
    if let Some(beside) = beside {
        let verdict = beside.read_link("result");
        assert_eq!(verdict, None, "the other end ended while the job was gone\n{}", beside.diagnosis());
    }
    job.restore();
}

#[track_caller]
fn finish(network: &Network, mut client: Job, mut server: Job) {
    server.let_finish();
    client.finish();
    server.finish();
    network.expect_no_rules();
}

#[track_caller]
fn server_in_the_job(server_args: &[&str], client_args: &[&str]) {
    let Some(network) = Network::own() else { return };
    let (mut server, port) = stream_server(server_args);
    let client = stream_client(&port, &[server_args, client_args].concat());
    through_kills(&mut server, Some(&client), true);
    finish(&network, client, server);
}

#[track_caller]
fn client_in_the_job(server_args: &[&str], client_args: &[&str]) {
    let Some(network) = Network::own() else { return };
    let (server, port) = stream_server(server_args);
    let mut client = stream_client(&port, &[server_args, client_args].concat());
    through_kills(&mut client, Some(&server), false);
    finish(&network, client, server);
}

#[track_caller]
fn both_in_the_job(args: &[&str]) {
    let Some(network) = Network::own() else { return };
    let mut job = Job::start("stream", &[&["--both", "1"], args].concat());
    through_kills(&mut job, None, false);
    job.finish();
    network.expect_no_rules();
}

#[test]
fn server() {
    server_in_the_job(&[], &["--connections", "2"]);
}

#[test]
fn server_over_ipv6() {
    server_in_the_job(&["--family", "6"], &["--connections", "2"]);
}

#[test]
fn server_of_200_connections() {
    server_in_the_job(&SMALL, &["--connections", "200"]);
}

#[test]
fn client() {
    client_in_the_job(&[], &["--connections", "2"]);
}

#[test]
fn client_over_ipv6() {
    client_in_the_job(&["--family", "6"], &["--connections", "2"]);
}

#[test]
fn client_with_200_connections() {
    client_in_the_job(&SMALL, &["--connections", "200"]);
}

#[test]
fn both() {
    both_in_the_job(&["--connections", "2"]);
}

#[test]
fn both_over_ipv6() {
    both_in_the_job(&["--connections", "2", "--family", "6"]);
}

#[test]
fn both_with_200_connections() {
    both_in_the_job(&["--connections", "200", SMALL[0], SMALL[1]]);
}

/// The client has ended its direction; the server, which has not read that yet, sends.
#[test]
fn half_closed_by_the_client() {
    server_in_the_job(&[], &["--connections", "2", "--kind", "1"]);
    client_in_the_job(&[], &["--connections", "2", "--kind", "1"]);
}

/// The server has ended its direction, with data before the end that the client has not read; the client sends.
#[test]
fn half_closed_by_the_server() {
    server_in_the_job(&[], &["--connections", "2", "--kind", "2"]);
    client_in_the_job(&[], &["--connections", "2", "--kind", "2"]);
}

/// The other end as on another machine: it has its own address and its own side of the network.
#[test]
fn over_a_cable() {
    let Some(network) = Network::with_neighbour() else { return };
    let (mut server, port) = stream_server(&[]);
    let client = network.at_the_neighbour(|| stream_client(&port, &["--connections", "2", "--address", "10.77.0.1"]));
    through_kills(&mut server, Some(&client), true);
    finish(&network, client, server);
    let (server, port) = network.at_the_neighbour(|| stream_server(&[]));
    let mut client = stream_client(&port, &["--connections", "2", "--address", "10.77.0.2"]);
    through_kills(&mut client, Some(&server), false);
    finish(&network, client, server);
}
