//! The story of a checkpoint, from top to bottom: preflight, arm, pre-copy, freeze, collect, re-arm, thaw, write, publish.
//!
//! What holds throughout: the job goes on, whatever happens to us. Every way out of the frozen window thaws ([`Frozen`] lets
//! go when dropped, the kernel when we die), and pages whose written-bit was taken stay in [`Job`]'s debt until a checkpoint
//! that holds them is durable.

mod arena;
mod collect;
mod precopy;
mod sink;
mod survey;
mod watch;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Refusal, Result};
use crate::fault;
use crate::image::{IndexInfo, Parent};
use crate::object::memory::read::Memory;
use crate::object::spaces::Spaces;
use crate::object::{files, memory, process, threads};
use crate::phases::Phases;
use crate::procfs::{self, Status, Vma};
use crate::ranges::RangeSet;
use crate::remote::{Frozen, Gadgets, Puppet};
use crate::store::{Chain, Store, StoreWriter};
use crate::sys::{PAGE, fd};
use crate::track::{Heat, Oracle};

use arena::Arena;
use collect::State;
use precopy::precopy;
use sink::{Prior, Sink};
use survey::Survey;
use watch::Watch;

/// How checkpoints are taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of job memory held in our own at a time.
    pub memory_limit: u64,
    /// Take a full checkpoint even where a delta is possible.
    pub full: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory_limit: 256 << 20, full: false }
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
}

/// A process under our eyes.
///
/// Whatever stops it must be called from one and the same thread: ptrace is per thread.
#[derive(Debug)]
pub struct Job {
    pid: i32,
    pidfd: OwnedFd,
    memory: Memory,
    oracle: Option<Oracle>,
    /// The eBPF programs that follow it; none where they cannot be loaded, or it was not tried yet.
    watch: Option<Watch>,
    watch_tried: bool,
    gadgets: Option<Gadgets>,
    /// The program that it was executing when it was last looked at; see [`Job::program`].
    seen_program: (String, String),
    spaces: Spaces,
    /// The newest durable checkpoint.
    parent: Option<Parent>,
    /// By content space, the pages that have content according to the chain.
    content: HashMap<u64, RangeSet>,
    /// Pages whose written-bit was taken, and that no durable checkpoint holds yet.
    debt: RangeSet,
    /// The chain was written by somebody else: every page is compared with it.
    doubt: bool,
    /// Of the debt, pages that pre-copy took but did not copy.
    late: RangeSet,
    heat: Heat,
    arena: Arena,
    /// What to say of the next checkpoint.
    notes: Vec<String>,
}

impl Job {
    /// Takes a process under our eyes. Nothing of it is stopped or changed.
    ///
    /// # Errors
    /// [`Error::NoSuchJob`], [`Error::NotAllowed`].
    pub fn open(pid: i32) -> Result<Self> {
        let not_allowed = |why: &str, todo: &str| Error::NotAllowed { pid, why: why.to_owned(), todo: todo.to_owned() };
        if pid <= 0 {
            return Err(Error::NoSuchJob { pid });
        }
        let status = Status::read(pid, pid).map_err(|_| Error::NoSuchJob { pid })?;
        if status.get("Tgid") != pid.to_string() {
            let todo = format!("give the pid of its process, {}", status.get("Tgid"));
            return Err(not_allowed("it is a thread, not a process", &todo));
        }
        if pid as u32 == std::process::id() {
            return Err(not_allowed("it is cr itself", "give the pid of the job"));
        }
        if pid == 1 {
            return Err(not_allowed("it is init", "give the pid of the job"));
        }
        if status.get("Kthread") == "1" || status.get("VmSize").is_empty() && !status.get("State").starts_with('Z') {
            return Err(not_allowed("it is a kernel thread", "give the pid of the job"));
        }
        if status.get("State").starts_with('Z') {
            return Err(not_allowed("it has ended already (a zombie)", "give the pid of a job that runs"));
        }
        let pidfd = fd::pidfd_open(pid).map_err(|_| Error::NoSuchJob { pid })?;
        let memory = Memory::open(pid)
            .map_err(|_| not_allowed("it belongs to another user", "run cr as root, or as the job's owner"))?;
        Ok(Self {
            pid,
            pidfd,
            memory,
            oracle: None,
            watch: None,
            watch_tried: false,
            gadgets: None,
            seen_program: Default::default(),
            spaces: Spaces::default(),
            parent: None,
            content: HashMap::new(),
            debt: RangeSet::new(),
            doubt: false,
            late: RangeSet::new(),
            heat: Heat::default(),
            notes: Vec::new(),
            arena: Arena::default(),
        })
    }

    /// A job that was just restored from `chain` and is tracked already.
    pub(crate) fn restored(pid: i32, chain: &Chain, oracle: Option<Oracle>, spaces: Spaces) -> Result<Self> {
        let mut job = Self::open(pid)?;
        job.spaces = spaces;
        job.doubt = oracle.is_none();
        job.oracle = oracle;
        job.learn(chain);
        Ok(job)
    }

    /// The job's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the job has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Everything about the job that could not be restored. Changes nothing.
    ///
    /// # Errors
    /// When the job ended, or may not be examined.
    pub fn preflight(&self) -> Result<Vec<Refusal>> {
        let mut all = process::refusals(self.pid)?;
        for tid in procfs::threads(self.pid).map_err(|_| self.gone("the preflight"))? {
            if let Ok(status) = Status::read(self.pid, tid) {
                all.extend(threads::refusals(self.pid, tid, &status));
            }
        }
        let vmas = self.mappings_now()?;
        let (_, _, refused) = memory::mapping::describe(self.pid, &vmas, &mut self.spaces.clone());
        all.extend(refused);
        all.extend(files::refusals(&[files::Holder {
            pid: self.pid,
            pidfd: self.pidfd.as_fd(),
            sharers: Vec::new(),
        }])?);
        Ok(all)
    }

    /// Goes on with a chain that another controller left: the next checkpoint is a delta, found by comparing contents.
    ///
    /// # Errors
    /// When the chain is damaged, or of another job.
    pub fn follow_chain(&mut self, store: &Store) -> Result<()> {
        let chain = Chain::open(store, None)?;
        // A delta on a damaged image could not be restored: that is found out now, not then.
        chain.verify_pages(std::thread::available_parallelism().map_or(1, usize::from))?;
        collect::check_same_job(self.pid, &chain)?;
        self.learn(&chain);
        self.doubt = true;
        Ok(())
    }

    fn learn(&mut self, chain: &Chain) {
        for space in chain.space_ids() {
            self.spaces.reserve(space);
            let pages = chain.content_pages(space).map(|(first, pages)| first..first + pages).collect();
            self.content.insert(space, pages);
        }
        self.parent = Some(chain.newest().as_parent());
    }

    /// Takes a checkpoint. The job goes on afterwards, also after an error.
    ///
    /// # Errors
    /// [`Error::Refused`] when the job holds what could not be restored, and whatever fails on the way.
    pub fn checkpoint(&mut self, writer: &StoreWriter, options: &Options) -> Result<Report> {
        const TRIES: usize = 3;
        let mut result = self.try_checkpoint(writer, options, Pace::Thorough);
        for _ in 1..TRIES {
            // Whatever failed while the job executed another program failed because of that: nothing of the old one is left.
            if result.is_ok() || self.program() == self.seen_program {
                break;
            }
            result = self.try_checkpoint(writer, options, Pace::Hasty);
        }
        if result.is_err() && self.has_ended() { Err(self.gone("the checkpoint")) } else { result }
    }

    /// What changes whenever the job executes another program: where the kernel put its stack and its code.
    fn program(&self) -> (String, String) {
        let stat = procfs::stat(self.pid).unwrap_or_default();
        let field = |n: usize| stat.get(n - 3).cloned().unwrap_or_default();
        (field(26), field(28))
    }

    fn has_ended(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    fn try_checkpoint(&mut self, writer: &StoreWriter, options: &Options, pace: Pace) -> Result<Report> {
        let started = Instant::now();
        let mut steps = Phases::new(started);
        let program = self.program();
        if self.seen_program != program {
            // Instructions and mappings that were found in another program.
            self.gadgets = None;
            self.seen_program = program;
        }
        fault::point("preflight")?;
        if pace == Pace::Thorough {
            refuse(self.preflight()?)?;
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
        let mut sink = Sink::new(writer.begin()?);
        fault::point("precopy")?;
        if pace == Pace::Thorough {
            precopy(self, &mut sink, prior.as_ref())?;
        }
        self.watch = self.watch.take().or_else(|| looking.and_then(|l| l.join().ok().flatten()));
        steps.end("pre-copy");
        if pace == Pace::Thorough {
            let ranges = self.debt.runs() + self.content.values().map(RangeSet::runs).sum::<usize>();
            self.arena.prepare(survey::estimate(self)? * PAGE, options.memory_limit, ranges)?;
            self.learn_mappings();
        }
        steps.end("prepare");

        fault::point("freeze")?;
        let (freeze_started, taken_at) = (Instant::now(), SystemTime::now());
        let mut phases = Phases::new(freeze_started);
        let frozen = Frozen::freeze(self.pid)?;
        if pace == Pace::Hasty {
            refuse(self.preflight()?)?;
            self.forget_lost_program();
            if self.oracle.is_none() {
                self.open_oracle(&frozen)?;
            }
        }
        phases.end("freeze");
        let mut state = State::collect(self, &frozen)?;
        phases.end("collect");
        // Protects before it copies: a write from outside the job in between is copied, or seen next time, or both.
        fault::point("rearm")?;
        let mut survey = Survey::take(self, &mut state, &sink)?;
        phases.end("survey");
        survey.copy(self, &mut sink, prior.as_ref())?;
        phases.end("copy");
        fault::point("thaw")?;
        frozen.thaw()?;
        phases.end("thaw");
        frozen_time += freeze_started.elapsed();

        steps.end("frozen");
        log::debug!("pid {} stood still for: {phases}", self.pid);

        self.arena.drain_into(&mut sink, prior.as_ref())?;
        fault::point("write.segments")?;
        let spaces = survey.spaces(self, &sink);
        let image = sink.into_writer();
        state.write(&mut survey, &image)?;
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
        log::debug!("checkpoint {} of pid {}: {steps}", published.id, self.pid);
        let parent = self.parent.replace(published).map(|p| p.id);
        let widened = survey.widened.clone();
        self.settle(survey);
        fault::point("published")?;
        Ok(Report {
            id: published.id,
            parent,
            taken_at: taken_at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
            dirty_pages: statistics.dirty_pages,
            stored_pages: statistics.stored_pages,
            stored_bytes,
            frozen: frozen_time,
            total: started.elapsed(),
            pid: self.pid,
            widened,
        })
    }

    /// Has the eBPF programs follow the job, which takes a fifth of a second once. For whoever stays with the job: a single
    /// checkpoint does it by itself where it gains from it. Without them everything is as right, and a little slower.
    pub fn watch(&mut self) {
        if !std::mem::replace(&mut self.watch_tried, true) {
            match Watch::begin(self.pid) {
                Ok(watch) => self.watch = Some(watch),
                Err(e) => log::info!("no eBPF programs: {e}"),
            }
        }
    }

    /// For a single checkpoint: where threads are in waits of which only the kernel knows how long they still take, an eBPF
    /// iterator is loaded while the memory is copied.
    fn look_meanwhile(&self) -> Option<JoinHandle<Option<Watch>>> {
        let wanted = self.watch.is_none() && !self.watch_tried && threads::any_timed_wait(self.pid);
        wanted.then(|| {
            std::thread::spawn(|| Watch::look_only().inspect_err(|e| log::info!("no eBPF programs: {e}")).ok())
        })
    }

    /// Reads the mappings in words before the frozen window, where their number may cost time.
    fn learn_mappings(&mut self) {
        let pid = self.pid;
        if let Some(watch) = self.watch.as_mut().filter(|w| w.recall(pid).is_none()) {
            // Should it fail, they are read again in the frozen window, which will say why.
            let _ = watch.learn(pid, || procfs::smaps(pid));
        }
    }

    /// The mappings of the job, with their flags. `/proc/PID/smaps` takes time for each page that exists: where an
    /// iterator shows that nothing changed since it was read, it is not read again.
    fn mappings_now(&self) -> Result<Vec<Vma>> {
        match self.watch.as_ref().and_then(|w| w.recall(self.pid)) {
            Some(vmas) => Ok(vmas),
            None => procfs::smaps(self.pid).map_err(|_| self.gone("a look at its mappings")),
        }
    }

    /// Makes sure that an oracle watches the address space, and says for how long the job stood still for that.
    fn arm(&mut self) -> Result<Duration> {
        self.forget_lost_program();
        if self.oracle.is_some() {
            fault::point("arm")?;
            return Ok(Duration::ZERO);
        }
        self.gadgets = Some(self.find_gadgets()?);
        let started = Instant::now();
        let frozen = Frozen::freeze(self.pid)?;
        fault::point("attach.frozen")?;
        self.open_oracle(&frozen)?;
        frozen.thaw()?;
        fault::point("arm")?;
        Ok(started.elapsed())
    }

    /// When the job has called `execve`, the address space that was watched is gone, and all that it held with it.
    fn forget_lost_program(&mut self) {
        if self.oracle.as_ref().is_some_and(|o| !o.is_alive()) {
            self.oracle = None;
            self.gadgets = None;
            // What follows a job is loaded already: it follows the new program too.
            self.watch = self.watch.take().and_then(|watch| watch.follow_again(self.pid));
        }
    }

    /// Makes the oracle in the stopped job.
    fn open_oracle(&mut self, frozen: &Frozen) -> Result<()> {
        let gadgets = match self.gadgets {
            Some(gadgets) => gadgets,
            None => *self.gadgets.insert(self.find_gadgets()?),
        };
        let mut puppet = Puppet::begin(self.pid, &frozen.tids(), gadgets)?;
        let opened = Oracle::open(&mut puppet, self.pid, self.pidfd.as_fd());
        puppet.end()?;
        // Without an oracle every page is dirty every time: slow, and still right.
        match opened {
            Ok(oracle) => self.oracle = Some(oracle),
            Err(Error::Injected(e)) => return Err(e.into()),
            Err(e) => self.notes.push(format!("no tracking of written pages ({e}): everything was read")),
        }
        Ok(())
    }

    fn find_gadgets(&self) -> Result<Gadgets> {
        Gadgets::find(self.pid).map_err(|e| Error::system(format!("looking through the code of pid {}", self.pid), e))
    }

    /// The older images, for comparing. When they are no longer what we wrote, the next checkpoint is a full one.
    fn prior(&mut self, store: &Store) -> Option<Prior> {
        let parent = self.parent?;
        match Chain::open(store, Some(parent.id)) {
            Ok(chain) if chain.newest().as_parent() == parent => return Some(Prior::new(chain)),
            Ok(_) => self.notes.push(format!("checkpoint {} is not the one that we wrote: took a full one", parent.id)),
            Err(e) => self.notes.push(format!("the older checkpoints cannot be used: took a full one ({e})")),
        }
        self.parent = None;
        self.content.clear();
        None
    }

    /// After the checkpoint is durable: what it holds is owed no longer.
    fn settle(&mut self, survey: Survey) {
        self.debt = RangeSet::new();
        self.late = RangeSet::new();
        self.doubt = self.oracle.is_none();
        self.heat.learn(&survey.dirty);
        for (space, pages) in survey.into_content(self.pid) {
            self.content.insert(space, pages);
        }
    }

    fn gone(&self, during: &'static str) -> Error {
        Error::JobGone { pid: self.pid, during }
    }
}

fn refuse(refusals: Vec<Refusal>) -> Result<()> {
    if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
}
