//! Checkpoints of some processes of a job. What stands alone is restored; what does not says why. See `tests/guests/only.c`.

use std::fs::{self, File};
use std::path::Path;

use cr_tests::{Finished, Job, cr, process_exists, run, wait_until};
use serde_json::Value;

fn words(checkpoint: &Value, name: &str) -> Vec<String> {
    let all = checkpoint[name].as_array().unwrap_or_else(|| panic!("no {name} in {checkpoint}"));
    all.iter().map(|w| w.as_str().unwrap_or_default().to_owned()).collect()
}

/// A tree, and the store of a part of it.
fn tree(args: &[&str]) -> (Job, std::path::PathBuf) {
    let job = Job::start("only", args);
    let part = job.folder().join("part");
    (job, part)
}

fn pid(job: &Job, name: &str) -> String {
    job.read_link(&format!("say.{name}")).expect("the guest says the pid")
}

fn only(job: &Job, store: &Path, args: &[&str]) -> Finished {
    let mut command = cr();
    command.arg("checkpoint").arg(job.pid().to_string()).arg("--json").arg("--store").arg(store).args(args);
    run(&mut command)
}

fn restore(store: &Path) -> Finished {
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
    wait_until("it has ended", || !process_exists(child.parse().expect("a pid")));
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
    cannot_stand_alone(&["--pipe"], &["child"], false, &["is a pipe (pipe:[", "(only) has it open"]);
}

#[test]
fn a_socket_to_the_rest() {
    cannot_stand_alone(&["--socket"], &["child"], false, &["is a Unix socket", "(only), outside of the job"]);
}

#[test]
fn memory_shared_with_the_rest() {
    cannot_stand_alone(&["--shared"], &["child"], false, &["is shared memory that pid", "(only), which is left out"]);
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
    assert!(parent.contains("Name:\tonly"), "{parent}");
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
