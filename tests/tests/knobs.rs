//! Credentials of single threads, what holds for all memory of a process, control groups, and memory that a child does not get.

use std::path::{Path, PathBuf};

use cr_tests::{Job, Pace, chain_and_back, cr, full_and_back, note_skip, run};

#[test]
fn full_threads_with_credentials_of_their_own() {
    full_and_back("knobs", &["--threads"], Pace::default());
}

#[test]
fn chain_threads_with_credentials_of_their_own() {
    chain_and_back("knobs", &["--threads"], Pace::default());
}

#[test]
fn full_all_memory() {
    full_and_back("knobs", &["--mdwe", "--merge", "--thp", "--lock", "1"], Pace::default());
}

#[test]
fn chain_all_memory() {
    chain_and_back("knobs", &["--mdwe", "--merge", "--thp", "--lock", "2"], Pace::default());
}

#[test]
fn full_memory_that_a_child_does_not_get() {
    full_and_back("knobs", &["--fork"], Pace::default());
}

#[test]
fn chain_memory_that_a_child_does_not_get() {
    chain_and_back("knobs", &["--fork", "--mdwe"], Pace::default());
}

// ------------------------------------------------------------------------------------------------------ control groups

/// Groups that a guest made, taken away at the end.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn of(job: &Job) -> Self {
        let said = (0..9).map_while(|n| job.read_link(&format!("say.cgroup.{n}")));
        Self(said.map(PathBuf::from).collect())
    }

    fn remove(&mut self) {
        let gone = |at: &Path| {
            (0..100).any(|_| {
                let removed = std::fs::remove_dir(at).is_ok() || !at.exists();
                if !removed {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                removed
            })
        };
        for group in self.0.drain(..) {
            gone(&group.join("thread"));
            assert!(gone(&group), "{} cannot be removed", group.display());
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.remove();
        }
    }
}

#[test]
fn cgroups_are_entered_again() {
    let mut job = Job::start("knobs", &["--cgroups", "--threads"]);
    let _groups = Groups::of(&job);
    job.advance(3);
    job.checkpoint();
    job.advance(3);
    job.kill();
    job.restore();
    job.advance(3);
    job.checkpoint();
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
}

#[test]
fn a_cgroup_that_is_gone_is_named() {
    let mut job = Job::start("knobs", &["--cgroups"]);
    let mut groups = Groups::of(&job);
    if groups.0.is_empty() {
        return note_skip("knobs: no cgroups");
    }
    job.checkpoint();
    job.kill();
    groups.remove();
    let finished = job.try_restore(&[]);
    finished.expect(0);
    assert!(finished.stderr.contains("is not here") && finished.stderr.contains("cr-guest-"), "{finished}");
    job.advance(3);
    job.kill();
}

#[test]
fn a_frozen_cgroup_is_refused_by_name() {
    let mut job = Job::start("knobs", &["--cgroups"]);
    let groups = Groups::of(&job);
    let file = |name: &str| groups.0.iter().map(|g| g.join(name)).find(|f| f.exists());
    let freezers = [(file("cgroup.freeze"), "1", "0"), (file("freezer.state"), "FROZEN", "THAWED")];
    for (at, freeze, thaw) in freezers.iter().filter_map(|(at, f, t)| Some((at.as_ref()?, f, t))) {
        std::fs::write(at, freeze).expect("freezing the group");
        let check = run(cr().args(["check", &job.pid().to_string()]));
        let checkpoint = run(&mut job.checkpoint_command());
        std::fs::write(at, thaw).expect("thawing the group");
        for finished in [check, checkpoint] {
            finished.refuses(120, &["frozen cgroup", "cr-guest-", "thaw it"]);
        }
        job.advance(3);
    }
    job.checkpoint();
    job.finish();
    drop(groups);
}
