//! What the threads of a process told about themselves, in remote calls that only they may make.
//!
//! That costs a process a dozen switches to its threads and back. As long as nothing changed on which the answers depend
//! ([`Evidence`], which one pass of an eBPF iterator shows of a whole job), they are the same as the last time.

use crate::error::Result;
use crate::fault;
use crate::object::{credentials, process, scheduling, signals, threads, timers};
use crate::remote::{Answers, Gadgets, Puppet, Questions};
use crate::track::iters::Evidence;

/// The answers of a process and of its threads, and where in them each kind has its own.
#[derive(Debug)]
pub struct Told {
    /// Signal handlers.
    pub actions: signals::Asked,
    /// The process's knobs.
    pub knobs: process::Asked,
    /// Its timers.
    pub clocks: timers::Asked,
    /// What `/proc` says of the process, and depends on the same.
    pub facts: process::Facts,
    /// Answers to these three.
    pub answers: Answers,
    /// By thread.
    pub threads: Vec<ToldByThread>,
}

/// The answers of one thread.
#[derive(Debug)]
pub struct ToldByThread {
    /// The thread.
    pub tid: i32,
    /// What the kernel keeps for each thread.
    pub own: threads::Asked,
    /// Its credentials.
    pub rights: credentials::Asked,
    /// Its scheduling.
    pub turns: scheduling::Asked,
    /// Answers to these.
    pub answers: Answers,
}

impl Told {
    /// Asks the stopped threads of a process.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn ask(pid: i32, tids: &[i32], gadgets: Gadgets) -> Result<Self> {
        let mut puppet = Puppet::begin(pid, tids, gadgets)?;
        let mut questions = Questions::new(&puppet);
        let (actions, mut knobs) = (signals::ask(&mut questions), process::ask(&mut questions));
        let clocks = timers::ask(pid, &mut questions)?;
        let answers = questions.put(&mut puppet)?;
        knobs.see_locks(pid, &answers);
        fault::point("collect.process")?;
        let mut by_thread = Vec::with_capacity(tids.len());
        for &tid in tids {
            puppet.switch(tid)?;
            let mut questions = Questions::new(&puppet);
            let (own, rights, turns) =
                (threads::ask(&mut questions), credentials::ask(&mut questions), scheduling::ask(&mut questions));
            let answers = questions.put(&mut puppet)?;
            by_thread.push(ToldByThread { tid, own, rights, turns, answers });
            fault::point("collect.threads")?;
        }
        puppet.end()?;
        let facts = process::Facts::read(pid)?;
        Ok(Self { facts, actions, knobs, clocks, answers, threads: by_thread })
    }
}

/// Answers, and what they depend on.
#[derive(Debug)]
pub struct Kept {
    /// None: they change by themselves, or nobody knows.
    evidence: Option<Evidence>,
    told: Told,
}

impl Kept {
    /// The answers that are in `slot`, if they are still right, or else new ones, which are then kept there.
    ///
    /// # Errors
    /// When asking fails.
    pub fn or_ask(
        slot: &mut Option<Self>,
        evidence: Option<Evidence>,
        ask: impl FnOnce() -> Result<Told>,
    ) -> Result<&Told> {
        if evidence.is_none() || slot.as_ref().is_none_or(|kept| kept.evidence != evidence) {
            *slot = None;
            let told = ask()?;
            return Ok(&slot.insert(Self { evidence, told }).told);
        }
        let kept = slot.as_ref().expect("one with this evidence");
        Ok(&kept.told)
    }
}
