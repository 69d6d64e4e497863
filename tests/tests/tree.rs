//! Process trees: lineage, sessions, groups, and what processes share with each other.

use cr_tests::{Job, Pace, chain_and_back, cr, full_and_back, guest_names, run};

/// Parts that have a test of their own.
const APART: [&str; 2] = ["vfork", "dead-leader"];

/// A module for each part of a guest, with a full checkpoint and a chain; and one test that no part was forgotten.
macro_rules! parts {
    ($($guest:literal: $($test:ident = $part:literal)*;)*) => {
        $($(mod $test {
            #[test]
            fn full() {
                super::full_and_back($guest, &[$part], super::Pace::default());
            }

            #[test]
            fn chain() {
                super::chain_and_back($guest, &[$part], super::Pace::default());
            }
        })*)*

        #[test]
        fn every_part_has_its_tests() {
            for (guest, tested) in [$(($guest, &[$($part),*][..])),*] {
                let names: Vec<_> = guest_names(guest).into_iter().filter(|part| !APART.contains(&part.as_str())).collect();
                assert_eq!(names, tested, "the parts of {guest}");
            }
        }
    };
}

parts! {
    "tree": deep = "deep" wide = "wide" waiting = "waiting" orphan = "orphan" subreaper = "subreaper" exec = "exec" forker = "forker";
    "tree_jobs": sessions = "sessions" zombies = "zombies" stopped = "stopped" pdeathsig = "pdeathsig"
        exit_signal = "exit-signal";
    "tree_shares": shared_fds = "shared-fds" ring = "ring" clone_files = "clone-files" clone_fs = "clone-fs" clone_vm = "clone-vm";
    "tree_memory": shared_memory = "shared-memory" cow = "cow";
}

/// Pages that nobody has written since the fork are one page again, as the kernel counts it: the tree takes as much memory as before.
#[test]
fn pages_shared_by_fork_take_no_more_memory_after_a_restore() {
    let mut job = Job::start_resident("tree_memory", &["cow"]);
    job.checkpoint();
    for round in 0..2 {
        for _ in 0..2 {
            job.advance(10);
            assert!(job.checkpoint().is_delta, "a delta in round {round}");
        }
        job.kill();
        job.restore();
    }
    job.advance(10);
    job.finish();
    let kib = |when: &str| {
        let said = job.read_link(&format!("say.pss.{when}"));
        said.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_else(|| panic!("no size {when}"))
    };
    let (before, after) = (kib("ready"), kib("finish"));
    assert!(before > 64.0 * 1024.0, "the tree took {before} KiB: nothing was tested");
    assert!(after <= 1.1 * before, "the tree took {before} KiB, and takes {after} KiB after two restores");
}

/// A parent in vfork cannot be stopped before its child has executed a program. That is said, and harms neither.
#[test]
fn vfork_in_progress_is_refused() {
    let mut job = Job::start("tree_jobs", &["vfork"]);
    run(&mut job.checkpoint_command()).refuses(120, &["vfork", "try again"]);
    run(cr().args(["check", &job.pid().to_string()])).refuses(120, &["vfork", "try again"]);
    job.advance(5);
    job.finish();
}

/// The main thread has ended before others, which hold all that the process has.
#[test]
fn a_process_without_its_main_thread() {
    full_and_back("tree_jobs", &["dead-leader"], Pace::default());
    chain_and_back("tree_jobs", &["dead-leader"], Pace::default());
}
