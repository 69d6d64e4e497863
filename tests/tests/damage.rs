//! Damaged chains: whatever byte is wrong, it is found, named, and nothing is started from it.

use std::fs;
use std::path::PathBuf;

use cr_tests::{Job, process_exists, run};

/// A killed job with a full checkpoint and two deltas.
fn killed_job_with_a_chain() -> Job {
    let mut job = Job::start_resident("writer", &["--mib", "1", "--rate", "5"]);
    for _ in 0..3 {
        job.checkpoint();
        job.advance(3);
    }
    job.kill();
    job
}

fn image(job: &Job, id: u64) -> PathBuf {
    job.store().join(format!("{id:08}.cr"))
}

/// Restore must refuse with the store's exit code, and leave no process.
#[track_caller]
fn expect_refusal(job: &Job, what: &str, words: &[&str]) {
    let finished = job.try_restore(&[]);
    assert!(finished.code == Some(122), "{what}: cr restore\n{finished}");
    finished.refuses(122, words);
    assert!(!process_exists(job.pid()), "{what}: the job was started from a damaged chain");
    let report = run(job.cr("verify").arg("--json"));
    assert!(report.code == Some(122), "{what}: cr verify\n{report}");
}

/// `cr verify` says which checkpoint is damaged and which one is the newest intact.
#[track_caller]
fn expect_found(job: &Job, what: &str, id: u64) {
    let finished = run(job.cr("verify").arg("--json"));
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    let named =
        report["problems"].as_array().is_some_and(|problems| problems.iter().any(|problem| problem["id"] == id));
    assert!(finished.code == Some(122) && report["ok"] == false && named, "{what}: cr verify\n{finished}");
}

/// Offsets that cover the ends densely and what is between by chance, but the same at each run.
fn offsets(size: usize, count: usize) -> Vec<usize> {
    let ends = (0..96).step_by(5).flat_map(|near| [near, size - 1 - near]);
    let mut state = 12345_usize;
    let between = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 20) % size
    });
    ends.chain(between.take(count)).collect()
}

#[test]
fn flipped_bit_at_any_byte() {
    let mut job = killed_job_with_a_chain();
    for id in [1, 3] {
        let good = fs::read(image(&job, id)).expect("the image");
        for (index, offset) in offsets(good.len(), 60).into_iter().enumerate() {
            let mut bad = good.clone();
            bad[offset] ^= 1 << (index % 8);
            fs::write(image(&job, id), &bad).expect("the damaged image");
            let what = format!("bit {} of byte {offset} of {} in checkpoint {id}", index % 8, good.len());
            expect_found(&job, &what, id);
            if index % 6 == 0 {
                expect_refusal(&job, &what, &[]);
            }
        }
        fs::write(image(&job, id), &good).expect("the good image");
    }
    job.verify();
    job.restore();
    job.finish();
}

#[test]
fn truncated_at_any_byte() {
    let mut job = killed_job_with_a_chain();
    for id in [2, 3] {
        let good = fs::read(image(&job, id)).expect("the image");
        for (index, size) in offsets(good.len(), 30).into_iter().enumerate() {
            fs::write(image(&job, id), &good[..size]).expect("the truncated image");
            let what = format!("checkpoint {id} truncated from {} to {size} bytes", good.len());
            expect_found(&job, &what, id);
            if index % 6 == 0 {
                expect_refusal(&job, &what, &[]);
            }
        }
        fs::write(image(&job, id), [&good[..], &[0; 100]].concat()).expect("the lengthened image");
        expect_found(&job, "bytes appended", id);
        fs::write(image(&job, id), &good).expect("the good image");
    }
    job.verify();
    job.restore();
    job.finish();
}

#[test]
fn missing_parent() {
    let mut job = killed_job_with_a_chain();
    let aside = job.folder().join("aside");
    for id in [1, 2] {
        fs::rename(image(&job, id), &aside).expect("the parent is gone");
        expect_refusal(&job, &format!("without checkpoint {id}"), &[&id.to_string()]);
        fs::rename(&aside, image(&job, id)).expect("the parent is back");
    }
    job.restore();
    job.finish();
}

#[test]
fn swapped_parent() {
    let mut job = killed_job_with_a_chain();
    let other = killed_job_with_a_chain();
    let good = fs::read(image(&job, 1)).expect("the image");
    fs::copy(image(&other, 1), image(&job, 1)).expect("a parent from another chain");
    expect_refusal(&job, "another chain's full checkpoint", &[]);
    fs::write(image(&job, 1), &good).expect("the good image");
    // Two checkpoints of the same chain, changed over.
    let (second, third) = (fs::read(image(&job, 2)).expect("an image"), fs::read(image(&job, 3)).expect("an image"));
    fs::write(image(&job, 2), &third).expect("an image");
    fs::write(image(&job, 3), &second).expect("an image");
    expect_refusal(&job, "checkpoints 2 and 3 changed over", &[]);
    fs::write(image(&job, 2), &second).expect("an image");
    fs::write(image(&job, 3), &third).expect("an image");
    job.restore();
    job.finish();
}

/// An older checkpoint is restored where the newest is damaged, if asked for by its id.
#[test]
fn newest_damaged_older_restored() {
    let mut job = killed_job_with_a_chain();
    let size = fs::metadata(image(&job, 3)).expect("the image").len();
    fs::File::options().write(true).open(image(&job, 3)).and_then(|file| file.set_len(size / 2)).expect("truncated");
    let report = run(job.cr("verify").arg("--json"));
    let json: serde_json::Value = serde_json::from_str(&report.stdout).unwrap_or_default();
    assert!(json["newest_intact"] == 2, "{report}");
    job.restore_with(&["--id", "2"]);
    job.advance(3);
    job.finish();
}

/// Leftovers of a writer that died are no checkpoints, and the next writer removes them.
#[test]
fn unpublished_leftovers() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    job.checkpoint();
    fs::write(job.store().join("00000002.cr.tmp"), "half an image").expect("a leftover");
    assert_eq!(job.list().len(), 1);
    job.verify();
    job.advance(3);
    job.checkpoint();
    assert!(!job.store().join("00000002.cr.tmp").exists(), "the leftover is still there");
    job.kill();
    job.restore();
    job.finish();
}

/// A job whose chain is damaged goes on, and its next checkpoint does not build on the damage in silence.
#[test]
fn damaged_chain_is_not_built_upon() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    job.checkpoint();
    let mut bytes = fs::read(image(&job, 1)).expect("the image");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(image(&job, 1), &bytes).expect("the damaged image");
    let finished = run(&mut job.checkpoint_command());
    match finished.code {
        Some(0) => assert!(finished.json()["kind"] == "full", "a delta on a damaged parent\n{finished}"),
        _ => drop(finished.refuses(122, &[])),
    }
    job.advance(3);
    job.finish();
}
