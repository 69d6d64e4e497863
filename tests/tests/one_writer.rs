//! Who may write to a store, and who may take checkpoints of a job: two controllers on one store, two stores for one job, readers
//! beside writers. What is allowed is right, and what is not is refused with a sentence; either way nothing is lost.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cr_tests::{Finished, Job, cr, run, wait_until};

const GUEST: [&str; 6] = ["--mib", "4", "--threads", "2", "--rate", "50"];

/// A job under a controller that has taken a full checkpoint.
fn held_job() -> Job {
    let job = Job::start_resident("writer", &GUEST);
    job.checkpoint();
    job.advance(3);
    job
}

fn controller_of(job: &Job) -> String {
    job.controller_pid().expect("a controller").to_string()
}

/// `cr checkpoint` of the job into another store.
fn checkpoint_into(job: &Job, store: &Path) -> Command {
    let mut command = cr();
    command.arg("checkpoint").arg(job.pid().to_string()).arg("--json").arg("--store").arg(store);
    command
}

fn verify(store: &Path) -> Finished {
    let finished = run(cr().args(["verify", "--json", "--store"]).arg(store));
    assert!(finished.json()["ok"] == true, "{finished}");
    finished
}

/// The guest compares every page of what each store holds.
fn expect_right(mut job: Job, others: &[PathBuf]) {
    job.kill();
    for store in others {
        verify(store);
        let restored = run(cr().args(["restore", "--detach", "--json", "--store"]).arg(store)).json();
        assert_eq!(restored["pid"], job.pid());
        job.advance(5);
        job.kill();
    }
    job.verify();
    job.restore();
    job.advance(5);
    job.finish();
}

/// The lock names its holder, whichever command wants to write.
#[test]
fn two_controllers_on_one_store() {
    let job = held_job();
    let other = Job::start("writer", &["--mib", "1"]);
    let pid = controller_of(&job);
    let attach = |of: &Job| {
        run(cr().arg("attach").arg(of.pid().to_string()).args(["--interval", "1h", "--store"]).arg(job.store()))
    };
    attach(&job).refuses(122, &["in use", &pid]);
    attach(&other).refuses(122, &["in use", &pid]);
    // Asked for the wrong job, the controller says which one it has.
    run(&mut checkpoint_into(&other, &job.store())).refuses(122, &[&other.pid().to_string(), &job.pid().to_string()]);
    let restore = run(cr().args(["restore", "--store"]).arg(job.store()));
    restore.refuses(122, &["in use", &pid]);
    assert!(!restore.said().contains("intact"), "an offer where nothing is damaged\n{restore}");
    let line = ["--resume", "--interval", "1h", "--", "true"];
    run(cr().args(["run", "--store"]).arg(job.store()).args(line)).refuses(122, &["in use", &pid]);
    // Nobody was hindered.
    job.advance(3);
    assert_eq!(job.checkpoint().id, 2);
    let mut other = other;
    other.finish();
    expect_right(job, &[]);
}

/// A controller that is killed leaves a lock that nobody holds, and a socket where nobody listens.
#[test]
fn the_writer_has_died() {
    let mut job = held_job();
    job.kill_controller();
    assert!(job.store().join("lock").exists() && job.store().join("control.sock").exists());
    assert_eq!(job.checkpoint().id, 2);
    job.attach(&[]);
    job.wait_for_controller();
    job.advance(3);
    assert_eq!(job.checkpoint().id, 3);
    expect_right(job, &[]);
}

/// A second controller for a job that is held is refused, and leaves no store behind.
#[test]
fn a_held_job_is_attached_to_another_store() {
    let job = held_job();
    let second = job.folder().join("second");
    let finished =
        run(cr().arg("attach").arg(job.pid().to_string()).args(["--interval", "1h", "--store"]).arg(&second));
    finished.refuses(121, &[&job.pid().to_string(), "holds it", &job.store().display().to_string()]);
    assert!(!second.exists(), "a store was made");
    job.advance(3);
    job.checkpoint();
    expect_right(job, &[]);
}

/// Single checkpoints of a held job into other stores: page tables are left to the controller, memory is read, and both chains are
/// right.
#[test]
fn a_held_job_is_checkpointed_into_another_store() {
    let job = held_job();
    let second = job.folder().join("second");
    for round in 1..=3_u64 {
        let taken = run(&mut checkpoint_into(&job, &second)).json();
        assert!(taken["id"] == round && taken["widened"].to_string().contains("another controller"), "{taken}");
        job.advance(4);
        assert_eq!(job.checkpoint().id, round + 1);
        job.advance(4);
    }
    expect_right(job, &[second]);
}

/// Checkpoints of one job into three stores at the same time: each is taken or refused, and those that were taken are right.
#[test]
fn three_stores_at_the_same_time() {
    let job = held_job();
    let stores = ["second", "third"].map(|name| job.folder().join(name));
    let mut taken = [0; 3];
    for _ in 0..4 {
        let mut commands =
            [job.checkpoint_command(), checkpoint_into(&job, &stores[0]), checkpoint_into(&job, &stores[1])];
        let spawn = |command: &mut Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("cr checkpoint")
        };
        let children: Vec<Child> = commands.iter_mut().map(spawn).collect();
        for (child, count) in children.into_iter().zip(&mut taken) {
            let ended = child.wait_with_output().expect("cr checkpoint ends");
            let said = String::from_utf8_lossy(&ended.stderr);
            match ended.status.code() {
                Some(0) => *count += 1,
                Some(120 | 121) => assert!(said.contains("traced by"), "{said}"),
                other => panic!("ended with {other:?}: {said}"),
            }
        }
        job.advance(3);
    }
    assert!(taken.iter().sum::<i32>() >= 4, "hardly any was taken: {taken:?}");
    let used = stores.into_iter().zip(&taken[1..]).filter(|(_, count)| **count > 0).map(|(store, _)| store);
    expect_right(job, &used.collect::<Vec<_>>());
}

/// Whoever reads sees whole checkpoints and no others, while one is written and while old ones go.
#[test]
fn readers_beside_a_writer() {
    let mut job = Job::start_resident("writer", &GUEST);
    job.checkpoint();
    let until = Instant::now() + Duration::from_secs(8);
    let store = job.store();
    let reader = |line: &'static [&'static str], codes: &'static [i32]| {
        let store = store.clone();
        std::thread::spawn(move || {
            let mut rounds = 0;
            while Instant::now() < until {
                let finished = run(cr().args(line).arg("--store").arg(&store));
                assert!(finished.code.is_some_and(|code| codes.contains(&code)), "{finished}");
                rounds += 1;
            }
            rounds
        })
    };
    let core = job.folder().join("core");
    let exporter = {
        let store = store.clone();
        std::thread::spawn(move || {
            let mut rounds = 0;
            while Instant::now() < until {
                run(cr().args(["export", "--store"]).arg(&store).arg("--core").arg(&core)).expect(0);
                std::fs::remove_file(&core).expect("the core file");
                rounds += 1;
            }
            rounds
        })
    };
    let readers = [
        reader(&["list", "--json"], &[0]),
        reader(&["show", "--json"], &[0]),
        reader(&["verify"], &[0]),
        // Whoever restores becomes the writer, and there is one.
        reader(&["restore", "--detach"], &[122]),
        exporter,
    ];
    let mut written = 1;
    while Instant::now() < until {
        written = job.checkpoint().id;
        if written % 4 == 0 {
            run(job.cr("prune").args(["--keep-last", "2"])).expect(0);
        }
    }
    let rounds: Vec<u32> =
        readers.into_iter().map(|reader| reader.join().expect("a reader found something wrong")).collect();
    assert!(rounds.iter().all(|rounds| *rounds >= 2) && written >= 4, "{rounds:?} rounds, {written} checkpoints");
    job.kill_controller();
    wait_until("the store is free", || {
        cr::store::Store::open_existing(&store, cr::object::KINDS).is_ok_and(|s| s.lock().is_ok())
    });
    expect_right(job, &[]);
}
