//! Files by what is left of their names, `O_PATH`, `O_DIRECT`, `O_APPEND`, and memory files with seals. See `tests/guests/names.c`.

use cr_tests::{Job, Pace, chain_and_back, full_and_back};

#[test]
fn full() {
    full_and_back("names", &[], Pace::default());
}

#[test]
fn chain() {
    chain_and_back("names", &[], Pace::default());
}

/// What a descriptor only names must be what it was.
#[test]
fn a_named_file_that_is_something_else_now_is_named() {
    let mut job = Job::start("names", &[]);
    job.checkpoint();
    job.kill();
    let (path, aside) = (job.dir().join("socket"), job.dir().join("aside"));
    std::fs::rename(&path, &aside).expect("to put it aside");
    job.try_restore(&[]).refuses(123, &["socket", "cannot be found"]);
    std::fs::create_dir(&path).expect("to put a directory there");
    job.try_restore(&[]).refuses(123, &["socket", "a directory now"]);
    std::fs::remove_dir(&path).expect("to take it away");
    std::fs::rename(&aside, &path).expect("to put it back");
    job.restore();
    job.finish();
}
