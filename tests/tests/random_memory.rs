//! Memory that changes at random, in every way, while deltas are taken: what a delta does not ask about has not changed.

use std::fs::{File, remove_file};

use cr_tests::Job;

/// Operations during which deltas are taken.
const OPERATIONS: u64 = 5_000;

fn through_random_operations(seed: u64) {
    let mut job = Job::start_audited("random_memory", &["--seed", &seed.to_string()], "pages");
    let (mut taken, mut wide) = (0, Vec::new());
    while job.step() < OPERATIONS {
        let checkpoint = job.checkpoint();
        taken += 1;
        job.advance(1);
        wide.extend(checkpoint.widened.into_iter().filter(|why| why.contains("asked about everything")));
    }
    assert!(taken > 20, "only {taken} checkpoints were taken meanwhile");
    // Some operations do not say where they write: then everything is asked about, and must not be every time.
    assert!(wide.len() * 4 < taken * 3, "{} of {taken} checkpoints asked about everything: {wide:?}", wide.len());
    let quiet = job.dir().join("go.1");
    File::create(&quiet).expect("the go file");
    job.advance(5);
    job.checkpoint();
    job.kill();
    job.restore();
    job.advance(5);
    remove_file(&quiet).expect("the go file");
    job.advance(500);
    job.checkpoint();
    job.advance(100);
    job.checkpoint();
    job.kill();
    job.restore();
    job.finish();
}

#[test]
fn every_delta_holds_what_a_look_at_everything_shows() {
    through_random_operations(5);
}

#[test]
fn also_from_another_beginning() {
    through_random_operations(20_102);
}
