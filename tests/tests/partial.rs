//! Checkpoints that leave memory out. See `tests/guests/partial.c`.

use std::fs::File;

use cr_tests::{Checkpoint, Job, Pace, chain_and_back, full_and_back, run};

const AREA_BYTES: u64 = 64 * 4096;

#[test]
fn full() {
    full_and_back("partial", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("partial", &[], Pace::default());
}

fn range(job: &Job, area: &str) -> String {
    job.read_link(&format!("say.{area}")).expect("the guest says where its areas are")
}

/// A checkpoint with more arguments.
#[track_caller]
fn checkpoint(job: &Job, args: &[&str]) -> Checkpoint {
    Checkpoint::parse(&run(job.checkpoint_command().args(args)).json())
}

/// What the newest checkpoint leaves out: the reason and the pages of each part.
#[track_caller]
fn omitted(job: &Job) -> Vec<(String, u64)> {
    let details = run(job.cr("show").arg("--json")).json();
    let parts = details["omitted"]["memory"].as_array().expect("a list").clone();
    parts.iter().map(|p| (p["reason"].as_str().unwrap().to_owned(), p["pages"].as_u64().unwrap())).collect()
}

/// From now on the guest leaves its areas alone.
#[track_caller]
fn hold(job: &Job) {
    File::create(job.dir().join("hold")).expect("to tell the guest");
    job.advance(2);
}

/// The guest takes zeroes for its area once, and goes on.
fn may_be_lost(job: &Job, area: &str) {
    let _ = std::fs::remove_file(job.dir().join("hold"));
    File::create(job.dir().join(format!("lost.{area}"))).expect("to tell the guest");
}

/// Kills the job and has it restored without an area.
fn come_back_without(job: &mut Job, area: &str) {
    job.kill();
    may_be_lost(job, area);
    job.restore_with(&["--accept-missing"]);
    job.advance(3);
}

/// What was asked for again is there again.
fn come_back_whole(job: &mut Job) {
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
}

fn skipped(reason: &str) -> Vec<(String, u64)> {
    vec![(reason.to_owned(), 64)]
}

#[test]
fn a_named_range_is_left_out_and_comes_back_as_zeroes() {
    let mut job = Job::start("partial", &[]);
    let named = range(&job, "named");
    let skip = ["--skip-memory", named.as_str()];
    let first = checkpoint(&job, &skip);
    assert_eq!(omitted(&job), skipped("skip-memory"));
    // As a delta, over an image that lacks it.
    job.advance(3);
    hold(&job);
    checkpoint(&job, &skip).expect_delta_on(&first);
    assert_eq!(omitted(&job), skipped("skip-memory"));
    let said = run(&mut job.cr("show")).expect(0).said();
    assert!(said.contains("left out") && said.contains("--skip-memory"), "{said}");
    job.kill();
    job.try_restore(&[]).refuses(123, &["leaves out memory", "64 pages", "--accept-missing"]);
    come_back_without(&mut job, "named");
    // From here on the area has its content again.
    job.checkpoint();
    assert!(omitted(&job).is_empty());
    come_back_whole(&mut job);
}

#[test]
fn what_is_wanted_again_is_stored_whole() {
    let mut job = Job::start("partial", &[]);
    let named = range(&job, "named");
    let first = job.checkpoint();
    job.advance(3);
    hold(&job);
    // The older image has old content of it, which must not come back.
    let second = checkpoint(&job, &["--skip-memory", &named]);
    second.expect_delta_on(&first);
    come_back_without(&mut job, "named");
    checkpoint(&job, &["--skip-memory", &named]);
    assert_eq!(omitted(&job), skipped("skip-memory"));
    job.advance(3);
    let whole = job.checkpoint();
    assert!(whole.stored_pages >= 64, "{} pages", whole.stored_pages);
    assert!(omitted(&job).is_empty());
    come_back_whole(&mut job);
}

#[test]
fn a_resident_controller_leaves_out_what_it_is_asked_to() {
    let mut job = Job::start_resident("partial", &[]);
    let named = range(&job, "named");
    job.checkpoint();
    for _ in 0..2 {
        job.advance(3);
        checkpoint(&job, &["--skip-memory", &named]);
        assert_eq!(omitted(&job), skipped("skip-memory"));
    }
    job.advance(3);
    let whole = job.checkpoint();
    assert!(whole.stored_pages >= 64, "{} pages", whole.stored_pages);
    come_back_whole(&mut job);
}

#[test]
fn advice_is_heeded_when_wanted() {
    let mut job = Job::start("partial", &[]);
    let whole = job.checkpoint();
    assert!(omitted(&job).is_empty());
    job.kill();
    let mut job = Job::start("partial", &[]);
    hold(&job);
    let less = checkpoint(&job, &["--honour-dontdump"]);
    assert_eq!(omitted(&job), skipped("dont-dump"));
    assert!(less.stored_bytes + AREA_BYTES / 2 < whole.stored_bytes, "{} {}", less.stored_bytes, whole.stored_bytes);
    job.kill();
    job.try_restore(&[]).refuses(123, &["MADV_DONTDUMP", "--accept-missing"]);
    come_back_without(&mut job, "undumped");
    job.finish();
}

/// Memory without a name is lost; a file that is written through a shared mapping is left as it is.
#[test]
fn shared_memory_is_left_out_of_the_object() {
    for area in ["shared", "file"] {
        let mut job = Job::start("partial", &[]);
        let place = range(&job, area);
        job.checkpoint();
        job.advance(3);
        hold(&job);
        checkpoint(&job, &["--skip-memory", &format!("{}:{place}", job.pid())]);
        assert_eq!(omitted(&job), skipped("skip-memory"), "{area}");
        come_back_without(&mut job, area);
        job.checkpoint();
        come_back_whole(&mut job);
    }
}

#[test]
fn bad_ranges_are_refused_and_harm_nothing() {
    let mut job = Job::start("partial", &[]);
    let refuses = |range: &str, code: i32, words: &[&str]| {
        run(job.checkpoint_command().args(["--skip-memory", range])).refuses(code, words);
    };
    refuses("1001-3000", USAGE, &["not at a page"]);
    refuses("3000-1000", USAGE, &["START must be below END"]);
    refuses("1000-1000", USAGE, &["START must be below END"]);
    refuses("here", USAGE, &["START-END"]);
    refuses("1000-3000", 121, &["nothing is mapped", "/proc"]);
    refuses("1:1000-3000", 121, &["pid 1", "no process of the job"]);
    job.advance(3);
    job.checkpoint();
    come_back_whole(&mut job);
}

/// The exit code for arguments that make no sense.
const USAGE: i32 = 2;
