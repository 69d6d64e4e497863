//! What stands against a checkpoint, found out before anything is stopped.

use crate::checkpoint::member::Member;
use crate::checkpoint::watch::{Look, Watch};
use crate::checkpoint::{Job, gone, ipc};
use crate::error::{Refusal, Result};
use crate::family;
use crate::object::files::Beyond;
use crate::object::memory::backing::Files;
use crate::object::{self, cgroups, files, lineage, memory, process, seccomp, threads};
use crate::procfs::{self, Status};
use crate::remote::freeze;
use crate::sys::fd;

impl Job {
    /// Everything about the job that could not be restored. Changes nothing.
    ///
    /// # Errors
    /// When the job ended, or may not be examined.
    pub fn preflight(&mut self) -> Result<Vec<Refusal>> {
        let mut all = self.look_again()?;
        for pid in self.members.iter().map(|m| m.pid) {
            let threads = procfs::threads(pid).unwrap_or_default();
            all.extend(threads.into_iter().filter_map(|tid| freeze::stays_in_vfork(pid, tid)));
        }
        Ok(all)
    }

    /// The same without waiting for anybody: for a job that stands still.
    ///
    /// # Errors
    /// As of [`preflight`](Self::preflight).
    pub(super) fn look_again(&mut self) -> Result<Vec<Refusal>> {
        let all = self.hindrances()?;
        Ok(self.judge(all))
    }

    /// Of refusals those that are to be heeded. What a part of a job lacks for want of the rest is only noted.
    pub(super) fn judge(&mut self, refusals: Vec<Refusal>) -> Vec<Refusal> {
        match &mut self.part {
            Some(part) => part.judge(refusals),
            None => refusals,
        }
    }

    pub(super) fn hindrances(&mut self) -> Result<Vec<Refusal>> {
        let relatives = self.relatives().map_err(|_| self.gone("the preflight"))?;
        self.refresh(&relatives)?;
        if let Some(watch) = &mut self.watch {
            self.members.iter().for_each(|m| watch.follow(m.pid));
        }
        let mut all = Vec::new();
        let mut ancestry = lineage::of_now(&relatives).map_err(|_| self.gone("the preflight"))?;
        for own in &mut ancestry {
            own.shares = self.members.iter().any(|m| m.pid == own.pid && m.sharing.any());
        }
        if let Err(lost) = lineage::plan(&ancestry) {
            all.push(lost.into_refusal());
        }
        if let Ok(Some((one, other, what))) = family::strange_sharing(&relatives) {
            let why = format!("shares {} with pid {other}, which is not its parent", shared(what));
            let todo = "checkpoint each of them alone, or have them share with their parent only".to_owned();
            all.push(Refusal { pid: one, place: "the process".to_owned(), why, todo });
        }
        let mut mapped = Files::default();
        let look = self.watch.as_ref().map(Watch::look).unwrap_or_default();
        for member in &self.members {
            // One that executes another program meanwhile is looked at again; one that ends is no hindrance.
            let mut found = self.look_at(member, &look, &mut mapped);
            for _ in 0..3 {
                if found.as_ref().is_ok_and(Vec::is_empty) || member.has_ended() {
                    break;
                }
                found = self.look_at(member, &Look::default(), &mut mapped);
            }
            if !member.has_ended() || member.pid == self.pid() {
                all.extend(found?);
            }
        }
        let beyond = Beyond { external: &self.external, tcp: self.plan, is_part: self.part.is_some() };
        all.extend(files::refusals(&self.holders(), &beyond)?);
        let zombies: Vec<i32> = relatives.iter().filter(|r| r.zombie).map(|r| r.pid).collect();
        all.extend(object::ipc::refusals(&ipc::look(self, &zombies))?);
        Ok(all)
    }

    fn look_at(&self, member: &Member, look: &Look, mapped: &mut Files) -> Result<Vec<Refusal>> {
        let pid = member.pid;
        let mut all = process::refusals(pid)?;
        for tid in procfs::threads(pid).map_err(|_| self.gone("the preflight"))? {
            if let Ok(status) = Status::read(pid, tid) {
                all.extend(threads::refusals(pid, tid, &status));
            }
        }
        all.extend(cgroups::refusals(pid)?);
        all.extend(seccomp::refusals(pid)?);
        let vmas = self.mappings_now(pid, look)?;
        let (_, _, refused) = memory::mapping::describe(pid, &vmas, &[], &mut self.spaces.clone(), mapped);
        if !refused.is_empty() {
            // What was unmapped since is no hindrance.
            let now = procfs::maps(pid).map_err(|_| gone(pid, "the preflight"))?;
            let is_there = |place: &str| now.iter().any(|v| format!("{:#x}", v.start) == place);
            all.extend(refused.into_iter().filter(|r| is_there(&r.place)));
        }
        Ok(all)
    }
}

/// What two processes share, in words.
pub fn shared(what: fd::Shared) -> &'static str {
    match what {
        fd::Shared::Memory => "its address space",
        fd::Shared::Files => "its table of descriptors",
        fd::Shared::Directories => "its directories and umask",
        fd::Shared::Handlers => "its signal handlers",
    }
}
