//! Checkpoints that leave something out: memory, or processes. They say so, and what cannot stand alone is not restored.

use std::fs::{self, File};
use std::path::PathBuf;

use cr_tests::{Finished, Job, JobOptions, Pace, chain_and_back, cr, full_and_back, run, wait_until};
use serde_json::Value;

/// Pages of each part of the guest's memory.
const PAGES: u64 = 256;

#[test]
fn nothing_left_out() {
    full_and_back("partial", &[], Pace::default());
    chain_and_back("partial", &[], Pace::default());
}

/// `cr checkpoint --json` with more arguments, which must succeed.
#[track_caller]
fn checkpoint(job: &Job, args: &[&str]) -> Value {
    run(job.checkpoint_command().args(args)).json()
}

fn range(job: &Job, part: &str) -> String {
    job.read_link(&format!("say.{part}")).expect("the guest says where it is")
}

fn number(checkpoint: &Value, name: &str) -> u64 {
    checkpoint[name].as_u64().unwrap_or_else(|| panic!("no {name} in {checkpoint}"))
}

fn words(checkpoint: &Value, name: &str) -> Vec<String> {
    let all = checkpoint[name].as_array().unwrap_or_else(|| panic!("no {name} in {checkpoint}"));
    all.iter().map(|w| w.as_str().unwrap_or_default().to_owned()).collect()
}

/// Says to the guest that it must find these parts lost.
fn lose(job: &Job, parts: &[&str]) {
    for part in parts {
        File::create(job.dir().join(format!("lost.{part}"))).expect("a file for the guest");
    }
}

#[track_caller]
fn found_all_lost(job: &Job, parts: &[&str]) {
    for part in parts {
        let file = job.dir().join(format!("lost.{part}"));
        job.wait(&format!("it has found its {part} lost"), |_| !file.exists());
    }
}

/// Kills the job, and has it restored after a try without `--accept-missing` was refused.
#[track_caller]
fn come_back_without(job: &mut Job, parts: &[&str], words: &[&str]) {
    job.kill();
    job.try_restore(&[]).refuses(123, words).refuses(123, &["leaves out memory", "--accept-missing"]);
    lose(job, parts);
    job.restore_with(&["--accept-missing"]);
    found_all_lost(job, parts);
    job.advance(5);
}

// ------------------------------------------------------------------------------------------------------------- memory

#[test]
fn memory_left_out_of_a_full_checkpoint() {
    let mut job = Job::start("partial", &[]);
    let all = checkpoint(&Job::start("partial", &[]), &[]);
    job.advance(3);
    let cache = range(&job, "cache");
    let partial = checkpoint(&job, &["--skip-memory", &cache]);
    assert!(number(&partial, "stored_pages") + PAGES <= number(&all, "stored_pages") + 10, "{partial}\nafter\n{all}");
    assert!(number(&partial, "stored_bytes") < number(&all, "stored_bytes"), "{partial}\nafter\n{all}");
    let said = words(&partial, "left_out").join("\n");
    assert!(said.contains(&format!("{PAGES} pages of pid {} at {cache}", job.pid())), "{partial}");
    let show = run(job.cr("show").arg("--json")).json();
    assert_eq!(show["omitted"]["memory"][0]["pages"], PAGES);
    assert_eq!(show["omitted"]["memory"][0]["reason"], "skip-memory");
    let text = run(&mut job.cr("show"));
    assert!(text.expect(0).stdout.contains(&cache), "{text}");
    job.verify();
    come_back_without(&mut job, &["cache"], &[&cache, "--skip-memory"]);
    job.finish();
}

#[test]
fn memory_left_out_of_a_delta_and_taken_again() {
    let mut job = Job::start_resident("partial", &[]);
    let full = checkpoint(&job, &[]);
    assert!(words(&full, "left_out").is_empty(), "{full}");
    job.advance(20);
    let parts = ["cache", "file", "shared", "written"];
    let places: Vec<String> = parts.iter().map(|part| range(&job, part)).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let ranges: Vec<&str> = places.iter().flat_map(|place| ["--skip-memory", place]).collect();
    let delta = checkpoint(&job, &ranges);
    assert_eq!(number(&delta, "parent"), number(&full, "id"));
    assert_eq!(words(&delta, "left_out").len(), parts.len(), "{delta}");
    // What the older checkpoint has of it must not come back.
    come_back_without(&mut job, &parts, &places);
    // All of it is stored again.
    let whole = checkpoint(&job, &[]);
    assert_eq!(number(&whole, "parent"), number(&delta, "id"), "{whole}");
    assert!(words(&whole, "left_out").is_empty() && number(&whole, "stored_pages") >= 4 * PAGES, "{whole}");
    job.advance(5);
    job.kill();
    job.restore();
    job.advance(20);
    // Left out twice, then taken: without a restore in between.
    for _ in 0..2 {
        let partial = checkpoint(&job, &ranges);
        assert!(number(&partial, "stored_pages") < PAGES, "{partial}");
        job.advance(10);
    }
    let whole = checkpoint(&job, &[]);
    assert!(number(&whole, "stored_pages") >= 4 * PAGES, "{whole}");
    job.kill();
    job.restore();
    job.advance(10);
    job.finish();
    job.verify();
}

/// The same with `cr` that does not stay, and finds by comparing what to store.
#[test]
fn memory_taken_again_by_another_controller() {
    let mut job = Job::start("partial", &[]);
    checkpoint(&job, &[]);
    let cache = range(&job, "cache");
    checkpoint(&job, &["--skip-memory", &format!("{}:{cache}", job.pid())]);
    let whole = checkpoint(&job, &[]);
    assert!((PAGES..2 * PAGES + 100).contains(&number(&whole, "stored_pages")), "{whole}");
    job.kill();
    job.restore();
    job.advance(5);
    job.finish();
}

#[test]
fn what_is_not_to_be_dumped() {
    let options = JobOptions {
        controller: Some("1h".into()),
        controller_args: vec!["--honour-dontdump".into()],
        ..JobOptions::default()
    };
    let mut job = Job::start_with("partial", &options);
    for round in 0..2 {
        let partial = checkpoint(&job, &[]);
        let said = words(&partial, "left_out");
        assert!(said.len() == 1 && said[0].contains("MADV_DONTDUMP"), "{partial}");
        assert_eq!(partial["kind"], if round == 0 { "full" } else { "delta" });
        job.advance(10);
    }
    let secret = range(&job, "secret");
    come_back_without(&mut job, &["secret"], &[&secret, "MADV_DONTDUMP"]);
    // The controller is another one now, and not told to leave anything out.
    let whole = checkpoint(&job, &[]);
    assert!(words(&whole, "left_out").is_empty(), "{whole}");
    job.kill();
    job.restore();
    job.advance(5);
    job.finish();
}

#[test]
fn a_controller_leaves_out_what_may_be_gone() {
    let mut job = Job::start("partial", &[]);
    let mut attach = job.cr("attach");
    attach.arg(job.pid().to_string()).args(["--detach", "--json", "--skip-memory", "0x1000-0x2000"]);
    run(&mut attach).expect(0);
    let noted = checkpoint(&job, &[]);
    assert!(words(&noted, "widened").join("\n").contains("nothing is mapped at 0x1000-0x2000"), "{noted}");
    job.finish();
}

#[test]
fn ranges_that_are_none() {
    let mut job = Job::start("partial", &[]);
    let pid = job.pid().to_string();
    let try_range = |range: &str| run(job.checkpoint_command().args(["--skip-memory", range]));
    try_range("0x1001-0x3000").refuses(2, &["0x1001", "not at a page"]);
    try_range("0x3000-0x1000").refuses(2, &["empty", "START must be below END"]);
    try_range("0x3000-0x3000").refuses(2, &["empty"]);
    try_range("cache").refuses(2, &["START-END", "/proc/PID/maps"]);
    try_range("0x1000-0x2000").refuses(121, &["nothing is mapped at 0x1000-0x2000", &format!("/proc/{pid}/maps")]);
    let elsewhere = format!("1:{}", range(&job, "cache"));
    try_range(&elsewhere).refuses(121, &["pid 1", "no process of the job"]);
    assert!(!job.store().join("00000001.cr").exists(), "there is an image in the store");
    job.advance(3);
    job.finish();
}

// ---------------------------------------------------------------------------------------------------------- processes

/// A tree, and the store of a part of it.
fn tree(args: &[&str]) -> (Job, PathBuf) {
    let job = Job::start("partial", &[&["--tree"], args].concat());
    let part = job.folder().join("part");
    (job, part)
}

fn pid(job: &Job, name: &str) -> String {
    job.read_link(&format!("say.{name}")).expect("the guest says the pid")
}

fn only(job: &Job, store: &PathBuf, args: &[&str]) -> Finished {
    let mut command = cr();
    command.arg("checkpoint").arg(job.pid().to_string()).arg("--json").arg("--store").arg(store).args(args);
    run(&mut command)
}

fn restore(store: &PathBuf) -> Finished {
    run(cr().args(["restore", "--detach", "--json", "--store"]).arg(store))
}

#[test]
fn a_subtree_that_stands_alone() {
    let (mut job, part) = tree(&[]);
    let child = pid(&job, "child");
    let first = only(&job, &part, &["--only", &child]).json();
    assert_eq!((first["pid"].to_string(), &first["kind"]), (child.clone(), &Value::from("full")));
    assert!(words(&first, "missing").is_empty(), "{first}");
    let left_out = words(&first, "left_out").join("\n");
    assert!(left_out.contains(&format!("pid {} ", job.pid())) && left_out.contains(&pid(&job, "other")), "{first}");
    job.advance(5);
    let second = only(&job, &part, &["--only", &child]).json();
    assert_eq!(second["kind"], "delta");
    job.advance(5);
    job.kill();
    let finished = restore(&part);
    assert_eq!(finished.json()["pid"].to_string(), child);
    job.advance(5);
    // As a job of its own, twice.
    let third = run(cr().args(["checkpoint", &child, "--json", "--store"]).arg(&part)).json();
    assert_eq!(third["kind"], "delta");
    assert!(words(&third, "left_out").is_empty(), "{third}");
    job.kill();
    restore(&part).expect(0);
    job.advance(5);
    File::create(job.dir().join("finish")).expect("the finish file");
    job.wait("it has a verdict", |job| job.read_link("result").is_some());
    assert_eq!(job.read_link("result").as_deref(), Some("ok"), "{}", job.diagnosis());
    wait_until("it has ended", || !cr_tests::process_exists(child.parse().expect("a pid")));
}

/// Takes what cannot stand alone: the checkpoint and its restore name why, and the job goes on.
#[track_caller]
fn cannot_stand_alone(args: &[&str], chosen: &[&str], single: bool, why: &[&str]) {
    let (mut job, part) = tree(args);
    let pids: Vec<String> = chosen.iter().map(|name| pid(&job, name)).collect();
    let pids = pids.join(",");
    let mut options = vec!["--only", &pids];
    options.extend(single.then_some("--single"));
    let taken = only(&job, &part, &options);
    let said = words(&taken.json(), "missing").join("\n");
    assert!(why.iter().all(|word| said.contains(word)), "{why:?}\n{taken}");
    assert!(taken.stderr.contains("cannot be restored by itself"), "{taken}");
    job.advance(5);
    let shown = run(cr().args(["show", "--store"]).arg(&part));
    assert!(why.iter().all(|word| shown.expect(0).stdout.contains(word)), "{shown}");
    run(cr().args(["verify", "--store"]).arg(&part)).expect(0);
    // The job lives, and goes on; whatever lives is not in the way of being refused.
    restore(&part).refuses(123, why).refuses(123, &["cannot stand alone"]);
    run(cr().args(["restore", "--detach", "--accept-missing", "--store"]).arg(&part)).refuses(123, why);
    job.advance(5);
    // The whole job can be taken as ever.
    job.checkpoint();
    job.kill();
    job.restore();
    job.advance(5);
    job.finish();
}

#[test]
fn a_pipe_to_the_rest() {
    cannot_stand_alone(&["--pipe"], &["child"], false, &["is a pipe (pipe:[", "(partial) has it open"]);
}

#[test]
fn memory_shared_with_the_rest() {
    cannot_stand_alone(
        &["--shared"],
        &["child"],
        false,
        &["is shared memory that pid", "(partial), which is left out"],
    );
}

#[test]
fn a_single_process_with_children() {
    cannot_stand_alone(&[], &["child"], true, &["has the child pid", "which is left out"]);
}

#[test]
fn two_processes_without_their_parent() {
    cannot_stand_alone(&[], &["child", "other"], false, &["has the parent pid", "which is left out"]);
}

/// A process without children that has nothing in common with others.
#[test]
fn a_single_process() {
    let (mut job, part) = tree(&[]);
    let other = pid(&job, "other");
    let taken = only(&job, &part, &["--only", &other, "--single"]).json();
    assert!(words(&taken, "missing").is_empty(), "{taken}");
    job.advance(3);
    job.kill();
    assert_eq!(restore(&part).json()["pid"].to_string(), other);
    let parent = fs::read_to_string(format!("/proc/{other}/status")).expect("it lives");
    assert!(parent.contains("Name:\tpartial"), "{parent}");
    // It ends with the test.
}

#[test]
fn processes_that_are_not_of_the_job() {
    let (mut job, part) = tree(&[]);
    let child = pid(&job, "child");
    only(&job, &part, &["--only", "1"]).refuses(121, &["pid 1", "no process of the job", &job.pid().to_string()]);
    only(&job, &part, &["--only", "0"]).refuses(2, &["--only"]);
    only(&job, &part, &["--only", "x"]).refuses(2, &["--only"]);
    only(&job, &part, &["--single"]).refuses(2, &["--only"]);
    assert!(!part.exists(), "a store was made");
    // A store holds one chain: of the job, or of a part of it.
    job.checkpoint();
    only(&job, &job.store(), &["--only", &child]).refuses(122, &[&child, "store of its own"]);
    assert_eq!(job.list().len(), 1);
    job.attach(&[]);
    job.wait_for_controller();
    only(&job, &job.store(), &["--only", &child]).refuses(122, &[&child, "store of its own"]);
    only(&job, &part, &["--only", &child]).expect(0);
    job.advance(3);
    job.checkpoint();
    job.kill_controller();
    job.finish();
}
