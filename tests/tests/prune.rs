//! `cr prune`: what is to be kept stays and restores, whatever else happens at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cr_tests::{Finished, Job, cr, run};
use serde_json::Value;

const GUEST: [&str; 4] = ["--mib", "1", "--rate", "5"];

/// A chain of eight checkpoints, of which 1, 4 and 7 are full ones, of a job that runs under a controller.
fn job_with_three_chains() -> Job {
    let job = Job::start_resident("writer", &GUEST);
    for id in 1..=8_u64 {
        // A controller that does not find what its next delta would build on takes a full one.
        let full = [1, 4, 7].contains(&id);
        let (root, aside) = (image(&job.store(), id.saturating_sub(3)), job.folder().join("aside"));
        if full && id > 1 {
            fs::rename(&root, &aside).expect("the full one is gone");
        }
        let taken = job.checkpoint();
        assert!(taken.id == id && taken.is_delta != full, "{taken:?}");
        if full && id > 1 {
            fs::rename(&aside, &root).expect("the full one is back");
        }
        job.advance(2);
    }
    job
}

fn image(store: &Path, id: u64) -> PathBuf {
    store.join(format!("{id:08}.cr"))
}

/// `cr prune` of a store, to be completed.
fn prune(store: &Path, args: &[&str]) -> Command {
    let mut command = cr();
    command.arg("prune").arg("--store").arg(store).args(args);
    command
}

/// A copy of the store's checkpoints, to try things on.
fn copy(job: &Job, name: &str) -> PathBuf {
    let to = job.folder().join(name);
    fs::create_dir(&to).expect("a folder for a copy");
    for entry in fs::read_dir(job.store()).expect("the store").flatten() {
        let name = entry.file_name();
        if name == "cr-store.json" || name.to_string_lossy().ends_with(".cr") {
            fs::copy(entry.path(), to.join(&name)).expect("a copy");
        }
    }
    to
}

/// The numbers of a store's checkpoints.
fn ids(store: &Path) -> Vec<u64> {
    let names = fs::read_dir(store).expect("the store").flatten().map(|entry| entry.file_name());
    let mut ids: Vec<u64> = names.filter_map(|name| name.to_str()?.strip_suffix(".cr")?.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

#[track_caller]
fn expect_clean(store: &Path, what: &str) {
    let finished = run(cr().arg("verify").arg("--store").arg(store));
    assert!(finished.code == Some(0), "{what}: {:?} are left\n{finished}", ids(store));
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().expect("an array").iter().filter_map(|fate| fate["id"].as_u64()).collect()
}

fn fate(finished: &Finished, list: &str, id: u64) -> Value {
    let fates = finished.json()[list].clone();
    let found = fates.as_array().and_then(|fates| fates.iter().find(|fate| fate["id"] == id).cloned());
    found.unwrap_or_else(|| panic!("no checkpoint {id} in {list}\n{finished}"))
}

#[test]
fn rules_keep_what_they_say_and_what_that_builds_on() {
    let mut job = job_with_three_chains();
    job.kill();
    let list = job.list();
    let bytes = |ids: &[u64]| -> u64 { list.iter().filter(|c| ids.contains(&c.id)).map(|c| c.stored_bytes).sum() };
    let newest_two_chains = bytes(&[4, 5, 6, 7, 8]).to_string();
    let a_byte_less = (bytes(&[4, 5, 6, 7, 8]) - 1).to_string();
    let cases: [(&[&str], &[u64]); 8] = [
        (&["--keep-last", "1"], &[7, 8]),
        (&["--keep-last", "3"], &[4, 5, 6, 7, 8]),
        (&["--keep-last", "5"], &[4, 5, 6, 7, 8]),
        (&["--keep-last", "6"], &[1, 2, 3, 4, 5, 6, 7, 8]),
        (&["--keep-bytes", &newest_two_chains], &[4, 5, 6, 7, 8]),
        (&["--keep-bytes", &a_byte_less], &[7, 8]),
        (&["--keep-last", "3", "--keep-bytes", &a_byte_less], &[4, 5, 6, 7, 8]),
        (&["--keep-weekly", "5", "--keep-last", "1"], &[7, 8]),
    ];
    for (number, (rules, expected)) in cases.into_iter().enumerate() {
        let store = copy(&job, &format!("case.{number}"));
        let dry = run(prune(&store, rules).args(["--dry-run", "--json"]));
        assert_eq!(ids(&store), (1..=8).collect::<Vec<_>>(), "a dry run removed something\n{dry}");
        assert!(!store.join("lock").exists(), "a dry run wrote to the store");
        let done = run(prune(&store, rules).arg("--json"));
        // By chance the test may run over the end of a week.
        let spread = rules[0] == "--keep-weekly" && ids(&store).len() > expected.len();
        assert!(ids(&store) == expected || spread, "{rules:?}: {:?} are left\n{done}", ids(&store));
        let (dry, done) = (dry.json(), done.json());
        assert!(dry["dry_run"] == true && done["dry_run"] == false, "{dry} {done}");
        assert!(dry["kept"] == done["kept"] && dry["removed"] == done["removed"], "{dry}\n{done}");
        assert_eq!((numbers(&done["kept"]), done["kept_bytes"].as_u64()), (ids(&store), Some(bytes(&ids(&store)))));
        assert_eq!(done["freed_bytes"], bytes(&numbers(&done["removed"])));
        expect_clean(&store, &format!("{rules:?}"));
    }

    // The newest of what is left is the job.
    let finished = run(prune(&job.store(), &["--keep-last", "3"]).arg("--json"));
    let needed = fate(&finished, "kept", 5);
    assert!(needed["reasons"] == Value::Array(Vec::new()) && needed["needed_by"] == serde_json::json!([6]), "{needed}");
    let newest = fate(&finished, "kept", 8);
    assert_eq!(newest["reasons"], serde_json::json!(["newest", "newest_intact", "last"]));
    assert!(newest["kind"] == "delta" && newest["parent"] == 7 && newest["problem"] == Value::Null, "{newest}");
    assert!(fate(&finished, "removed", 1)["kind"] == "full", "{finished}");
    let again = run(&mut prune(&job.store(), &["--keep-last", "3"]));
    assert!(again.code == Some(0) && again.stdout.contains("only because 6 builds on it"), "{again}");
    assert!(again.stdout.contains("nothing to remove; 5 stay"), "{again}");
    job.restore();
    job.advance(3);
    assert_eq!(job.checkpoint().id, 9);
    job.kill();
    job.restore();
    job.finish();
}

/// Hours and days are told by the time at which the job was frozen.
#[test]
fn hours_and_days() {
    let mut job = Job::start_resident("writer", &GUEST);
    job.checkpoint();
    job.checkpoint();
    job.kill();
    let times: Vec<String> = run(job.cr("list").arg("--json")).json().as_array().map_or_else(Vec::new, |list| {
        list.iter().map(|c| c["taken_at"].as_str().unwrap_or_default().to_owned()).collect()
    });
    let same_hour = times.len() == 2 && times[0][..13] == times[1][..13];
    let reasons = |rule| {
        let finished = run(job.cr("prune").args([rule, "9", "--dry-run", "--json"]));
        (fate(&finished, "kept", 1)["reasons"].to_string(), fate(&finished, "kept", 2)["reasons"].to_string())
    };
    for (rule, name) in [("--keep-hourly", "hourly"), ("--keep-daily", "daily"), ("--keep-weekly", "weekly")] {
        let (first, second) = reasons(rule);
        assert!(second.contains(name) && (!same_hour || first == "[]"), "{rule}: {first} {second}");
    }
}

/// Killed before or after any removal, or with that step failing: what is there is whole, and pruning again ends it.
#[test]
fn interrupted_at_any_step() {
    let mut job = job_with_three_chains();
    job.kill();
    let expected = [7, 8];
    for point in ["prune.remove", "prune.removed"] {
        for (action, code) in [("kill", 128 + 9), ("error", 125)] {
            let mut struck = 0;
            for pass in 1..=7 {
                let what = format!("{point}:{action}:{pass}");
                let store = copy(&job, &what);
                let finished = run(prune(&store, &["--keep-last", "2", "--json"]).env("CR_FAULT", &what));
                if finished.code == Some(0) {
                    assert_eq!(ids(&store), expected, "{what}");
                    break;
                }
                struck += 1;
                finished.expect(code);
                // The newest go first.
                let removed = if point == "prune.removed" { pass } else { pass - 1 };
                assert_eq!(ids(&store), (1..=6 - removed).chain(expected).collect::<Vec<_>>(), "{what}");
                expect_clean(&store, &what);
                run(&mut prune(&store, &["--keep-last", "2"])).expect(0);
                assert_eq!(ids(&store), expected, "{what}, and then again");
                expect_clean(&store, &what);
                fs::remove_dir_all(&store).expect("the copy is removed");
            }
            assert_eq!(struck, 6, "{point}:{action}");
        }
    }
    job.restore();
    job.finish();
}

/// A controller prunes between two checkpoints, and goes on with deltas.
#[test]
fn beside_a_controller() {
    let mut job = job_with_three_chains();
    let dry = run(&mut prune(&job.store(), &["--keep-last", "1", "--dry-run", "--json"]));
    assert_eq!((numbers(&dry.json()["kept"]), ids(&job.store()).len()), (vec![7, 8], 8), "{dry}");
    let pruned = run(&mut prune(&job.store(), &["--keep-last", "1", "--json"]));
    assert_eq!((numbers(&pruned.json()["kept"]), ids(&job.store())), (vec![7, 8], vec![7, 8]), "{pruned}");
    assert!(fate(&pruned, "kept", 8)["reasons"].to_string().contains("in_use"), "{pruned}");
    let next = job.checkpoint();
    assert!(next.id == 9 && next.parent == Some(8), "{next:?}");
    job.verify();
    // Asked for in the middle of a checkpoint, it waits for its end.
    job.advance(2);
    let mut taking = job.checkpoint_command().stdout(std::process::Stdio::null()).spawn().expect("cr checkpoint");
    let pruned = run(&mut prune(&job.store(), &["--keep-last", "1"]));
    assert!(taking.wait().expect("cr checkpoint").success() && pruned.code == Some(0), "{pruned}");
    job.verify();
    job.kill();

    // Of a job that was restored from an older checkpoint, the newest is not what the next delta builds on.
    job.restore_with(&["--id", "9"]);
    job.advance(2);
    let forked = job.checkpoint();
    assert_eq!(forked.parent, Some(9));
    job.kill();
    job.restore_with(&["--id", "8"]);
    job.advance(2);
    let pruned = run(&mut prune(&job.store(), &["--keep-last", "1", "--json"]));
    assert!(fate(&pruned, "kept", 8)["reasons"].to_string().contains("in_use"), "{pruned}");
    assert_eq!(job.checkpoint().parent, Some(8));
    job.verify();
    job.kill();
    job.restore();
    job.finish();
}

/// The newest stays, and so does the newest one that can be restored; both are told.
#[test]
fn the_newest_is_damaged() {
    let mut job = job_with_three_chains();
    job.kill();
    let newest = image(&job.store(), 8);
    let size = fs::metadata(&newest).expect("the image").len();
    fs::File::options().write(true).open(&newest).and_then(|file| file.set_len(size / 2)).expect("truncated");
    let pruned = run(job.cr("prune").args(["--keep-last", "1", "--json"]));
    assert_eq!((numbers(&pruned.json()["kept"]), ids(&job.store())), (vec![7, 8], vec![7, 8]), "{pruned}");
    assert!(fate(&pruned, "kept", 8)["problem"].to_string().contains("damaged"), "{pruned}");
    assert_eq!(fate(&pruned, "kept", 7)["reasons"], serde_json::json!(["newest_intact", "last"]));
    let told = run(job.cr("prune").args(["--keep-last", "1"]));
    assert!(told.code == Some(0) && told.stderr.contains("00000008.cr is damaged"), "{told}");
    job.restore_with(&["--id", "7"]);
    job.advance(2);
    job.finish();
}

#[test]
fn refused() {
    let mut job = Job::start("writer", &GUEST);
    job.checkpoint();
    job.checkpoint();
    run(&mut job.cr("prune")).refuses(2, &["--keep-last", "--keep-bytes"]);
    run(job.cr("prune").args(["--dry-run"])).refuses(2, &["--keep-last"]);
    run(job.cr("prune").args(["--keep-last", "0"])).refuses(2, &["--keep-last"]);
    run(job.cr("prune").args(["--keep-bytes", "1X"])).refuses(2, &["--keep-bytes"]);
    run(&mut prune(&job.dir(), &["--keep-last", "1"])).refuses(122, &["is not a checkpoint store"]);
    // Somebody writes to it who is no controller: a checkpoint without one, say.
    let store = cr::store::Store::open_existing(&job.store(), cr::object::KINDS).expect("the store");
    let lock = store.lock().expect("the lock");
    let pid = std::process::id().to_string();
    run(job.cr("prune").args(["--keep-last", "1"])).refuses(122, &["in use", &pid]);
    run(job.cr("prune").args(["--keep-last", "1", "--dry-run"])).expect(0);
    drop(lock);
    // What is under a wrong name is not worthless.
    fs::copy(image(&job.store(), 2), image(&job.store(), 5)).expect("a copy under another name");
    run(job.cr("prune").args(["--keep-last", "1"])).refuses(122, &["wrong name"]);
    assert_eq!(ids(&job.store()), [1, 2, 5]);
    job.finish();
}
