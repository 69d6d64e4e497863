//! System V shared memory, semaphores and message queues. See `tests/guests/sysv.c`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cr_tests::{Job, Pace, cr, guest, run, wait_until};

/// The objects of a namespace are everybody's: one job at a time. What a killed guest leaves is removed.
struct Namespace {
    _alone: MutexGuard<'static, ()>,
    before: Vec<(char, String)>,
}

fn alone() -> Namespace {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Namespace { _alone: alone, before: objects() }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for (letter, id) in objects().into_iter().filter(|o| !self.before.contains(o)) {
            remove(letter, &id);
        }
    }
}

/// Every object here, by the letter of ipcrm(1) and its id.
fn objects() -> Vec<(char, String)> {
    let list = |(kind, letter): (&str, char)| {
        let text = std::fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        let ids = text.lines().skip(1).filter_map(|l| Some((letter, l.split_whitespace().nth(1)?.to_owned())));
        ids.collect::<Vec<_>>()
    };
    [("shm", 'm'), ("sem", 's'), ("msg", 'q')].into_iter().flat_map(list).collect()
}

fn remove(letter: char, id: &str) {
    let _ = Command::new("ipcrm").arg(format!("-{letter}")).arg(id).stderr(Stdio::null()).status();
}

fn expect_nothing_left(namespace: &Namespace) {
    let left: Vec<_> = objects().into_iter().filter(|o| !namespace.before.contains(o)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn full() {
    let namespace = alone();
    cr_tests::full_and_back("sysv", &[], Pace::default());
    expect_nothing_left(&namespace);
}

#[test]
fn chain() {
    let namespace = alone();
    cr_tests::chain_and_back("sysv", &[], Pace::default());
    expect_nothing_left(&namespace);
}

/// As on another machine, or after a reboot.
#[test]
fn objects_that_are_gone_are_made_again() {
    let namespace = alone();
    let mut job = Job::start_resident("sysv", &[]);
    job.checkpoint();
    for _ in 0..2 {
        job.advance(10);
        job.checkpoint();
        job.advance(5);
        job.kill();
        objects().iter().filter(|o| !namespace.before.contains(o)).for_each(|(letter, id)| remove(*letter, id));
        job.restore();
        job.advance(10);
    }
    job.finish();
    expect_nothing_left(&namespace);
}

/// A restore that fails at the last moment removes what it has made.
#[test]
fn a_failed_restore_leaves_no_objects() {
    let namespace = alone();
    let mut job = Job::start("sysv", &[]);
    job.checkpoint();
    job.kill();
    let gone = objects();
    gone.iter().filter(|o| !namespace.before.contains(o)).for_each(|(letter, id)| remove(*letter, id));
    let failed = run(job.cr("restore").args(["--detach"]).env("CR_FAULT", "restore.threads:error"));
    assert!(failed.code != Some(0), "{failed}");
    expect_nothing_left(&namespace);
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
    let _namespace = alone();
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

#[test]
fn what_somebody_else_has_now_is_named() {
    let _namespace = alone();
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
    let _namespace = alone();
    let mut job = Job::start("sysv", &[]);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-bpf,-sys_admin,-perfmon"]).arg(cr().get_program());
    command.arg("checkpoint").arg(job.pid().to_string()).arg("--store").arg(job.store());
    let refused = run(&mut command);
    assert!(refused.code == Some(120) && refused.said().contains("SEM_UNDO"), "{refused}");
    job.advance(5);
    job.finish();
}
