//! Descriptors and sockets that change at random while deltas are taken: what a delta keeps from the last one is what a look at
//! everything would show.

use std::fs::{File, remove_file};

use cr_tests::Job;

/// Operations during which deltas are taken.
const OPERATIONS: u64 = 10_000;

fn through_random_operations(seed: u64) {
    let mut job = Job::start_audited("random_files", &["--seed", &seed.to_string()], "descriptors");
    let mut taken = 0;
    while job.step() < OPERATIONS {
        job.checkpoint();
        taken += 1;
        job.advance(1);
    }
    assert!(taken > 20, "only {taken} checkpoints were taken meanwhile");
    // Files are renamed and removed no more: they must be there for the restore.
    let quiet = job.dir().join("go.1");
    File::create(&quiet).expect("the go file");
    job.advance(5);
    job.checkpoint();
    job.advance(5);
    job.checkpoint();
    job.kill();
    job.restore();
    job.advance(5);
    remove_file(&quiet).expect("the go file");
    job.advance(500);
    job.checkpoint();
    job.finish();
}

#[test]
fn every_delta_is_what_a_look_at_everything_shows() {
    through_random_operations(4);
}

#[test]
fn also_from_another_beginning() {
    through_random_operations(20_101);
}
