//! Linux AIO: contexts keep their addresses and their places in the ring; operations under way are waited for.

use cr_tests::{Job, Pace, chain_and_back, full_and_back, run};

#[test]
fn full_idle_rings() {
    full_and_back("aio", &["idle"], Pace::default());
}

#[test]
fn chain_idle_rings() {
    chain_and_back("aio", &["idle"], Pace::default());
}

#[test]
fn full_operations_under_way() {
    full_and_back("aio", &["busy"], Pace::default());
}

#[test]
fn chain_operations_under_way() {
    chain_and_back("aio", &["busy"], Pace::default());
}

/// What a read writes that is under way during a checkpoint is in it, or in the next one.
#[test]
fn many_checkpoints_with_operations_under_way() {
    let mut job = Job::start_resident("aio", &["busy"]);
    for _ in 0..5 {
        for _ in 0..4 {
            job.checkpoint();
            job.advance(1);
        }
        job.kill();
        job.restore();
    }
    job.finish();
    job.verify();
}

#[test]
fn an_operation_that_never_ends_is_refused() {
    let mut job = Job::start("aio", &["stuck"]);
    let place = job.read_link("say.where").expect("where the context is");
    let finished = run(&mut job.checkpoint_command());
    finished.refuses(120, &["AIO context with 1 operations under way", &place]);
    assert!(!job.store().join("00000001.cr").exists(), "there is an image in the store");
    job.advance(3);
    job.finish();
}
