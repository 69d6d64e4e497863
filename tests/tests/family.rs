//! Trees of processes: who is whose child, in which session and group, what they share, and how those ended that nobody has
//! noticed yet. See `tests/guests/family.c`.

use std::fs::File;

use cr_tests::{Job, Pace, chain_and_back, full_and_back, in_pid_namespace};

const PARTS: [&str; 13] = [
    "deep",
    "wide",
    "sessions",
    "zombies",
    "stopped",
    "waiting",
    "files",
    "cow",
    "sharing",
    "forker",
    "headless",
    "headless-root",
    "orphans",
];

fn both_ways(part: &str) {
    assert!(PARTS.contains(&part));
    full_and_back("family", &["--part", part], Pace::default());
    chain_and_back("family", &["--part", part], Pace::default());
}

#[test]
fn a_deep_tree() {
    both_ways("deep");
}

#[test]
fn many_children() {
    both_ways("wide");
}

#[test]
fn sessions_and_groups_without_their_leaders() {
    both_ways("sessions");
}

#[test]
fn zombies_with_their_status() {
    both_ways("zombies");
}

#[test]
fn stopped_children() {
    both_ways("stopped");
}

#[test]
fn a_parent_that_waits() {
    both_ways("waiting");
}

#[test]
fn one_offset_and_a_ring_of_pipes() {
    both_ways("files");
}

#[test]
fn pages_shared_by_fork() {
    both_ways("cow");
}

#[test]
fn memory_files_and_directories_shared_by_clone() {
    both_ways("sharing");
}

#[test]
fn processes_that_come_and_go() {
    both_ways("forker");
}

#[test]
fn orphans_in_the_sessions_of_others() {
    both_ways("orphans");
}

#[test]
fn a_process_whose_main_thread_has_ended() {
    both_ways("headless");
}

#[test]
fn a_root_whose_main_thread_has_ended() {
    both_ways("headless-root");
}

/// Nothing leads from the tree to such an orphan: the programs that follow the job have seen it being born.
#[test]
fn a_daemon_that_is_nobodys_child() {
    let mut job = Job::start("family", &["--part", "daemons"]);
    job.attach(&[]);
    let full = job.checkpoint();
    File::create(job.dir().join("daemon")).expect("to tell the guest");
    job.wait("the daemon lives", |job| job.read_link("say.daemon").is_some());
    job.advance(5);
    job.checkpoint().expect_delta_on(&full);
    for _ in 0..2 {
        job.kill();
        job.restore();
        // In each step it makes a beat, too.
        job.advance(5);
        job.checkpoint();
    }
    job.finish();
}

#[test]
fn all_in_a_pid_namespace() {
    in_pid_namespace("all_in_a_pid_namespace", || {
        for part in ["deep", "sessions", "zombies", "stopped", "headless", "orphans"] {
            chain_and_back("family", &["--part", part], Pace::default());
        }
    });
}
