//! Mappings that take each other's place, grow and are moved, time and again in the same way, while checkpoints are taken.

use cr_tests::Job;

/// `mremap` never sees a mapping that was cut by putting it under tracking. And each checkpoint holds the mappings of its time, though
/// they are read while they come and go: all is looked at besides, and compared.
#[test]
fn a_mapping_is_one_to_the_job_and_in_each_checkpoint() {
    let mut job = Job::start_audited("moved", &[], "pages,state");
    let mut taken = 0;
    while job.step() < 150 {
        job.checkpoint();
        taken += 1;
    }
    assert!(taken > 20, "only {taken} checkpoints were taken meanwhile");
    for _ in 0..5 {
        job.kill();
        job.restore();
        job.advance(5);
        job.checkpoint();
        job.advance(5);
        job.checkpoint();
    }
    job.finish();
}
