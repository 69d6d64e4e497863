//! What one record says of another's: processes, threads, and places in lists.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::object::lineage::{self, Ancestry};
use crate::recorded::Records;

/// More than any CPU's extended state.
const MOST_XSTATE: u32 = 1 << 20;

/// What of the records refers to what is not there, in words that complete "PATH is damaged: …".
pub(super) fn check(records: &Records) -> Result<(), String> {
    check_processes(records)?;
    let threads = check_threads(records)?;
    check_per_process(records)?;
    check_per_thread(records, &threads)?;
    check_files(records)?;
    lineage::plan(&Ancestry::of_saved(&records.process, &records.zombies)).map(drop).map_err(|lost| {
        format!("nothing could lead its process {} into the session {} that it is in", lost.pid, lost.session)
    })
}

/// Each process once, and after its parent: so no line of ancestors is a ring.
fn check_processes(records: &Records) -> Result<(), String> {
    let living = records.process.iter().map(|p| (p.pid, p.ppid, p.sharing.any()));
    let all: Vec<(i32, i32, bool)> = living.chain(records.zombies.iter().map(|z| (z.pid, z.ppid, false))).collect();
    let pids: HashSet<i32> = all.iter().map(|(pid, ..)| *pid).collect();
    if records.process.is_empty() {
        return Err("it is of no process".to_owned());
    }
    let mut seen = HashSet::new();
    for (pid, ppid, shares) in all {
        if pid <= 0 || seen.contains(&pid) {
            return Err(format!("it has a process {pid}, which is no pid or there twice"));
        }
        if pids.contains(&ppid) && !seen.contains(&ppid) {
            return Err(format!("its process {pid} comes before its parent {ppid}"));
        }
        if shares && !seen.contains(&ppid) {
            return Err(format!("its process {pid} shares what its parent {ppid} has, which is not there"));
        }
        seen.insert(pid);
    }
    Ok(())
}

/// The numbers of all threads, by process; a main thread that has ended is one of them.
fn check_threads(records: &Records) -> Result<HashMap<i32, BTreeSet<i32>>, String> {
    let (mut all, mut seen) = (HashMap::new(), HashSet::new());
    for process in &records.threads {
        let pid = process.pid;
        let mut own = BTreeSet::new();
        let has_main = process.all.first().is_some_and(|t| t.tid == pid);
        if process.all.is_empty() || has_main == process.head.is_some() {
            return Err(format!("its record `threads` lacks the main thread of pid {pid}"));
        }
        for thread in &process.all {
            if thread.tid <= 0 || !seen.insert(thread.tid) {
                return Err(format!(
                    "its record `threads` has a thread {}, which is no number or there twice",
                    thread.tid
                ));
            }
            if thread.xstate_len > MOST_XSTATE || thread.xstate.len() > thread.xstate_len as usize {
                return Err(format!("the extended state of its thread {} is {} bytes", thread.tid, thread.xstate_len));
            }
            own.insert(thread.tid);
        }
        own.extend(process.head.iter().map(|_| pid));
        all.insert(pid, own);
    }
    Ok(all)
}

/// Records of which each living process has one, and nobody else.
fn check_per_process(records: &Records) -> Result<(), String> {
    let living: BTreeSet<i32> = records.process.iter().map(|p| p.pid).collect();
    let with_memory = records.process.iter().filter(|p| !p.sharing.memory).map(|p| p.pid).collect();
    each("threads", records.threads.iter().map(|r| r.pid), &living)?;
    each("mappings", records.mappings.iter().map(|r| r.pid), &with_memory)?;
    each("signals", records.signals.iter().map(|r| r.pid), &living)?;
    each("timers", records.timers.iter().map(|r| r.pid), &living)?;
    each("credentials", records.credentials.iter().map(|r| r.pid), &living)?;
    each("scheduling", records.scheduling.iter().map(|r| r.pid), &living)?;
    each("clocks", records.clocks.iter().map(|r| r.pid), &living)
}

fn each(record: &str, found: impl Iterator<Item = i32>, wanted: &BTreeSet<i32>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for pid in found {
        if !wanted.contains(&pid) || !seen.insert(pid) {
            return Err(format!("its record `{record}` speaks of pid {pid}, which is no such process or there twice"));
        }
    }
    match wanted.difference(&seen).next() {
        None => Ok(()),
        Some(pid) => Err(format!("its record `{record}` has nothing of pid {pid}")),
    }
}

fn check_per_thread(records: &Records, threads: &HashMap<i32, BTreeSet<i32>>) -> Result<(), String> {
    let known = |record: &str, pid: i32, tid: i32| {
        let is_there = threads.get(&pid).is_some_and(|own| own.contains(&tid));
        let what = || format!("its record `{record}` speaks of thread {tid} of pid {pid}, which is not there");
        if is_there { Ok(()) } else { Err(what()) }
    };
    for of in &records.signals {
        of.threads.iter().try_for_each(|t| known("signals", of.pid, t.tid))?;
    }
    for of in &records.credentials {
        of.threads.iter().try_for_each(|t| known("credentials", of.pid, t.tid))?;
    }
    for of in &records.scheduling {
        of.threads.iter().try_for_each(|t| known("scheduling", of.pid, t.tid))?;
    }
    for thread in &records.seccomp.threads {
        known("seccomp", thread.pid, thread.tid)?;
        if thread.chain.iter().any(|filter| *filter as usize >= records.seccomp.filters.len()) {
            return Err(format!("its thread {} is under a seccomp filter that it does not have", thread.tid));
        }
    }
    let ended: HashSet<i32> = records.zombies.iter().map(|z| z.pid).collect();
    for member in &records.cgroups.members {
        if !ended.contains(&member.pid) {
            known("cgroups", member.pid, member.tid)?;
        }
    }
    Ok(())
}

fn check_files(records: &Records) -> Result<(), String> {
    let files = &records.files;
    files.validate().map_err(|why| format!("its record `files` {why}"))?;
    let living: HashSet<i32> = records.process.iter().map(|p| p.pid).collect();
    let mut seen = HashSet::new();
    for pid in files.tables.iter().flat_map(|table| &table.pids) {
        if !living.contains(pid) || !seen.insert(*pid) {
            return Err(format!("its record `files` has a table of pid {pid}, which is no process or has two"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_one_and_nobody_else() {
        let wanted = BTreeSet::from([1, 2]);
        each("x", [2, 1].into_iter(), &wanted).unwrap();
        for bad in [&[1][..], &[1, 2, 3], &[1, 2, 2]] {
            each("x", bad.iter().copied(), &wanted).unwrap_err();
        }
    }
}
