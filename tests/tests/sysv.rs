//! System V shared memory, semaphores and message queues. See `tests/guests/sysv.c`.

use std::path::PathBuf;
use std::process::{Child, Command};

use cr_tests::{Job, Pace, cr, guest, run, wait_until};
use nix::sched::{CloneFlags, unshare};

/// The objects of a namespace are everybody's. Whatever this thread starts from here on has one of its own, which goes with what
/// a killed guest leaves: no other test, and nobody else on this machine, is in the way or harmed.
fn fresh_namespace() {
    unshare(CloneFlags::CLONE_NEWIPC).expect("an ipc namespace");
}

/// Every object here, by the letter of ipcrm(1) and its id.
fn objects() -> Vec<(char, String)> {
    let list = |(kind, letter): (&str, char)| {
        let path = format!("/proc/sysvipc/{kind}");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let ids = text.lines().skip(1).filter_map(|l| Some((letter, l.split_whitespace().nth(1)?.to_owned())));
        ids.collect::<Vec<_>>()
    };
    [("shm", 'm'), ("sem", 's'), ("msg", 'q')].into_iter().flat_map(list).collect()
}

fn remove(letter: char, id: &str) {
    let removed = Command::new("ipcrm").arg(format!("-{letter}")).arg(id).status().expect("ipcrm(1)");
    assert!(removed.success(), "ipcrm -{letter} {id}");
}

fn remove_all() {
    for (letter, id) in objects() {
        remove(letter, &id);
    }
}

#[track_caller]
fn expect_nothing_left() {
    let left = objects();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn full() {
    fresh_namespace();
    cr_tests::full_and_back("sysv", &[], Pace::default());
    expect_nothing_left();
}

#[test]
fn chain() {
    fresh_namespace();
    cr_tests::chain_and_back("sysv", &[], Pace::default());
    expect_nothing_left();
}

/// As after a reboot, or on another machine: the namespace is another one too.
#[test]
fn a_namespace_without_objects_gets_them() {
    fresh_namespace();
    let mut job = Job::start("sysv", &[]);
    job.checkpoint();
    job.kill();
    for _ in 0..2 {
        fresh_namespace();
        job.restore();
        job.advance(5);
        job.kill();
        // What this restore has made is taken for the job's, though no checkpoint was taken here.
        job.restore();
        job.advance(5);
        job.kill();
    }
    job.restore();
    job.finish();
    expect_nothing_left();
}

#[test]
fn objects_that_are_gone_are_made_again() {
    fresh_namespace();
    let mut job = Job::start_resident("sysv", &[]);
    job.checkpoint();
    for _ in 0..2 {
        job.advance(10);
        job.checkpoint();
        job.advance(5);
        job.kill();
        remove_all();
        job.restore();
        job.advance(10);
    }
    job.finish();
    expect_nothing_left();
}

/// A restore that fails at the last moment removes what it has made.
#[test]
fn a_failed_restore_leaves_no_objects() {
    fresh_namespace();
    let mut job = Job::start("sysv", &[]);
    job.checkpoint();
    job.kill();
    remove_all();
    let failed = run(job.cr("restore").args(["--detach"]).env("CR_FAULT", "restore.threads:error"));
    assert!(failed.code != Some(0), "{failed}");
    expect_nothing_left();
    job.restore();
    job.advance(5);
    job.finish();
}

/// Somebody who has nothing to do with the job.
struct Somebody {
    process: Child,
    dir: PathBuf,
}

impl Somebody {
    fn begin(job: &Job, args: &[&str]) -> Self {
        let dir = job.folder().join("somebody");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).expect("a folder");
        let process = Command::new("setsid").arg(guest("sysv")).arg(&dir).args(args).spawn().expect("the guest starts");
        let somebody = Self { process, dir };
        wait_until("somebody else is ready", || {
            let result = std::fs::read_link(somebody.dir.join("result"));
            assert!(result.is_err(), "{result:?}");
            somebody.dir.join("ready").is_symlink()
        });
        somebody
    }

    fn pid(&self) -> String {
        format!("pid {}", self.process.id())
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_somebody_else_uses_too_is_refused() {
    fresh_namespace();
    let job = Job::start("sysv", &[]);
    for (option, object) in [("--hold", "say.shm.keyed"), ("--use", "say.msg.quiet")] {
        let id = job.read_link(object).expect("the guest says its ids");
        let somebody = Somebody::begin(&job, &[option, &id]);
        for refused in [run(&mut job.checkpoint_command()), run(cr().args(["check", &job.pid().to_string()]))] {
            assert!(refused.code == Some(120) && refused.said().contains(&somebody.pid()), "{object}: {refused}");
            assert!(refused.said().contains(&id), "{object}: {refused}");
        }
        drop(somebody);
        job.advance(5);
    }
    // Who has ended uses nothing any more.
    job.checkpoint();
}

/// Objects that nobody has used yet do not say whose they are: with somebody else about they are nobody's.
#[test]
fn what_a_job_beside_has_made_is_left_alone() {
    fresh_namespace();
    let mut job = Job::start("sysv", &[]);
    let taken = {
        let somebody = Somebody::begin(&job, &["--make"]);
        let taken = [('s', "say.sem.made"), ('q', "say.msg.made")].map(|(letter, name)| {
            let id = std::fs::read_link(somebody.dir.join(name)).expect("an id");
            (letter, id.to_string_lossy().into_owned())
        });
        assert!(taken.iter().all(|object| objects().contains(object)), "{taken:?} in {:?}", objects());
        let said = job.checkpoint().widened.join("; ");
        let told = |(_, id): &(char, String)| said.contains(&format!(" {id}")) && said.contains("left out");
        assert!(taken.iter().all(told) && said.contains(&somebody.pid()), "{taken:?} in {said:?}");
        taken
    };
    job.kill();
    remove_all();
    job.restore();
    job.advance(5);
    let here = objects();
    assert!(taken.iter().all(|object| !here.contains(object)), "{taken:?} were taken for the job's: {here:?}");
    // What can be told is the job's.
    for (letter, name) in [('m', "say.shm.loose"), ('s', "say.sem.keyed"), ('q', "say.msg.quiet")] {
        let own = (letter, job.read_link(name).expect("an id"));
        assert!(here.contains(&own), "{own:?} is not in {here:?}");
    }
    job.kill();
    remove_all();
}

/// What was the job's while nobody else was about stays its own when somebody comes: also where a restore had to make it again.
#[test]
fn what_was_probably_the_jobs_stays_so_when_somebody_comes() {
    fresh_namespace();
    let mut job = Job::start("sysv", &[]);
    let said = job.checkpoint().widened.join("; ");
    assert!(!said.contains("left out"), "{said:?}");
    for _ in 0..2 {
        let made = {
            let somebody = Somebody::begin(&job, &["--make"]);
            job.advance(5);
            let said = job.checkpoint().widened.join("; ");
            assert!(said.contains("left out"), "{said:?}");
            std::fs::read_link(somebody.dir.join("say.msg.made")).expect("an id").to_string_lossy().into_owned()
        };
        job.kill();
        // As after a reboot.
        fresh_namespace();
        job.restore();
        job.advance(5);
        let here = objects();
        for (letter, name) in [('s', "say.sem.fresh"), ('q', "say.msg.fresh"), ('q', "say.msg.left")] {
            let own = (letter, job.read_link(name).expect("an id"));
            assert!(here.contains(&own), "{own:?} is not in {here:?}");
        }
        assert!(!here.contains(&('q', made.clone())), "{made} was taken for the job's: {here:?}");
    }
    job.finish();
    expect_nothing_left();
}

/// The number of a process of the job that has ended, used again by somebody else who has ended too.
#[test]
fn a_number_that_was_used_again_is_not_the_jobs() {
    fresh_namespace();
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & echo $!; wait; exec sleep 1000"]);
    let mut job = Job::start_foreign("sh", &mut command);
    job.wait("its child's number", |job| !job.stdout().is_empty());
    let worker = job.stdout().trim().to_owned();
    job.attach(&[]);
    job.wait_for_controller();
    job.checkpoint();
    assert!(Command::new("kill").args(["-KILL", &worker]).status().expect("kill(1)").success());
    // Times of System V objects are whole seconds.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let somebody = Somebody::begin(&job, &["--reuse", &worker]);
    let reused = std::fs::read_link(somebody.dir.join("say.msg.reused")).expect("an id");
    let reused = ('q', reused.to_string_lossy().into_owned());
    assert!(objects().contains(&reused), "{reused:?} in {:?}", objects());
    let said = job.checkpoint().widened.join("; ");
    job.kill();
    drop(somebody);
    fresh_namespace();
    job.restore_detached();
    let here = objects();
    assert!(here.is_empty(), "{reused:?} was taken for the job's: {here:?}");
    assert!(said.contains(&format!("{} left out", reused.1)), "{said:?}");
}

#[test]
fn what_somebody_else_has_now_is_named() {
    fresh_namespace();
    let mut job = Job::start("sysv", &[]);
    job.checkpoint();
    job.kill();
    let id = job.read_link("say.shm.keyed").expect("an id");
    let restore = |job: &Job| run(job.cr("restore").args(["--detach"]));
    {
        let somebody = Somebody::begin(&job, &["--hold", &id]);
        let refused = restore(&job);
        assert!(refused.code == Some(123) && refused.said().contains(&somebody.pid()), "{refused}");
    }
    remove('m', &id);
    let key = job.read_link("say.key").expect("a key");
    {
        let _somebody = Somebody::begin(&job, &["--take", &key]);
        let refused = restore(&job);
        assert!(refused.code == Some(123) && refused.said().contains("key"), "{refused}");
        let taken = std::fs::read_link(job.folder().join("somebody/say.shm.taken")).expect("an id");
        remove('m', &taken.to_string_lossy());
    }
    job.restore();
    job.advance(5);
    job.finish();
}

/// What is undone in semaphores is only seen by eBPF programs: without them it is not known, and that is said.
#[test]
fn semaphores_without_ebpf_are_refused() {
    fresh_namespace();
    let mut job = Job::start("sysv", &[]);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-bpf,-sys_admin,-perfmon"]).arg(cr().get_program());
    command.arg("checkpoint").arg(job.pid().to_string()).arg("--store").arg(job.store());
    let refused = run(&mut command);
    assert!(refused.code == Some(120) && refused.said().contains("SEM_UNDO"), "{refused}");
    job.advance(5);
    job.finish();
}
