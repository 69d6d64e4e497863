//! The ways that every kind of state goes: full checkpoint and back, and a chain of deltas and back, twice.

use std::time::Duration;

use crate::{Job, process_exists};

/// How a scenario treats its guest.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Steps that the guest takes between two checkpoints.
    pub steps: u64,
    /// How long the job stays dead.
    pub dead: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { steps: 10, dead: Duration::from_millis(50) }
    }
}

/// One full checkpoint without a resident controller, some more steps, SIGKILL, restore, verdict.
#[track_caller]
pub fn full_and_back(name: &str, args: &[&str], pace: Pace) {
    let mut job = Job::start(name, args);
    job.advance(pace.steps);
    let full = job.checkpoint();
    assert!(!full.is_delta && full.parent.is_none(), "the first checkpoint is {full:?}");
    job.advance(pace.steps); // the job goes on, and what it does from here on is undone
    die_and_come_back(&mut job, pace);
    job.finish();
    job.verify();
}

/// A full checkpoint and three deltas under a resident controller, SIGKILL of job and controller, restore; two more checkpoints,
/// the first of them a delta; SIGKILL, restore, verdict.
#[track_caller]
pub fn chain_and_back(name: &str, args: &[&str], pace: Pace) {
    let mut job = Job::start_resident(name, args);
    let mut chain = vec![job.checkpoint()];
    assert!(!chain[0].is_delta, "the first checkpoint is {:?}", chain[0]);
    let mut extend = |job: &Job| {
        job.advance(pace.steps);
        let delta = job.checkpoint();
        delta.expect_delta_on(chain.last().expect("the full one"));
        chain.push(delta);
    };
    for _ in 0..3 {
        extend(&job);
    }
    job.advance(pace.steps);
    die_and_come_back(&mut job, pace);
    for _ in 0..2 {
        extend(&job);
    }
    job.advance(pace.steps);
    die_and_come_back(&mut job, pace);
    job.finish();
    let listed: Vec<u64> = job.list().iter().map(|checkpoint| checkpoint.id).collect();
    let taken: Vec<u64> = chain.iter().map(|checkpoint| checkpoint.id).collect();
    assert!(listed == taken, "cr list shows {listed:?}, taken were {taken:?}");
    job.verify();
}

/// The chain for a program that is no guest, and ends by itself: a full checkpoint and three deltas while it works, SIGKILL,
/// restore; one more delta, SIGKILL, restore; another one, SIGKILL, restore, and its end. Between checkpoints it works for `pause`.
/// `stop` is done before its end is waited for.
#[track_caller]
pub fn work_through_a_chain(job: &mut Job, pause: Duration, stop: impl FnOnce()) {
    std::thread::sleep(pause);
    job.attach(&[]);
    job.wait_for_controller();
    let mut last = job.checkpoint();
    for round in 0..5 {
        std::thread::sleep(pause);
        let next = job.checkpoint();
        next.expect_delta_on(&last);
        last = next;
        if round >= 2 {
            std::thread::sleep(pause / 2); // undone
            job.kill();
            job.restore_detached();
        }
    }
    assert!(process_exists(job.pid()), "the program ended before the last checkpoint: nothing was tested");
    stop();
    job.wait_for_end();
    job.verify();
}

#[track_caller]
fn die_and_come_back(job: &mut Job, pace: Pace) {
    job.kill();
    std::thread::sleep(pace.dead);
    job.restore();
    job.advance(pace.steps);
}
