//! What `/proc` shows of the processes of a stopped job. As long as nothing changed on which that depends ([`Outward`], which one pass
//! of an eBPF iterator shows of a whole job), it is what it was the last time, and is not read.
//!
//! `CR_AUDIT=state` has each checkpoint read it besides, and fail where that makes a difference.

use crate::checkpoint::gone;
use crate::checkpoint::parallel::on_all_cpus;
use crate::checkpoint::watch::Look;
use crate::error::{Error, Result};
use crate::object::process;
use crate::procfs::Status;
use crate::remote::freeze::Stopped;
use crate::track::iters::{OUTWARD_LINES, Outward};

/// What is shown of a process that stands still.
#[derive(Debug)]
pub struct Shown {
    /// Of the process.
    pub process: process::Shown,
    /// Of its threads, the main one first.
    pub threads: Vec<Status>,
    /// None: it changes by itself, or nobody knows.
    evidence: Option<Outward>,
}

/// What is shown of processes, in their order; `known` is what was shown of each the last time.
///
/// # Errors
/// When a process is gone, and (only where that is audited) when something changed unnoticed.
pub fn look(processes: &[Stopped], known: Vec<Option<Shown>>, look: &Look) -> Result<Vec<Shown>> {
    let now = |p: &Stopped| {
        // Whether the parent was told of a stop changes by itself.
        let is_steady = p.stop_signal().is_none() && !p.has_lost_its_head();
        is_steady.then(|| look.outward(p.pid, p.ppid, &p.tids()))?
    };
    let evidence: Vec<Option<Outward>> = processes.iter().map(now).collect();
    let is_still = |(shown, now): &(Option<Shown>, &Option<Outward>)| {
        now.is_some() && shown.as_ref().is_some_and(|shown| shown.evidence == **now)
    };
    let mut all: Vec<Option<Shown>> =
        known.into_iter().zip(&evidence).map(|pair| if is_still(&pair) { pair.0 } else { None }).collect();
    let unknown: Vec<&Stopped> =
        processes.iter().zip(&all).filter(|(_, shown)| shown.is_none()).map(|(p, _)| p).collect();
    let mut read = on_all_cpus(unknown, Shown::read).into_iter().collect::<Result<Vec<_>>>()?.into_iter();
    if crate::object::is_audited("state") {
        processes.iter().zip(&all).try_for_each(|(p, shown)| shown.as_ref().map_or(Ok(()), |s| s.audit(p)))?;
    }
    for (place, evidence) in all.iter_mut().zip(evidence) {
        if place.is_none() {
            *place = read.next().map(|shown| Shown { evidence, ..shown });
        }
    }
    Ok(all.into_iter().flatten().collect())
}

impl Shown {
    fn read(stopped: &Stopped) -> Result<Self> {
        let pid = stopped.pid;
        let threads = stopped.tids().iter().map(|tid| Status::read(pid, *tid)).collect::<std::io::Result<_>>();
        let threads = threads.map_err(|_| gone(pid, "the collection of its state"))?;
        Ok(Self { process: process::Shown::read(pid)?, threads, evidence: None })
    }

    fn audit(&self, stopped: &Stopped) -> Result<()> {
        let now = Self::read(stopped)?;
        let differs = |(a, b): (&Status, &Status)| {
            OUTWARD_LINES.into_iter().chain(["TracerPid"]).find(|key| a.get(key) != b.get(key))
        };
        let status = self.threads.iter().zip(&now.threads).find_map(differs);
        let what = status.map(str::to_owned).or_else(|| self.process.difference(&now.process));
        let Some(what) = what.or_else(|| (self.threads.len() != now.threads.len()).then(|| "threads".to_owned()))
        else {
            return Ok(());
        };
        let why = std::io::Error::other("it changed unnoticed (CR_AUDIT)");
        Err(Error::system(format!("auditing {what} of pid {}", stopped.pid), why))
    }
}
