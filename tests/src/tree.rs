//! The processes of a test's job, however far they have strayed from it.
//!
//! Everything that a test starts has a word in its environment that says whose it is. It is inherited, lies in the process's own
//! memory, and so comes back with a restore: also orphans in sessions of their own are found by it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::LIMIT;

/// The variable that says whose a process is.
pub const MARK: &str = "CR_TEST_JOB";

/// Processes of one job: by pid, when each was started (pids are used again).
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<i32, String>);

impl Tree {
    /// Ends `root`, its descendants and all that carry `mark` with SIGKILL.
    ///
    /// Not one of them notices that another is gone. Whoever's child they are has to wait for them: see
    /// [`Tree::wait_until_gone`].
    #[track_caller]
    pub fn kill(root: i32, mark: &str) -> Self {
        let mut tree = Self::default();
        let start = Instant::now();
        // They are stopped first, parents before their children, until nobody can have forked any more, nor had another go on.
        loop {
            let living = tree.find(root, mark);
            let stands = |tid: i32| Stat::of(tid).is_none_or(|stat| matches!(stat.state, 'T' | 't' | 'Z' | 'X'));
            let running = living.iter().filter(|pid| !threads(**pid).all(stands)).copied().collect::<Vec<_>>();
            if running.is_empty() {
                send(&living, Signal::SIGKILL);
                return tree;
            }
            send(&running, Signal::SIGSTOP);
            assert!(start.elapsed() < LIMIT, "killing the job of pid {root}: time is up");
        }
    }

    /// The living processes of the job now, parents before their children. Zombies are remembered only: their pids must get
    /// free as well.
    pub fn find(&mut self, root: i32, mark: &str) -> Vec<i32> {
        let mark = format!("{MARK}={mark}");
        let marked = |pid: &i32| {
            let environment = |tid: i32| fs::read(format!("/proc/{tid}/environ")).unwrap_or_default();
            let of_thread = |tid: i32| environment(tid).split(|byte| *byte == 0).any(|v| v == mark.as_bytes());
            of_thread(*pid) || Stat::of(*pid).is_some_and(|stat| stat.state == 'Z') && threads(*pid).any(of_thread)
        };
        let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut all: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).filter(marked).collect();
        all.push(root);
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            let children = children(*pid);
            all.extend(children);
            next += 1;
        }
        let mut parents = BTreeMap::new();
        for pid in all {
            let Some(stat) = Stat::of(pid) else { continue };
            let lives = |tid: i32| Stat::of(tid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'));
            // The main thread may have ended before others.
            if lives(pid) || threads(pid).any(lives) {
                parents.insert(pid, stat.parent);
            }
            self.0.entry(pid).or_insert(stat.started);
        }
        let depth = |pid: &i32| std::iter::successors(parents.get(pid), |parent| parents.get(parent)).count();
        let mut living: Vec<i32> = parents.keys().copied().collect();
        living.sort_by_key(depth);
        living
    }

    /// Waits until every pid is free, or another's.
    #[track_caller]
    pub fn wait_until_gone(&self) {
        crate::wait_until("the pids of the killed job are free", || self.is_gone());
    }

    /// Whether every pid is free, or another's.
    pub fn is_gone(&self) -> bool {
        self.0.iter().all(|(pid, started)| Stat::of(*pid).is_none_or(|stat| stat.started != *started))
    }
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), signal); // it may have ended
    }
}

/// The threads of a process.
fn threads(pid: i32) -> impl Iterator<Item = i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok())
}

/// The children of a process, zombies among them.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    state: char,
    parent: i32,
    /// In ticks since the machine started, as text.
    started: String,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        // Numbers 3, 4 and 22 in proc(5).
        let started = (*fields.get(19)?).to_owned();
        Some(Self { state: fields.first()?.chars().next()?, parent: fields.get(1)?.parse().ok()?, started })
    }
}
