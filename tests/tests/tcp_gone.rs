//! Connections with somebody outside that cannot go on as they were: the other end has gone, a port is taken, an address is no
//! more, the kernel has no packet filter.

use std::net::TcpListener;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use cr_tests::{Job, Network, guest, run, stream_client, stream_server};

/// The other end dies while the job is away: the restore succeeds, the program hears of a reset, and is there for the next.
#[test]
fn peer_vanished_meanwhile() {
    let Some(network) = Network::own() else { return };
    let (mut server, port) = stream_server(&["--may-break", "1"]);
    let mut client = stream_client(&port, &[]);
    client.advance(20);
    server.checkpoint_and_kill(&[]);
    client.kill();
    sleep(Duration::from_secs(1));
    server.restore();
    server.wait("it has heard that its client is gone", |server| server.read_link("say.lost").is_some());
    let mut client = stream_client(&port, &["--connections", "2"]);
    client.advance(20);
    server.let_finish();
    client.finish();
    server.finish();
    network.expect_no_rules();
}

/// The same where the job is the client.
#[test]
fn server_vanished_meanwhile() {
    let Some(network) = Network::own() else { return };
    let (mut server, port) = stream_server(&[]);
    let mut client = stream_client(&port, &["--may-break", "1", "--connections", "2"]);
    client.advance(20);
    client.checkpoint_and_kill(&[]);
    server.kill();
    sleep(Duration::from_secs(1));
    client.restore_detached();
    // It ends once it has no connection any more.
    client.wait("it has a verdict", |client| client.read_link("result").is_some());
    assert!(client.read_link("say.lost").is_some(), "the client has not heard that the server is gone");
    client.finish();
    network.expect_no_rules();
}

/// Somebody listens at the job's port: the restore says so and touches nothing; it succeeds once the port is free.
#[test]
fn port_taken_meanwhile() {
    let Some(network) = Network::own() else { return };
    let (mut server, port) = stream_server(&[]);
    let mut client = stream_client(&port, &["--connections", "2"]);
    client.advance(20);
    server.checkpoint_and_kill(&[]);
    let squatter = TcpListener::bind(format!("0.0.0.0:{port}")).expect("the job's port");
    server.try_restore(&[]).refuses(123, &[&port]);
    // Nor does it help to give up the connections: the job listened there.
    server.try_restore(&["--tcp", "close"]).refuses(123, &[&port]);
    sleep(Duration::from_secs(1));
    assert_eq!(client.read_link("result"), None, "the other end has seen the restore fail\n{}", client.diagnosis());
    drop(squatter);
    server.restore();
    client.advance(20);
    server.let_finish();
    client.finish();
    server.finish();
    network.expect_no_rules();
}

/// The address that a connection has on our side is no more: an error that names it, or `--tcp close`.
#[test]
fn address_gone() {
    const ADDRESS: &str = "10.77.1.1";
    let Some(network) = Network::own() else { return };
    network.add_address(&format!("{ADDRESS}/32"));
    let (mut server, port) = stream_server(&["--may-break", "1"]);
    let client = stream_client(&port, &["--address", ADDRESS, "--connections", "2"]);
    client.advance(20);
    server.checkpoint_and_kill(&[]);
    network.remove_address(&format!("{ADDRESS}/32"));
    server.try_restore(&[]).refuses(123, &[ADDRESS, "--tcp close"]);
    assert_eq!(client.read_link("result"), None, "the other end has seen the restore fail\n{}", client.diagnosis());
    server.restore_with(&["--tcp", "close"]);
    server.wait("it has heard that its clients are gone", |server| server.read_link("say.lost").is_some());
    let mut next = stream_client(&port, &[]);
    next.advance(20);
    server.let_finish();
    next.finish();
    server.finish();
    network.expect_no_rules();
}

/// Without a packet filter in the kernel nobody can be kept from hearing that the job is away. A checkpoint that does not end the
/// job is none the worse for it; one with `--kill` says what is lost, and so it is: but the job comes back.
#[test]
fn without_nftables() {
    let Some(_network) = Network::own() else { return };
    let (mut server, port) = stream_server(&["--may-break", "1"]);
    let mut client = stream_client(&port, &["--connections", "2", "--may-break", "1"]);
    client.advance(20);
    let without = |server: &Job, more: &[&str]| {
        let cr = server.checkpoint_command();
        let mut command = Command::new(guest("no_nftables"));
        command.arg(cr.get_program()).args(cr.get_args()).args(more);
        run(&mut command)
    };
    without(&server, &[]).expect(0);
    client.advance(20);
    assert_eq!(client.read_link("say.lost"), None, "a connection was lost by a checkpoint");
    without(&server, &["--kill"]).refuses(0, &["nftables", "reset"]);
    server.kill(); // it is dead, but has to be waited for
    client.wait("it has lost its connections", |client| client.read_link("result").is_some());
    client.finish();
    server.restore();
    let mut client = stream_client(&port, &["--connections", "2"]);
    client.advance(20);
    server.let_finish();
    client.finish();
    server.finish();
}
