//! A checkpoint of some processes of a job: which they are, and what of theirs leads to those that are left out.
//!
//! What could not be restored for want of the others is no reason to take no checkpoint: it is noted, and the restore refuses.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::checkpoint::Job;
use crate::checkpoint::preflight::shared;
use crate::error::{Error, Refusal, Result};
use crate::family::{Family, Only, Relative};
use crate::object::omitted::{Missing, Omitted, Process};
use crate::procfs::{self, Vma};
use crate::remote::Frozen;
use crate::sys::fd::{self, Shared};

/// What is known of the job that a part is taken of.
#[derive(Debug)]
pub struct Part {
    /// The root of the whole job.
    whole: i32,
    /// What stands against a checkpoint of the whole job: process and place. None: nobody has looked yet.
    hindrances: Option<Vec<(i32, String)>>,
    left_out: Vec<Process>,
    missing: Vec<Missing>,
}

/// The processes that are to be taken, parents before their children, of those that the job consists of.
///
/// # Errors
/// [`Error::NotAllowed`] for one that is not of the job, or has ended.
pub fn choose(root: i32, only: &Only, job: &[Relative]) -> Result<Vec<i32>> {
    for &pid in &only.pids {
        let not_allowed = |why: String| {
            let todo = format!("choose among pid {root} and its descendants (ps --forest)");
            Err(Error::NotAllowed { pid, why, todo })
        };
        match job.iter().find(|r| r.pid == pid) {
            None => return not_allowed(format!("it is no process of the job of pid {root}")),
            Some(r) if r.zombie => return not_allowed("it has ended already (a zombie)".to_owned()),
            Some(_) => {}
        }
    }
    let parent_of = |pid: i32| job.iter().find(|r| r.pid == pid).map(|r| r.ppid);
    let has_chosen_ancestor =
        |pid: i32| std::iter::successors(parent_of(pid), |p| parent_of(*p)).any(|p| only.pids.contains(&p));
    let chosen = job.iter().map(|r| r.pid).filter(|pid| only.pids.contains(pid));
    Ok(chosen.filter(|pid| only.single || !has_chosen_ancestor(*pid)).collect())
}

impl Part {
    /// A part of the job of that root.
    pub fn of(whole: i32) -> Self {
        Self { whole, hindrances: None, left_out: Vec::new(), missing: Vec::new() }
    }

    /// Forgets what an earlier checkpoint found.
    pub fn begin(&mut self) {
        *self = Self::of(self.whole);
    }

    /// Gives those refusals back that stand against a checkpoint of the whole job, too. The others are noted.
    pub fn judge(&mut self, mut refusals: Vec<Refusal>) -> Vec<Refusal> {
        if refusals.is_empty() {
            return refusals;
        }
        if self.hindrances.is_none() {
            // Where not all of it may be looked at, nobody can tell.
            let Ok(all) = Job::open(self.whole).and_then(|mut job| job.hindrances()) else { return refusals };
            self.hindrances = Some(all.into_iter().map(|r| (r.pid, r.place)).collect());
        }
        let known = self.hindrances.as_deref().unwrap_or_default();
        let stands_anyway = |r: &Refusal| known.iter().any(|(pid, place)| (*pid, place) == (r.pid, &r.place));
        let noted: Vec<Refusal> = refusals.extract_if(.., |r| !stands_anyway(r)).collect();
        for refusal in noted {
            self.note(refusal.into());
        }
        refusals
    }

    /// Notes who is left out, and how those that stand still hang together with them.
    pub fn look(&mut self, frozen: &Frozen, vmas: &[(i32, Arc<Vec<Vma>>)]) {
        let whole = Family { root: self.whole, reaper: None, only: None };
        let is_taken = |pid: i32| frozen.processes().iter().any(|p| p.pid == pid);
        let mut others = whole.members().unwrap_or_default();
        others.retain(|r| !r.zombie && !is_taken(r.pid));
        for other in &others {
            let name = procfs::text(&format!("/proc/{}/comm", other.pid)).unwrap_or_default();
            self.left_out.push(Process { pid: other.pid, name: name.trim_end().to_owned() });
        }
        let is_left_out = |pid: i32| others.iter().any(|r| r.pid == pid);
        for process in frozen.processes().iter().filter(|p| p.pid != frozen.root() && is_left_out(p.ppid)) {
            self.note_process(process.pid, &format!("has the parent {}", procfs::who(process.ppid)));
        }
        for child in others.iter().filter(|r| is_taken(r.ppid)) {
            self.note_process(child.ppid, &format!("has the child {}", procfs::who(child.pid)));
        }
        for (pid, other) in frozen.processes().iter().flat_map(|p| others.iter().map(|r| (p.pid, r.pid))) {
            for what in [Shared::Memory, Shared::Files, Shared::Directories, Shared::Handlers] {
                if fd::shares(pid, other, what).unwrap_or(false) {
                    self.note_process(pid, &format!("shares {} with {}", shared(what), procfs::who(other)));
                }
            }
        }
        self.look_for_memory(vmas, frozen, &others);
    }

    /// Notes memory objects, and files that are written through shared mappings, that others have too.
    fn look_for_memory(&mut self, vmas: &[(i32, Arc<Vec<Vma>>)], frozen: &Frozen, others: &[Relative]) {
        let mut places: HashMap<(u64, u64), Vec<(i32, String)>> = HashMap::new();
        for (pid, vma) in vmas.iter().flat_map(|(pid, all)| all.iter().map(move |v| (*pid, v))) {
            if vma.shared && (vma.has("mw") || vma.name.ends_with(" (deleted)")) {
                places.entry(key(vma)).or_default().push((pid, format!("{:#x}", vma.start)));
            }
        }
        for pid in frozen.processes().iter().map(|p| p.pid) {
            for (number, key) in nameless_files(pid) {
                places.entry(key).or_default().push((pid, format!("fd {number}")));
            }
        }
        if places.is_empty() {
            return;
        }
        for other in others.iter().map(|r| r.pid) {
            let mapped = procfs::maps(other).unwrap_or_default().into_iter().filter(|v| v.shared && v.inode != 0);
            let mapped = mapped.map(|v| (format!("has mapped at {:#x}", v.start), key(&v)));
            let opened = nameless_files(other).into_iter().map(|(fd, key)| (format!("has open as fd {fd}"), key));
            for (how, key) in mapped.chain(opened) {
                for (pid, place) in places.get(&key).into_iter().flatten() {
                    let why = format!("is shared memory that {}, which is left out, {how}", procfs::who(other));
                    // One of its places says enough.
                    if !self.missing.iter().any(|m| (m.pid, &m.place) == (*pid, place)) {
                        self.missing.push(Missing { pid: *pid, place: place.clone(), why });
                    }
                }
            }
        }
    }

    /// Hands over what was noted.
    pub fn take(&mut self) -> Omitted {
        let (processes, missing) = (std::mem::take(&mut self.left_out), std::mem::take(&mut self.missing));
        Omitted { memory: Vec::new(), processes, missing }
    }

    fn note_process(&mut self, pid: i32, why: &str) {
        self.note(Missing { pid, place: "the process".to_owned(), why: format!("{why}, which is left out") });
    }

    fn note(&mut self, missing: Missing) {
        // Of the process itself there may be much to say; of a descriptor the newest word counts.
        let replaces = |m: &Missing| match missing.place.as_str() {
            "the process" => *m == missing,
            place => (m.pid, m.place.as_str()) == (missing.pid, place),
        };
        self.missing.retain(|m| !replaces(m));
        self.missing.push(missing);
    }
}

fn key(vma: &Vma) -> (u64, u64) {
    (libc::makedev(vma.dev.0, vma.dev.1), vma.inode)
}

/// Files of a process that have no name: number, and device and inode.
fn nameless_files(pid: i32) -> Vec<(i32, (u64, u64))> {
    let mut found = Vec::new();
    for number in procfs::descriptors(pid).unwrap_or_default() {
        let Ok(link) = procfs::link(pid, &format!("fd/{number}")) else { continue };
        let link = link.to_string_lossy();
        if (link.starts_with("/memfd:") || link.ends_with(" (deleted)"))
            && let Ok(meta) = std::fs::metadata(procfs::fd_path(pid, number))
        {
            found.push((number, (meta.dev(), meta.ino())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_and_single_processes_are_chosen() {
        let relative = |pid, ppid, zombie| Relative { pid, ppid, zombie };
        let job = [relative(10, 1, false), relative(30, 10, false), relative(20, 30, false), relative(40, 10, true)];
        let choose = |pids: &[i32], single| choose(10, &Only { pids: pids.to_vec(), single }, &job);
        assert_eq!(choose(&[20, 30], false).unwrap(), [30]);
        assert_eq!(choose(&[20, 30], true).unwrap(), [30, 20]);
        assert_eq!(choose(&[20, 20], false).unwrap(), [20]);
        for (pid, word) in [(50, "no process of the job of pid 10"), (40, "ended")] {
            let error = choose(&[pid], false).unwrap_err();
            assert!(error.exit_code() == 121 && error.to_string().contains(word), "{error}");
        }
    }
}
