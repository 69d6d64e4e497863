//! Checkpoints that take less room: compressed pages, and pages that are the same.

use cr_tests::{Checkpoint, Job, JobOptions, run};

const MIB: u64 = 1 << 20;

fn under(how: &str, more: &[&str]) -> JobOptions {
    let mut controller_args = vec!["--compress".to_owned(), how.to_owned()];
    controller_args.extend(more.iter().map(|&arg| arg.to_owned()));
    JobOptions { controller: Some("1h".into()), controller_args, ..JobOptions::default() }
}

fn with_args(options: JobOptions, args: &[&str]) -> JobOptions {
    JobOptions { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..options }
}

/// Full, three deltas, death, restore, two deltas, death, restore; returns the first one.
fn through_a_chain(name: &str, options: &JobOptions, how: &str) -> Checkpoint {
    let mut job = Job::start_with(name, options);
    let full = job.checkpoint();
    let mut last = full.clone();
    let mut extend = |job: &Job| {
        job.advance(10);
        let delta = job.checkpoint();
        delta.expect_delta_on(&last);
        last = delta;
    };
    for _ in 0..3 {
        extend(&job);
    }
    job.advance(10);
    job.kill();
    job.restore_with(&["--compress", how]);
    extend(&job);
    extend(&job);
    job.advance(10);
    job.kill();
    job.verify();
    job.restore();
    job.finish();
    job.verify();
    full
}

#[test]
fn every_kind_of_mapping_comes_back_from_lz4() {
    through_a_chain("memory", &under("lz4", &[]), "zstd");
}

#[test]
fn every_kind_of_mapping_comes_back_from_zstd() {
    through_a_chain("memory", &under("zstd", &[]), "none");
}

/// A plain chain goes on compressed, and a compressed one plain.
#[test]
fn kinds_of_images_can_follow_each_other() {
    through_a_chain("memory", &under("none", &[]), "auto");
    through_a_chain("memory", &under("auto", &[]), "lz4");
}

#[test]
fn what_repeats_itself_takes_less_room() {
    let args = ["--mib", "48", "--kinds", "1000000", "--text"];
    for how in ["lz4", "zstd", "auto"] {
        let full = through_a_chain("alike", &with_args(under(how, &[]), &args), how);
        assert!(full.stored_pages > 40 * 256, "{full:?}");
        assert!(full.stored_bytes < 16 * MIB, "with {how} they take {} MiB", full.stored_bytes / MIB);
    }
}

#[test]
fn pages_that_are_the_same_are_stored_once() {
    let full = through_a_chain("alike", &with_args(under("none", &[]), &["--mib", "64", "--kinds", "16"]), "none");
    assert!(full.stored_pages > 60 * 256 && full.stored_bytes < 8 * MIB, "{full:?}");
    // And as many as there are take their room.
    let full = through_a_chain("alike", &with_args(under("none", &[]), &["--mib", "32", "--kinds", "1000000"]), "none");
    assert!(full.stored_bytes > 28 * MIB, "{full:?}");
}

/// Where memory is short, pages are written while the job stands still: as they are.
#[test]
fn little_memory_is_enough() {
    let options = with_args(under("lz4", &["--memory-limit", "17M"]), &["--mib", "64", "--rate", "200"]);
    through_a_chain("writer", &options, "zstd");
}

/// Memory that changes in every way, with a look at everything beside each delta.
#[test]
fn random_memory_comes_back() {
    let options = with_args(under("auto", &[]), &["--seed", "77"]);
    let options = JobOptions { env: vec![("CR_AUDIT".into(), "pages".into())], ..options };
    through_a_chain("random_memory", &options, "auto");
}

#[test]
fn a_single_checkpoint_and_one_by_a_controller_can_be_compressed() {
    let mut job = Job::start("alike", &["--mib", "16", "--kinds", "1000000", "--text"]);
    let take = |job: &Job, how: &str| {
        let finished = run(job.checkpoint_command().args(["--compress", how]));
        assert_eq!(finished.code, Some(0), "{finished}");
        Checkpoint::parse(&finished.json())
    };
    let small = take(&job, "zstd");
    assert!(small.stored_bytes < 6 * MIB, "{small:?}");
    let large = job.checkpoint();
    assert!(large.is_delta && large.stored_bytes > large.stored_pages * 4096, "{large:?}");
    job.attach(&[]);
    job.wait_for_controller();
    job.advance(20);
    let delta = take(&job, "lz4");
    assert!(delta.stored_pages > 300 && delta.stored_bytes < delta.stored_pages * 4096 * 3 / 4, "{delta:?}");
    let next = job.checkpoint();
    next.expect_delta_on(&delta);
    job.kill();
    job.restore();
    job.finish();
    job.verify();
}

#[test]
fn what_is_no_way_to_compress_is_refused() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    let finished = run(job.checkpoint_command().args(["--compress", "gzip"]));
    finished.refuses(2, &["gzip", "lz4, zstd or auto"]);
    job.finish();
}
