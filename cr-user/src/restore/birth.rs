//! The processes are made: each by its own parent, or by whoever stands in for that, with its memory.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::family::Sharing;
use crate::object::lineage::{self, Ancestry, Node, Orphan};
use crate::object::process;
use crate::object::zombies::Zombie;
use crate::procfs;
use crate::remote::Call;
use crate::restore::body::Body;
use crate::restore::memory::Prepared;
use crate::restore::saved::Saved;
use crate::restore::soul;
use crate::store::Chain;
use crate::sys::clone;

/// Making the processes, each with its memory.
pub struct Birth<'a> {
    saved: &'a Saved,
    chain: &'a Chain,
    prepared: &'a Prepared,
    /// How leaders of sessions take their terminals.
    terminals: HashMap<i32, Call>,
    /// Living ones, and helpers, so far.
    bodies: Vec<Body>,
    /// By process and helper, whose memory it has, or was made with.
    copied: HashMap<i32, Option<i32>>,
    /// Zombies that still live.
    ending: Vec<(Body, &'a Zombie)>,
}

impl<'a> Birth<'a> {
    /// Of the processes of `saved`, with the memory that `chain` has.
    pub fn new(saved: &'a Saved, chain: &'a Chain, prepared: &'a Prepared, terminals: HashMap<i32, Call>) -> Self {
        let (bodies, copied, ending) = (Vec::new(), HashMap::new(), Vec::new());
        Self { saved, chain, prepared, terminals, bodies, copied, ending }
    }

    /// Makes all of them, the root first. Dropping what was made ends it.
    ///
    /// # Errors
    /// When a pid is taken, or the kernel refuses.
    pub fn all(mut self) -> Result<Vec<Body>> {
        let keep_free: Vec<(u64, u64)> = self.saved.mappings().map(|m| (m.start, m.end)).collect();
        let mut helpers = Vec::new();
        for node in &self.saved.plan.forest {
            let exit_signal = self.exit_signal(node);
            let body = Body::make(node.pid, exit_signal, &keep_free)?;
            self.raise(node, body, None, &mut helpers)?;
            if node.helper {
                helpers.push((node.pid, None));
            }
        }
        for orphan in &self.saved.plan.orphans {
            self.adopt(orphan, &mut helpers)?;
        }
        self.enter_groups(&mut helpers)?;
        for (pid, parent) in helpers {
            let at = self.position(pid);
            let helper = self.bodies.remove(at);
            helper.vanish(parent.map(|p| self.body_mut(p)).transpose()?)?;
        }
        for (mut body, zombie) in std::mem::take(&mut self.ending) {
            soul::dress(&mut body, zombie)?;
            body.end_as(zombie.status)?;
        }
        // The memory of some may still be being filled.
        self.bodies.iter_mut().try_for_each(Body::settle)?;
        let order = |pid: i32| self.saved.living.iter().position(|l| l.pid() == pid);
        self.bodies.sort_by_key(|b| order(b.pid()));
        Ok(self.bodies)
    }

    fn position(&self, pid: i32) -> usize {
        self.bodies.iter().position(|b| b.pid() == pid).expect("made before")
    }

    fn exit_signal(&self, node: &Node) -> i32 {
        let living = self.saved.find(node.pid).map(|l| l.process.exit_signal);
        // What a helper makes for its parent has the helper's own signal.
        let made_for_parent = || node.siblings.first().map(|s| self.exit_signal(s));
        living.or_else(|| self.zombie(node.pid).map(|z| z.exit_signal)).or_else(made_for_parent).unwrap_or(0)
    }

    fn zombie(&self, pid: i32) -> Option<&'a Zombie> {
        self.saved.zombies.iter().find(|z| z.pid == pid)
    }

    /// Makes a new process what it is to be, and then its children. `parent`: the process of which it is a copy; none if it
    /// was made by us.
    fn raise(
        &mut self,
        node: &Node,
        mut body: Body,
        parent: Option<i32>,
        helpers: &mut Vec<(i32, Option<i32>)>,
    ) -> Result<()> {
        if let Some(zombie) = self.zombie(node.pid) {
            if node.leads {
                body.run(0, vec![Call::new(libc::SYS_setsid, &[])], "entering its session")?;
            }
            self.copied.insert(node.pid, parent);
            self.ending.push((body, zombie));
            return Ok(());
        }
        if let Some(living) = self.saved.find(node.pid) {
            // First of all: what is made from here on is counted there.
            self.saved.cgroups.enter(node.pid, false);
            body.run(0, process::xstate_calls(&living.process), "asking for CPU features")?;
            if !living.process.sharing.memory {
                let from = parent.map(|p| (p, self.saved.find(p).map_or(&[][..], |l| &l.mappings)));
                self.prepared.build(&mut body, &living.mappings, from, self.chain)?;
            }
            if living.threads.head.is_some() {
                body.give_successor(living.threads.all[0].tid)?;
            }
        }
        self.bodies.push(body);
        // A helper has the memory of whoever made it.
        let memory = if node.helper { parent } else { Some(self.saved.owner_of_memory(node.pid)) };
        self.copied.insert(node.pid, memory);
        for child in &node.before {
            self.child(node, child, memory, helpers)?;
        }
        if node.leads {
            let at = self.position(node.pid);
            self.bodies[at].run(0, vec![Call::new(libc::SYS_setsid, &[])], "entering its session")?;
            if let Some(take) = self.terminals.remove(&node.pid) {
                self.bodies[at].run(0, vec![take], "taking its session's terminal")?;
            }
        }
        for child in node.after.iter().chain(&node.siblings) {
            self.child(node, child, memory, helpers)?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        node: &Node,
        child: &Node,
        memory: Option<i32>,
        helpers: &mut Vec<(i32, Option<i32>)>,
    ) -> Result<()> {
        let sharing = self.saved.find(child.pid).map_or(Sharing::default(), |l| l.process.sharing);
        let is_sibling = node.siblings.iter().any(|s| s.pid == child.pid);
        let for_parent = if is_sibling { libc::CLONE_PARENT as u64 } else { 0 };
        let exit_signal = self.exit_signal(child);
        let at = self.position(node.pid);
        let body = self.bodies[at].fork(child.pid, exit_signal, sharing.clone_flags() | for_parent)?;
        self.raise(child, body, memory, helpers)?;
        if child.helper {
            helpers.push((child.pid, Some(node.pid)));
        }
        Ok(())
    }

    /// Makes an orphan: a helper of whoever leads its session makes it, and ends. Then the next subreaper above gets it, and
    /// meanwhile there is none but its parent.
    fn adopt(&mut self, orphan: &Orphan, helpers: &mut Vec<(i32, Option<i32>)>) -> Result<()> {
        let mut helper = self.fork_spare(orphan.session)?;
        let body = helper.fork(orphan.node.pid, libc::SIGCHLD, 0)?;
        let subreaper = |on: u64| vec![Call::new(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as u64, on])];
        if orphan.parent == 0 {
            clone::become_subreaper().map_err(|e| Error::system("becoming the parent of the job's orphans", e))?;
        } else {
            self.body_mut(orphan.parent)?.run(0, subreaper(1), "getting an orphan")?;
        }
        helper.vanish(Some(self.body_mut(orphan.session)?))?;
        if orphan.parent != 0 {
            self.body_mut(orphan.parent)?.run(0, subreaper(0), "having got an orphan")?;
        }
        let memory = self.copied.get(&orphan.session).copied().flatten();
        self.raise(&orphan.node, body, memory, helpers)
    }

    /// Makes a helper under a number that nobody in the job has.
    fn fork_spare(&mut self, parent: i32) -> Result<Body> {
        /// So many others may take theirs at the same time.
        const TRIES: usize = 20;
        let saved = self.saved;
        let is_the_jobs = |n: i32| {
            saved.ancestry.iter().any(|a| [a.pid, a.pgid, a.sid].contains(&n))
                || saved.living.iter().any(|l| l.threads.all.iter().any(|t| t.tid == n))
        };
        let mut failed = None;
        for number in procfs::spare_pids(saved.root().pid()).filter(|n| !is_the_jobs(*n)).take(TRIES) {
            match self.body_mut(parent)?.fork(number, 0, 0) {
                Ok(body) => return Ok(body),
                Err(e) => failed = Some(e),
            }
        }
        Err(failed.unwrap_or_else(|| Error::system("finding a free pid", nix::errno::Errno::EAGAIN)))
    }

    /// Process groups: first those who lead one, then those who are led.
    fn enter_groups(&mut self, helpers: &mut Vec<(i32, Option<i32>)>) -> Result<()> {
        self.lead_left_groups(helpers)?;
        let all = &self.saved.ancestry;
        let leaders = all.iter().filter(|a| a.pgid == a.pid && a.sid != a.pid);
        // Who has left our group above is to be in it again.
        let strayed = |a: &&Ancestry| a.pgid == 0 && all.iter().any(|b| b.pgid == a.pid);
        let led = all.iter().filter(|a| a.pgid != 0 && a.pgid != a.pid || strayed(a));
        for who in leaders.chain(led) {
            let group = if who.pgid == 0 { nix::unistd::getpgrp().as_raw() } else { who.pgid };
            if group == 0 {
                log::warn!(
                    "pid {} stays in a process group of its own: ours has no number in this pid namespace",
                    who.pid
                );
                continue;
            }
            let join = Call::new(libc::SYS_setpgid, &[0, group as u64]);
            self.body_mut(who.pid)?.run(0, vec![join], "entering its process group")?;
        }
        Ok(())
    }

    /// Where the leader of a group has ended, a helper leads it; where it has moved on to another group, a helper stays in its own
    /// until all are there.
    fn lead_left_groups(&mut self, helpers: &mut Vec<(i32, Option<i32>)>) -> Result<()> {
        let lead = || vec![Call::new(libc::SYS_setpgid, &[0, 0])];
        for group in lineage::left_groups(&self.saved.ancestry) {
            if helpers.iter().any(|(pid, _)| *pid == group.pgid) {
                continue;
            }
            let (helper, parent) = if group.moved {
                self.body_mut(group.pgid)?.run(0, lead(), "leading its former group")?;
                (self.fork_spare(group.pgid)?, group.pgid)
            } else {
                let mut helper = self.body_mut(group.member)?.fork(group.pgid, 0, 0)?;
                helper.run(0, lead(), "leading its group")?;
                (helper, group.member)
            };
            helpers.push((helper.pid(), Some(parent)));
            self.bodies.push(helper);
        }
        Ok(())
    }

    fn body_mut(&mut self, pid: i32) -> Result<&mut Body> {
        let zombies = self.ending.iter_mut().map(|(body, _)| body);
        let found = self.bodies.iter_mut().chain(zombies).find(|b| b.pid() == pid);
        found.ok_or_else(|| Error::system(format!("finding the new process {pid}"), nix::errno::Errno::ESRCH))
    }
}
