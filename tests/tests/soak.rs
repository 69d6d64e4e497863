//! A chain under a controller that is killed again and again, at any moment: nothing that it said it had taken is ever lost, the
//! store is never wrong, and the newest checkpoint restores. The guest judges its memory.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use cr_tests::Job;

/// Checkpoints that are there in the end, or more.
const CHECKPOINTS: u64 = 200;
/// Controllers that are killed until then, or more: a fast machine takes many checkpoints under each.
const CONTROLLERS: u32 = 16;
/// The longest that it may take.
const PATIENCE: Duration = Duration::from_secs(150);
/// After so many controllers the job is killed as well, and restored.
const RESTORED_EVERY: u32 = 4;

/// The same delays every time; it is the job and the machine that differ.
const SEED: u64 = 0x5eed_0006;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn controllers_are_killed_at_any_moment() {
    println!("seed {SEED:#x}");
    let start = Instant::now();
    let mut random = Random(SEED);
    let mut job = Job::start("writer", &["--mib", "2", "--rate", "10", "--threads", "2"]);
    let (mut killed, mut idle, mut left_over, mut restored) = (0, 0, 0, 0);
    let mut newest = 0;
    while newest < CHECKPOINTS || killed < CONTROLLERS {
        let in_time = start.elapsed() < PATIENCE;
        assert!(in_time, "only {newest} checkpoints under {killed} controllers in {PATIENCE:?}\n{}", job.diagnosis());
        job.attach_every("10ms", &[]);
        // Some are killed before they have begun, most of them somewhere in their checkpoints.
        if random.below(5) > 0 {
            let published = files(&job, "cr");
            job.wait("its controller has taken a checkpoint", |job| files(job, "cr") > published);
        }
        std::thread::sleep(Duration::from_micros(random.below(1_500_000)));
        job.kill_controller();
        killed += 1;
        left_over += files(&job, "tmp");

        let before = newest;
        newest = expect_whole(&job, before);
        idle += u32::from(newest == before);
        if killed % RESTORED_EVERY == 0 && newest > 0 {
            expect_restores(&mut job);
            restored += 1;
        }
    }
    println!(
        "{newest} checkpoints under {killed} controllers, {idle} of which took none; {left_over} unfinished images were \
         left behind; {restored} times restored; {:?}",
        start.elapsed()
    );
    assert!(restored >= 2 && idle * 2 < killed, "{idle} of {killed} controllers took none; {restored} restores");
    expect_restores(&mut job);
    // Whoever writes next removes what the others left.
    job.checkpoint();
    assert_eq!(files(&job, "tmp"), 0);
    job.finish();
}

/// Every checkpoint verifies, and all are there of which a controller has said that it took them. Gives the newest.
fn expect_whole(job: &Job, before: u64) -> u64 {
    if !job.store().join("cr-store.json").exists() {
        assert!(before == 0, "the store is gone");
        return 0;
    }
    job.verify();
    let found = job.list().iter().map(|checkpoint| checkpoint.id).collect::<BTreeSet<_>>();
    let journal = fs::read_to_string(job.store().join("log.jsonl")).unwrap_or_default();
    for line in journal.lines() {
        // The last line of a controller may be cut short.
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        if let Some(id) = line["checkpoint"]["id"].as_u64() {
            assert!(found.contains(&id), "checkpoint {id} was taken and is gone: {found:?}");
        }
    }
    let newest = found.last().copied().unwrap_or_default();
    assert!(newest >= before, "checkpoint {before} is gone: {found:?}");
    newest
}

/// How many files with that ending are in the store.
fn files(job: &Job, ending: &str) -> usize {
    let files = fs::read_dir(job.store()).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|extension| extension == ending)).count()
}

/// The job dies, the newest checkpoint is restored, and the guest finds its memory as it should be. Then the same again, but the job
/// goes on.
fn expect_restores(job: &mut Job) {
    job.kill();
    job.restore();
    job.advance(2);
    job.finish();
    for said in ["finish", "result"] {
        fs::remove_file(job.dir().join(said)).expect("what the finished guest left");
    }
    job.after_death();
    job.restore();
    job.advance(1);
    job.kill_controller();
}
