//! The story of a checkpoint, from top to bottom: preflight, arm, pre-copy, freeze, collect, re-arm, thaw, write, publish.
//!
//! What holds throughout: the job goes on, whatever happens to us. Every way out of the frozen window thaws ([`Frozen`] lets
//! go when dropped, the kernel when we die), and pages whose written-bit was taken stay in [`Job`]'s debt until a checkpoint
//! that holds them is durable.

mod activity;
mod aio;
mod arena;
mod audit;
mod collect;
mod connections;
mod datagrams;
mod guess;
mod history;
mod ipc;
mod job;
mod leave_out;
mod look;
mod member;
#[cfg(test)]
mod model;
mod narrow;
mod parallel;
mod part;
mod place;
mod precopy;
mod preflight;
mod prior;
mod shown;
mod sink;
mod survey;
mod terminals;
mod told;
mod twins;
mod watch;

use std::sync::Arc;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Refusal, Result};
use crate::family::Relative;
use crate::fault;
use crate::image::{Compression, IndexInfo};
use crate::object::files::external::Key;
use crate::object::files::inet;
use crate::object::files::net::{self, queue};
use crate::object::files::stored::Digests;
use crate::object::omitted::Omitted;
use crate::object::threads;
use crate::phases::Phases;
use crate::procfs::{self, Vma};
use crate::ranges::RangeSet;
use crate::remote::{Frozen, freeze};
use crate::store::{Chain, Store, StoreWriter};
use crate::sys::PAGE;
use crate::sys::aide::Aide;

pub use crate::family::Only;
pub use activity::Activity;
use collect::State;
use guess::guess;
pub use job::Job;
pub use leave_out::{LeaveOut, MemoryRange};
use member::Member;
use part::Part;
use precopy::precopy;
use prior::Prior;
use sink::Sink;
use survey::Survey;
use watch::{Look, Watch};

/// How checkpoints are taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of job memory held in our own at a time.
    pub memory_limit: u64,
    /// Take a full checkpoint even where a delta is possible.
    pub full: bool,
    /// Memory that is left out.
    pub leave_out: LeaveOut,
    /// Take these processes only.
    pub only: Option<Only>,
    /// Who outside of the job may be at the other end of its Unix sockets. What an older checkpoint of the chain has taken so may
    /// be so again.
    pub external: Vec<Key>,
    /// What becomes of TCP connections with somebody outside of the job.
    pub tcp: inet::Policy,
    /// Once the checkpoint is durable, the job is to be ended; until then it stands still.
    pub ends: bool,
    /// What becomes of datagrams that the job has not read; none: they are kept where that is possible.
    pub udp: Option<queue::Policy>,
    /// Nobody waits for it: it may take longer, where that costs the job less.
    pub quiet: bool,
    /// Whether and how pages are compressed; none: they are not.
    pub compression: Option<Compression>,
}

impl Default for Options {
    fn default() -> Self {
        let (leave_out, external) = (LeaveOut::default(), Vec::new());
        let (full, only, tcp, ends, quiet) = (false, None, inet::Policy::default(), false, false);
        Self {
            memory_limit: 256 << 20,
            full,
            leave_out,
            only,
            external,
            tcp,
            ends,
            udp: None,
            quiet,
            compression: None,
        }
    }
}

/// How a checkpoint is gone about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// As much as possible while the job runs.
    Thorough,
    /// All of it while the job stands still: for one that executes another program whenever we look.
    Hasty,
}

/// What a checkpoint was.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its number in the store.
    pub id: u64,
    /// The checkpoint that it is a delta on; none for a full one.
    pub parent: Option<u64>,
    /// When the job was frozen: nanoseconds since 1970.
    pub taken_at: u64,
    /// Pages that had, or may have, changed.
    pub dirty_pages: u64,
    /// Pages stored.
    pub stored_pages: u64,
    /// Bytes of its file.
    pub stored_bytes: u64,
    /// How long the job stood still.
    pub frozen: Duration,
    /// How long it all took, until it was durable.
    pub total: Duration,
    /// The job.
    pub pid: i32,
    /// Why more was read than the kernel said had changed.
    pub widened: Vec<String>,
    /// What it leaves out.
    pub omitted: Omitted,
}

impl Job {
    /// Takes a checkpoint. The job goes on afterwards, also after an error.
    ///
    /// # Errors
    /// [`Error::Refused`] when the job holds what could not be restored, and whatever fails on the way.
    pub fn checkpoint(&mut self, writer: &StoreWriter, options: &Options) -> Result<Report> {
        /// Where processes are killed all the time, each may fail.
        const TRIES: usize = 20;
        const PATIENCE: Duration = Duration::from_secs(1);
        self.datagrams = options.udp.unwrap_or_default();
        let kept = self.external.len();
        let new = options.external.iter().filter(|key| !self.external.contains(key)).cloned().collect::<Vec<_>>();
        self.external.extend(new);
        self.plan = inet::Plan { policy: options.tcp, ends: options.ends };
        let before = self.parent;
        let mut result = self.try_checkpoint(writer, options, Pace::Thorough);
        for _ in 1..TRIES {
            // Whatever failed while a process executed another program, or was killed, failed because of that: nothing of the old one
            // is left. Not what the store says, nor what failed when the checkpoint was there already.
            let is_published = self.parent.is_some() && self.parent != before;
            let failed =
                result.as_ref().err().filter(|e| !matches!(e, Error::Store(_) | Error::Image(_)) && !is_published);
            let Some(pace) = failed.and_then(|_| self.pace_of_another_try()) else { break };
            result = self.try_checkpoint(writer, options, pace);
        }
        // What only hinders at the moment at which the job stands still, such as a connection that was not accepted yet, passes.
        let until = Instant::now() + PATIENCE;
        while matches!(result, Err(Error::Refused(_))) && self.stood_still && Instant::now() < until {
            sleep(PATIENCE / 40);
            result = self.try_checkpoint(writer, options, Pace::Thorough);
        }
        if result.is_err() {
            // They were named for a checkpoint that there is not.
            self.external.truncate(kept);
        }
        if result.is_err() && self.has_ended() { Err(self.gone("the checkpoint")) } else { result }
    }

    /// How it is gone about once more, if what failed may have failed because of what became of a process.
    fn pace_of_another_try(&self) -> Option<Pace> {
        let is_ending = |m: &Member| m.pid != self.pid() && m.is_ending();
        // One that ends has no program any more, either.
        if self.lost_in_window || self.members.iter().any(is_ending) {
            return Some(Pace::Thorough);
        }
        self.members.iter().any(Member::has_changed_program).then_some(Pace::Hasty)
    }

    fn has_ended(&self) -> bool {
        self.members.first().is_none_or(|root| root.pid != self.pid() || root.has_ended())
    }

    fn try_checkpoint(&mut self, writer: &StoreWriter, options: &Options, pace: Pace) -> Result<Report> {
        let started = Instant::now();
        let mut steps = Phases::new(started);
        self.stood_still = false;
        self.lost_in_window = false;
        self.members.iter_mut().for_each(Member::look_at_program);
        self.part.iter_mut().for_each(Part::begin);
        fault::point("preflight")?;
        if pace == Pace::Thorough {
            refuse(self.preflight()?)?;
            self.look_for_ranges(&options.leave_out)?;
        }
        if options.full {
            self.parent = None;
            self.content.clear();
        }
        steps.end("preflight");
        let prior = self.prior(writer.store());
        steps.end("older images");
        let looking = self.look_meanwhile();
        let mut frozen_time = Duration::ZERO;
        if pace == Pace::Thorough {
            frozen_time = self.arm()?;
        }
        steps.end("arm");
        if pace == Pace::Thorough && self.watch_tried && !options.ends {
            guess(&mut self.members);
        }
        steps.end("guess");
        let mut sink = Sink::new(
            writer.begin_packed(options.compression.unwrap_or_default())?,
            prior.clone(),
            options.memory_limit,
        );
        fault::point("precopy")?;
        if pace == Pace::Thorough {
            self.audit();
            self.relate(&mut sink);
            frozen_time += precopy(self, &options.leave_out, &mut sink, prior.as_deref())?;
        }
        self.watch = self.watch.take().or_else(|| looking.and_then(|l| l.join().ok().flatten()));
        steps.end("pre-copy");
        if pace == Pace::Thorough {
            let debts = self.members.iter().map(|m| m.debt.runs()).sum::<usize>();
            let ranges = debts + self.content.values().map(RangeSet::runs).sum::<usize>();
            let expected = self.estimate()?;
            self.arena.prepare(expected * PAGE, options.memory_limit, ranges)?;
            self.learn_mappings();
        }
        self.find_aide();
        steps.end("prepare");

        fault::point("freeze")?;
        let taken_at = SystemTime::now();
        let (frozen, since) = self.freeze()?;
        self.stood_still = true;
        let mut phases = Phases::new(since);
        if pace == Pace::Hasty {
            refuse(self.look_again()?)?;
            self.forget_lost_programs();
        }
        self.open_oracles(&frozen)?;
        phases.end("freeze");
        let mut state = State::collect(self, &frozen)?;
        phases.end("collect");
        // Protects before it copies: a write from outside the job in between is copied, or seen next time, or both.
        fault::point("rearm")?;
        let mut survey = Survey::take(self, &mut state, &options.leave_out, &sink)?;
        phases.end("survey");
        self.relate(&mut sink);
        survey.copy(self, &mut sink, prior.as_deref())?;
        phases.end("copy");
        fault::point("thaw")?;
        let parting = state.take_parting();
        let frozen = if options.ends { Some(frozen) } else { frozen.thaw().map(|()| None)? };
        phases.end("thaw");
        frozen_time += since.elapsed();

        steps.end("frozen");
        log::debug!("pid {} stood still for: {phases}", self.pid());

        state.teach(&mut self.descriptions);
        if options.quiet {
            self.arena.drain_behind(&mut sink, prior.as_deref())?;
        } else {
            self.arena.drain_into(&mut sink, prior.as_deref())?;
        }
        fault::point("write.segments")?;
        let spaces = survey.spaces(self, &sink);
        let mut omitted = self.part.as_mut().map(Part::take).unwrap_or_default();
        omitted.memory = survey.take_omitted();
        self.learn_heat(&survey, &sink);
        let image = sink.into_writer();
        let inherits = if self.parent.is_some() { std::mem::take(&mut self.published) } else { Digests::default() };
        let written = state.write(&mut survey, &omitted, &inherits, &image);
        // Until this one is durable, the next one is a delta on the old one.
        self.published = inherits;
        let digests = written?;
        fault::point("write.metadata")?;
        let finished = image.finish(IndexInfo {
            parent: self.parent,
            taken_at: taken_at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
            dirty_pages: survey.dirty_pages(),
            frozen_ns: frozen_time.as_nanos() as u64,
            total_ns: started.elapsed().as_nanos() as u64,
            widened: survey.widened.clone(),
            spaces,
        })?;
        fault::point("publish")?;
        let (stored_bytes, statistics) = (finished.file_bytes, finished.statistics);
        let published = writer.publish(finished)?;
        steps.end("write and publish");
        log::debug!("checkpoint {} of pid {}: {steps}", published.id, self.pid());
        let parent = self.parent.replace(published).map(|p| p.id);
        let widened = survey.widened.clone();
        self.settle(survey);
        self.published = digests;
        fault::point("published")?;
        if let Some(frozen) = frozen {
            parting.end(frozen, writer.store())?;
        }
        Ok(Report {
            id: published.id,
            parent,
            taken_at: taken_at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
            dirty_pages: statistics.dirty_pages,
            stored_pages: statistics.stored_pages,
            stored_bytes,
            frozen: frozen_time,
            total: started.elapsed(),
            pid: self.pid(),
            widened,
            omitted,
        })
    }

    /// Sees that the ranges that are to be left out exist, before anything is stopped.
    fn look_for_ranges(&mut self, leave_out: &LeaveOut) -> Result<()> {
        if leave_out.is_empty() {
            return Ok(());
        }
        let with_memory = self.members.iter().filter(|m| m.has_own_memory());
        // One that has ended meanwhile has no memory.
        let memory: Vec<_> = with_memory.filter_map(|m| Some((m.pid, procfs::maps(m.pid).ok()?))).collect();
        self.notes.extend(leave_out.look_for_ranges(self.pid(), &memory)?);
        Ok(())
    }

    /// Has the eBPF programs follow the job, which takes a fifth of a second once. For whoever stays with the job: a single
    /// checkpoint does it by itself where it gains from it. Without them everything is as right, and a little slower.
    pub fn watch(&mut self) {
        if !std::mem::replace(&mut self.watch_tried, true) {
            match Watch::begin(self.members.iter().map(|m| m.pid)) {
                Ok(watch) => self.watch = Some(watch),
                Err(e) => log::info!("no eBPF programs: {e}"),
            }
        }
    }

    /// For a single checkpoint: where threads are in waits of which only the kernel knows how long they still take, an eBPF
    /// iterator is loaded while the memory is copied.
    fn look_meanwhile(&self) -> Option<JoinHandle<Option<Watch>>> {
        let asks = |m: &Member| threads::any_timed_wait(m.pid) || aio::has_rings(m.pid) || terminals::has_any(m.pid);
        let any = ipc::has_semaphores() || self.members.iter().any(asks) || net::has_any(&self.holders());
        let wanted = self.watch.is_none() && !self.watch_tried && any;
        wanted.then(|| {
            std::thread::spawn(|| Watch::look_only().inspect_err(|e| log::info!("no eBPF programs: {e}")).ok())
        })
    }

    /// Starts a thread for the frozen window, where there is a CPU for it. Without it everything is as right, and takes longer.
    fn find_aide(&mut self) {
        if self.aide.is_none() && std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
            self.aide = Aide::start("cr-aide").inspect_err(|e| log::info!("no second thread: {e}")).ok();
        }
    }

    /// Every so often, compares what was written with what was noted. Should something be missing, the notes of that process are not
    /// relied on any more.
    fn audit(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        self.unaudited += 1;
        if self.unaudited < audit::EVERY && !audit::is_strict() {
            return;
        }
        self.unaudited = 0;
        for member in self.members.iter_mut().filter(|m| m.has_own_memory()) {
            // One that ends meanwhile is not there in the frozen window either.
            let Ok(Some(missed)) = audit::missed(member, watch) else { continue };
            if let Some(first) = missed.iter().next() {
                let (pages, at) = (missed.count(), first.start * PAGE);
                log::error!(
                    "{pages} written pages of pid {} were not noted, the first at {at:#x}: page tables are asked about \
                     everything from now on. This is a defect of cr, or of this kernel",
                    member.pid
                );
                member.distrusts_notes = true;
                self.missed_notes += pages;
            }
        }
    }

    /// About how many pages the frozen window will have to copy.
    fn estimate(&mut self) -> Result<u64> {
        let (mut count, root) = (0, self.pid());
        self.watch.iter_mut().for_each(Watch::gather_ahead);
        for member in self.members.iter().filter(|m| m.has_own_memory()) {
            let noted = self.watch.as_ref().and_then(|w| w.noted(member.pid));
            match look::estimate(member, noted.as_ref()) {
                // It is not there in the frozen window either.
                Err(_) if member.is_ending() && member.pid != root => {}
                other => count += other?,
            }
        }
        Ok(count)
    }

    /// Reads the mappings in words before the frozen window, where their number may cost time.
    fn learn_mappings(&mut self) {
        let pids: Vec<i32> = self.members.iter().map(|m| m.pid).collect();
        // Should it fail, they are read again in the frozen window, which will say why.
        self.watch.iter_mut().for_each(|watch| watch.refresh(&pids));
    }

    /// The mappings of a process, with their flags. `/proc/PID/smaps` takes time for each page that exists: where an
    /// iterator shows that nothing changed since it was read, it is not read again.
    fn mappings_now(&self, pid: i32, look: &Look) -> Result<Arc<Vec<Vma>>> {
        match self.watch.as_ref().and_then(|w| w.recall(pid, look)) {
            Some(vmas) => Ok(vmas),
            None => procfs::smaps(pid).map(Arc::new).map_err(|_| gone(pid, "a look at its mappings")),
        }
    }

    /// Stops the job, and sees which processes it consists of now. Says since when it has stood still, tries in vain included.
    fn freeze(&mut self) -> Result<(Frozen, Instant)> {
        let started = Instant::now();
        let mut in_vain = false;
        let frozen = loop {
            match Frozen::freeze(&self.family, &mut watch::living(&mut self.watch)) {
                Err(Error::Refused(_)) if started.elapsed() < freeze::VFORK_PATIENCE => sleep(Duration::from_millis(5)),
                other => break other?,
            }
            in_vain = true;
        };
        let since = if in_vain { started } else { frozen.since() };
        let alive = frozen.processes().iter().map(|p| Relative { pid: p.pid, ppid: p.ppid, zombie: false });
        self.refresh(&alive.collect::<Vec<_>>())?;
        let missing = frozen.processes().iter().find(|p| !self.members.iter().any(|m| m.pid == p.pid));
        if let Some(pid) = missing.map(|process| process.pid) {
            self.lost_in_window = true;
            return Err(gone(pid, "the freeze"));
        }
        Ok((frozen, since))
    }

    /// Makes sure that an oracle watches each address space, and says for how long the job stood still for that.
    fn arm(&mut self) -> Result<Duration> {
        self.forget_lost_programs();
        if !self.members.iter().any(Self::wants_oracle) {
            fault::point("arm")?;
            return Ok(Duration::ZERO);
        }
        self.members.iter_mut().filter(|m| Self::wants_oracle(m)).try_for_each(|member| {
            // One that ends in the middle is not there in the frozen window either.
            member.find_gadgets().or_else(|e| if member.is_ending() { Ok(()) } else { Err(e) })
        })?;
        // Less is left to gather while it stands still.
        self.watch.iter_mut().for_each(Watch::gather_ahead);
        let (frozen, since) = self.freeze()?;
        let new: Vec<i32> = self.members.iter().filter(|m| Self::wants_oracle(m)).map(|m| m.pid).collect();
        self.open_oracles(&frozen)?;
        if let Some(watch) = &mut self.watch {
            // No fault is under way now: what was noted until here is not told apart from what there is, and forgotten.
            watch.gather_written();
            for member in self.members.iter_mut().filter(|m| new.contains(&m.pid)) {
                member.noted_from = watch.take_noted(member.pid).map(|noted| noted.space);
            }
        }
        frozen.thaw()?;
        let stood_still = since.elapsed();
        fault::point("arm")?;
        Ok(stood_still)
    }

    fn wants_oracle(member: &Member) -> bool {
        member.oracle.is_none() && !member.hopeless && member.has_own_memory()
    }

    fn open_oracles(&mut self, frozen: &Frozen) -> Result<()> {
        for stopped in frozen.processes() {
            let Some(member) = self.members.iter_mut().find(|m| m.pid == stopped.pid) else { continue };
            if Self::wants_oracle(member) {
                self.notes.extend(member.open_oracle(stopped)?);
            }
        }
        Ok(())
    }

    fn forget_lost_programs(&mut self) {
        for member in &mut self.members {
            if member.forget_lost_program()
                && let Some(watch) = &mut self.watch
            {
                // What follows a job is loaded already: it follows the new program too.
                watch.follow_again(member.pid);
            }
        }
    }

    /// Says which address space was copied from which: pages that are still the same are stored once.
    fn relate(&self, sink: &mut Sink) {
        for member in &self.members {
            if let Some(parent) = self.members.iter().find(|m| m.pid == member.ppid) {
                sink.relate(member.space(), parent.space());
            }
        }
    }

    /// The older images, for comparing. When they are no longer what we wrote, the next checkpoint is a full one.
    fn prior(&mut self, store: &Store) -> Option<Arc<Prior>> {
        let parent = self.parent?;
        match Chain::open(store, Some(parent.id)) {
            Ok(chain) if chain.newest().as_parent() == parent => return Some(Arc::new(Prior::new(chain))),
            Ok(_) => self.notes.push(format!("checkpoint {} is not the one that we wrote: took a full one", parent.id)),
            Err(e) => self.notes.push(format!("the older checkpoints cannot be used: took a full one ({e})")),
        }
        self.parent = None;
        self.content.clear();
        None
    }

    /// Learns which memory is written all the time.
    fn learn_heat(&mut self, survey: &Survey, sink: &Sink) {
        for member in &mut self.members {
            if let Some(dirty) = survey.dirty_of(member.pid) {
                member.heat.learn(dirty, &sink.unchanged(member.space()));
            }
        }
    }

    /// After the checkpoint is durable: what it holds is owed no longer.
    fn settle(&mut self, survey: Survey) {
        self.doubt = self.members.iter().any(|m| m.oracle.is_none() && m.has_own_memory());
        for member in &mut self.members {
            if survey.dirty_of(member.pid).is_some() {
                member.settle();
            }
        }
        for (space, pages) in survey.into_content() {
            self.content.insert(space, pages);
        }
    }

    fn gone(&self, during: &'static str) -> Error {
        gone(self.pid(), during)
    }
}

fn gone(pid: i32, during: &'static str) -> Error {
    Error::JobGone { pid, during }
}

fn refuse(refusals: Vec<Refusal>) -> Result<()> {
    if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
}
