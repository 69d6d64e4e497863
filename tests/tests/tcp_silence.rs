//! `cr` dies, or fails, at each point between the freezing of a job with connections outside and the end of its restore. Whatever
//! is left of the job goes on, nobody outside sees a reset, and after the next command no rule of ours is in the packet filter.

use std::thread::sleep;
use std::time::Duration;

use cr_tests::{Finished, Job, Network, cr, process_exists, run, stream_client, stream_server, wait_until};

fn points() -> Vec<String> {
    run(cr().arg("fault-points")).expect(0).stdout.lines().map(str::to_owned).collect()
}

/// Whether the fault came to pass: `cr` died of it, or said that a step had failed.
#[track_caller]
fn struck(fault: &str, finished: &Finished) -> bool {
    let known = matches!(finished.code, Some(0 | 120..=125 | 137));
    assert!(known, "{fault}\n{finished}");
    finished.code != Some(0)
}

/// Whether a job has come back, though its restore was disturbed: it steps, or it is gone.
#[track_caller]
fn came_back(job: &Job) -> bool {
    wait_until("the job steps or is gone", || job.step() > 0 || !process_exists(job.pid()));
    job.step() > 0
}

#[track_caller]
fn finish(network: &Network, mut client: Job, mut server: Job) {
    server.let_finish();
    client.finish();
    server.finish();
    network.expect_no_rules();
}

fn in_a_checkpoint_with_kill(fault: &str, needed: &[&str]) {
    let mut seen = Vec::new();
    for point in points() {
        let Some(network) = Network::own() else { return };
        let (mut server, port) = stream_server(&[]);
        let client = stream_client(&port, &["--connections", "2"]);
        client.advance(5);
        let what = format!("{point}:{fault}");
        let finished = run(server.checkpoint_command().arg("--kill").env("CR_FAULT", &what));
        eprintln!("{what}: {:?}", finished.code);
        if struck(&what, &finished) {
            let listed = run(server.cr("list").arg("--json"));
            assert!(process_exists(server.pid()), "{what}: the job is gone\n{finished}");
            network.expect_no_rules();
            if (point.as_str(), fault) == ("held", "kill") {
                listed.expect(0);
                assert!(listed.stderr.contains("removed a network lock"), "nothing is said of the lock\n{listed}");
            }
            client.advance(20);
            seen.push(point);
            server.checkpoint_and_kill(&[]);
        } else {
            server.kill(); // nothing is left to kill, but it has to be waited for
        }
        server.restore();
        client.advance(20);
        finish(&network, client, server);
    }
    for point in needed {
        assert!(seen.iter().any(|seen| seen == point), "{point} did not strike; these did: {seen:?}");
    }
}

#[test]
fn cr_is_killed_in_a_checkpoint_with_kill() {
    in_a_checkpoint_with_kill("kill", &["freeze", "collect.sockets", "publish", "hold", "held"]);
}

#[test]
fn a_step_of_a_checkpoint_with_kill_fails() {
    in_a_checkpoint_with_kill("error", &["freeze", "collect.sockets", "publish", "hold", "held"]);
}

fn in_a_restore(fault: &str) {
    let Some(network) = Network::own() else { return };
    let (mut server, port) = stream_server(&[]);
    let client = stream_client(&port, &["--connections", "2"]);
    let mut seen = Vec::new();
    // Others strike in the controller that a restore leaves behind.
    for point in points().into_iter().filter(|point| point.starts_with("restore.")) {
        client.advance(5);
        server.checkpoint_and_kill(&[]);
        let what = format!("{point}:{fault}");
        let finished = run(server.cr("restore").arg("--detach").env("CR_FAULT", &what));
        eprintln!("{what}: {:?}", finished.code);
        if struck(&what, &finished) {
            seen.push(point);
            let whole = came_back(&server);
            sleep(Duration::from_millis(300));
            assert_eq!(client.read_link("result"), None, "{what}: the other end was disturbed\n{}", client.diagnosis());
            run(server.cr("list").arg("--json")).expect(0);
            if !whole {
                server.restore_detached();
            }
        }
        client.advance(20);
        network.expect_no_rules();
    }
    assert!(seen.len() >= 5 && seen.iter().any(|point| point == "restore.sockets"), "only these struck: {seen:?}");
    finish(&network, client, server);
}

#[test]
fn cr_is_killed_in_a_restore() {
    in_a_restore("kill");
}

#[test]
fn a_step_of_a_restore_fails() {
    in_a_restore("error");
}
