//! Processes of the job that are killed in the middle of a checkpoint, by the job itself or by somebody outside: their parents hear
//! of it as if nobody had looked at them, and the checkpoint is one of those that are left.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cr::procfs::{self, Status};
use cr::sys::fd::{pidfd_open, pidfd_send_signal};
use cr_tests::Job;

/// Checkpoints while children are killed; each must be followed by more of that.
const CHECKPOINTS: u32 = 40;

/// Kills children of a job from outside, until it is dropped.
struct Killer {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Killer {
    fn of(parent: i32) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let told = done.clone();
        let thread = thread::spawn(move || {
            let (mut turn, mut killed) = (0, 0);
            while !told.load(Ordering::Relaxed) {
                turn += 7;
                killed += u32::from(kill_a_child(parent, turn));
                thread::sleep(Duration::from_millis(40 + (turn % 60) as u64));
            }
            killed
        });
        Self { done, thread: Some(thread) }
    }

    /// Ends it, and says how many it has killed.
    fn end(mut self) -> u32 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().expect("the parent notices"))
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Says whether one was killed; its parent must notice, even while the job stands still for a little.
fn kill_a_child(parent: i32, turn: usize) -> bool {
    const PATIENCE: Duration = Duration::from_secs(5);
    let children = procfs::children(parent).unwrap_or_default();
    let Some(&child) = children.get(turn % children.len().max(1)) else { return false };
    let Ok(pidfd) = pidfd_open(child) else { return false };
    // The number may be another's by now: what is held is what is looked at.
    if !Status::read(child, child).is_ok_and(|s| s.numbers("PPid") == [parent.cast_unsigned()]) {
        return false;
    }
    pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).expect("the child is there");
    let started = Instant::now();
    while pidfd_send_signal(pidfd.as_fd(), 0).is_ok() {
        assert!(
            started.elapsed() < PATIENCE,
            "the parent has not noticed for {PATIENCE:?} that its child {child} was killed"
        );
        thread::sleep(Duration::from_millis(1));
    }
    true
}

fn through_a_chain_and_back(args: &[&str]) {
    // What was noted of the written pages of one process must outlast that another one is gone.
    let mut job = Job::start_audited("killed", args, "pages");
    for _ in 0..2 {
        let killer = (!args.is_empty()).then(|| Killer::of(job.pid()));
        for _ in 0..CHECKPOINTS / 2 {
            job.checkpoint();
            job.advance(2);
        }
        assert!(killer.is_none_or(|killer| killer.end() > 5), "hardly anybody was killed");
        job.kill();
        job.restore();
    }
    job.finish();
}

#[test]
fn by_their_parent() {
    through_a_chain_and_back(&[]);
}

#[test]
fn from_outside() {
    through_a_chain_and_back(&["--from-outside"]);
}
