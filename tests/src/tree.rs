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
    /// Ends `root`, its descendants and all that carry `mark` with SIGKILL, and waits until none is left to be killed.
    ///
    /// They may still have to be waited for by their parents: see [`Tree::wait_until_gone`].
    #[track_caller]
    pub fn kill(root: i32, mark: &str) -> Self {
        let mut tree = Self::default();
        let start = Instant::now();
        loop {
            // One that was just forked has its parent's mark already, and is found in the next round.
            let living = tree.find(root, mark);
            if living.is_empty() {
                return tree;
            }
            for pid in living {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            assert!(start.elapsed() < LIMIT, "killing the job of pid {root}: time is up");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// The living processes of the job now. Zombies are remembered only: their pids must get free as well.
    pub fn find(&mut self, root: i32, mark: &str) -> Vec<i32> {
        let mark = format!("{MARK}={mark}");
        let marked = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut all: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).filter(marked).collect();
        all.push(root);
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            for child in children(*pid) {
                if !all.contains(&child) {
                    all.push(child);
                }
            }
            next += 1;
        }
        all.retain(|pid| {
            let Some((state, started)) = state(*pid) else { return false };
            self.0.entry(*pid).or_insert(started);
            !matches!(state, 'Z' | 'X')
        });
        all
    }

    /// Waits until every pid is free, or another's.
    #[track_caller]
    pub fn wait_until_gone(&self) {
        crate::wait_until("the pids of the killed job are free", || self.is_gone());
    }

    fn is_gone(&self) -> bool {
        self.0.iter().all(|(pid, started)| state(*pid).is_none_or(|(_, now)| now != *started))
    }
}

/// The children of a process, zombies among them.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// State and start time of a process, as in `/proc/PID/stat`.
fn state(pid: i32) -> Option<(char, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    // Number 22 in proc(5); the state is number 3.
    Some((state, fields.nth(18)?.to_owned()))
}
