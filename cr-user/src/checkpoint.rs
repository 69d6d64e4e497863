//! The story of a checkpoint, from top to bottom: preflight, arm, pre-copy, freeze, collect, re-arm, thaw, write, publish.
//!
//! What holds throughout: the job goes on, whatever happens to us. Every way out of the frozen window thaws ([`Frozen`] lets
//! go when dropped, the kernel when we die), and pages whose written-bit was taken stay in [`Job`]'s debt until a checkpoint
//! that holds them is durable.

mod aio;
mod arena;
pub(crate) mod collect;
mod connections;
mod ipc;
mod leave_out;
mod member;
mod part;
mod precopy;
mod sink;
mod survey;
mod terminals;
mod told;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Refusal, Result};
use crate::family::{self, Family, Relative};
use crate::fault;
use crate::image::{IndexInfo, Parent};
use crate::object::files::external::{self, Key};
use crate::object::memory::backing::Files;
use crate::object::omitted::Omitted;
use crate::object::spaces::Spaces;
use crate::object::{self, cgroups, files, lineage, memory, process, seccomp, threads};
use crate::phases::Phases;
use crate::procfs::{self, Status, Vma};
use crate::ranges::RangeSet;
use crate::remote::{Frozen, freeze};
use crate::store::{Chain, Store, StoreWriter};
use crate::sys::{PAGE, fd};
use crate::track::Oracle;

pub use crate::family::Only;
use arena::Arena;
use collect::State;
pub use leave_out::{LeaveOut, MemoryRange};
use member::Member;
use part::Part;
use precopy::precopy;
use sink::{Prior, Sink};
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
}

impl Default for Options {
    fn default() -> Self {
        let (leave_out, external) = (LeaveOut::default(), Vec::new());
        Self { memory_limit: 256 << 20, full: false, leave_out, only: None, external }
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

/// A job under our eyes: a process and all that descend from it.
///
/// Whatever stops it must be called from one and the same thread: ptrace is per thread.
#[derive(Debug)]
pub struct Job {
    family: Family,
    /// It is a part of another.
    part: Option<Part>,
    pidfd: OwnedFd,
    /// Its living processes as they were last seen, the root first and parents before their children.
    members: Vec<Member>,
    /// The eBPF programs that follow it; none where they cannot be loaded, or it was not tried yet.
    watch: Option<Watch>,
    watch_tried: bool,
    spaces: Spaces,
    /// System V objects that are the job's.
    ipc: BTreeSet<(object::ipc::Kind, i32)>,
    /// Who outside of the job may be at the other end of its Unix sockets.
    external: Vec<Key>,
    /// Every process that was seen to be the job's, with the time of that in seconds since 1970.
    past: BTreeMap<i32, i64>,
    /// The newest durable checkpoint.
    parent: Option<Parent>,
    /// By content space, the pages that have content according to the chain.
    content: HashMap<u64, RangeSet>,
    /// The chain was written by somebody else: every page is compared with it.
    doubt: bool,
    arena: Arena,
    /// What to say of the next checkpoint.
    notes: Vec<String>,
}

impl Job {
    /// Takes a process and its descendants under our eyes. Nothing of them is stopped or changed.
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
        if Relative::look(pid).map_err(|_| Error::NoSuchJob { pid })?.zombie {
            return Err(not_allowed("it has ended already (a zombie)", "give the pid of a job that runs"));
        }
        let pidfd = fd::pidfd_open(pid).map_err(|_| Error::NoSuchJob { pid })?;
        let family = Family { root: pid, reaper: None, only: None };
        Ok(Self {
            family,
            part: None,
            pidfd,
            members: vec![Member::open(&Relative { pid, ppid: 0, zombie: false }, false)?],
            watch: None,
            watch_tried: false,
            spaces: Spaces::default(),
            ipc: BTreeSet::new(),
            external: Vec::new(),
            past: BTreeMap::new(),
            parent: None,
            content: HashMap::new(),
            doubt: false,
            notes: Vec::new(),
            arena: Arena::default(),
        })
    }

    /// Takes some processes of the job of `root` under our eyes, as a job of which the first of them is the root.
    ///
    /// # Errors
    /// Those of [`Job::open`], and [`Error::NotAllowed`] for a process that is not of the job.
    pub fn open_part(root: i32, only: &Only) -> Result<Self> {
        let whole = Self::open(root)?;
        let relatives = whole.family.members().map_err(|_| Error::NoSuchJob { pid: root })?;
        let pids = part::choose(root, only, &relatives)?;
        let mut job = Self::open(*pids.first().ok_or(Error::NoSuchJob { pid: root })?)?;
        job.family.only = Some(Only { pids, single: only.single });
        job.part = Some(Part::of(root));
        Ok(job)
    }

    /// A job that was just restored from `chain` and is tracked already, each process by its oracle.
    pub(crate) fn restored(
        pid: i32,
        chain: &Chain,
        oracles: HashMap<i32, Option<Oracle>>,
        spaces: Spaces,
    ) -> Result<Self> {
        let mut job = Self::open(pid)?;
        job.spaces = spaces;
        job.doubt = oracles.values().any(Option::is_none);
        let mut oracles = oracles;
        for member in &mut job.members {
            member.oracle = oracles.remove(&member.pid).flatten();
        }
        let relatives = oracles.keys().map(|pid| Relative { pid: *pid, ppid: 0, zombie: false });
        for relative in relatives.collect::<Vec<_>>() {
            let mut member = Member::open(&relative, false)?;
            member.oracle = oracles.remove(&relative.pid).flatten();
            job.members.push(member);
        }
        job.learn(chain);
        Ok(job)
    }

    /// Says that the calling process is the job's parent and subreaper, and has no children but the job's: orphans among
    /// them are found.
    pub fn adopt_orphans(&mut self) {
        self.family.reaper = Some(std::process::id() as i32);
    }

    /// The pid of the job's root.
    pub fn pid(&self) -> i32 {
        self.family.root
    }

    /// Becomes readable when the job's root has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends every process of the job.
    pub fn kill(&mut self) {
        // Twice: what was born meanwhile.
        for _ in 0..2 {
            let Ok(relatives) = self.family.members() else { break };
            let _ = self.refresh(&relatives);
            for member in &self.members {
                let _ = fd::pidfd_send_signal(member.pidfd(), libc::SIGKILL);
            }
        }
    }

    /// Everything about the job that could not be restored. Changes nothing.
    ///
    /// # Errors
    /// When the job ended, or may not be examined.
    pub fn preflight(&mut self) -> Result<Vec<Refusal>> {
        let all = self.hindrances()?;
        Ok(self.judge(all))
    }

    /// Of refusals those that are to be heeded. What a part of a job lacks for want of the rest is only noted.
    fn judge(&mut self, refusals: Vec<Refusal>) -> Vec<Refusal> {
        match &mut self.part {
            Some(part) => part.judge(refusals),
            None => refusals,
        }
    }

    fn hindrances(&mut self) -> Result<Vec<Refusal>> {
        let relatives = self.family.members().map_err(|_| self.gone("the preflight"))?;
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
        let look = self.watch.as_ref().map(Watch::look).unwrap_or_default();
        for member in &self.members {
            // One that executes another program meanwhile is looked at again; one that ends is no hindrance.
            let mut found = self.preflight_of(member, &look);
            for _ in 0..3 {
                if found.as_ref().is_ok_and(Vec::is_empty) || member.has_ended() {
                    break;
                }
                found = self.preflight_of(member, &Look::default());
            }
            if !member.has_ended() || member.pid == self.pid() {
                all.extend(found?);
            }
        }
        all.extend(files::refusals(&self.holders(), &self.external)?);
        let zombies: Vec<i32> = relatives.iter().filter(|r| r.zombie).map(|r| r.pid).collect();
        all.extend(object::ipc::refusals(&ipc::look(self, &zombies))?);
        Ok(all)
    }

    fn preflight_of(&self, member: &Member, look: &Look) -> Result<Vec<Refusal>> {
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
        let (_, _, refused) = memory::mapping::describe(pid, &vmas, &mut self.spaces.clone(), &mut Files::default());
        if !refused.is_empty() {
            // What was unmapped since is no hindrance.
            let now = procfs::maps(pid).map_err(|_| gone(pid, "the preflight"))?;
            let is_there = |place: &str| now.iter().any(|v| format!("{:#x}", v.start) == place);
            all.extend(refused.into_iter().filter(|r| is_there(&r.place)));
        }
        Ok(all)
    }

    /// Takes new processes of the job under our eyes, and forgets those that have ended. A process that ends while it is
    /// looked at is left out.
    fn refresh(&mut self, relatives: &[Relative]) -> Result<()> {
        let living = |pid: i32| relatives.iter().any(|r| r.pid == pid && !r.zombie);
        relatives.iter().filter(|r| r.zombie).for_each(|r| freeze::let_go_of_ended(r.pid));
        // Those that came and went are known from the programs that follow the job, if they do; the last look saw those that have
        // ended since.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let forked = self.watch.as_mut().map(Watch::forked).unwrap_or_default();
        let seen = self.members.iter().map(|m| m.pid).chain(relatives.iter().map(|r| r.pid)).chain(forked);
        self.past.extend(seen.map(|pid| (pid, now)));
        // A pid may be that of another process by now.
        let (known, ended): (Vec<Member>, Vec<Member>) =
            std::mem::take(&mut self.members).into_iter().partition(|m| !m.has_ended());
        let mut known: HashMap<i32, Member> = known.into_iter().map(|m| (m.pid, m)).collect();
        let ended: Vec<i32> = ended.iter().map(|m| m.pid).collect();
        for relative in relatives.iter().filter(|r| !r.zombie) {
            let in_job = living(relative.ppid);
            let member = match known.remove(&relative.pid) {
                Some(mut member) => member.relate(relative.ppid, in_job).map(|()| member),
                None => Member::open(relative, in_job),
            };
            match member {
                Ok(member) => self.members.push(member),
                Err(e) if relative.pid == self.pid() => return Err(e),
                Err(_) if !std::fs::exists(procfs::path(relative.pid, "exe")).unwrap_or(true) => {}
                Err(_) if Relative::has_ended(relative.pid) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(watch) = &mut self.watch {
            known.keys().chain(&ended).for_each(|pid| watch.forget(*pid));
        }
        if self.members.is_empty() {
            return Err(self.gone("a look at its processes"));
        }
        Ok(())
    }

    /// The tables of descriptors of the job.
    fn holders(&self) -> Vec<files::Holder<'_>> {
        member::holders(&self.members)
    }

    /// Goes on with a chain that another controller left: the next checkpoint is a delta, found by comparing contents.
    ///
    /// # Errors
    /// When the chain is damaged, or of another job.
    pub fn follow_chain(&mut self, store: &Store) -> Result<()> {
        let chain = Chain::open(store, None)?;
        // A delta on a damaged image could not be restored: that is found out now, not then.
        chain.verify_pages(std::thread::available_parallelism().map_or(1, usize::from))?;
        collect::check_same_job(self.pid(), &chain)?;
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
        let objects = object::records::get::<object::ipc::Ipc>(chain.newest(), object::ipc::KIND);
        self.ipc = objects.map(|ipc| ipc.ids()).unwrap_or_default();
        let files = object::records::get::<files::Files>(chain.newest(), files::KIND);
        self.external.extend(files.map(|files| external::keys(&files)).unwrap_or_default());
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
            // Whatever failed while a process executed another program failed because of that: nothing of the old one is
            // left.
            if result.is_ok() || !self.members.iter().any(Member::has_changed_program) {
                break;
            }
            result = self.try_checkpoint(writer, options, Pace::Hasty);
        }
        if result.is_err() && self.has_ended() { Err(self.gone("the checkpoint")) } else { result }
    }

    fn has_ended(&self) -> bool {
        self.members.first().is_none_or(|root| root.pid != self.pid() || root.has_ended())
    }

    fn try_checkpoint(&mut self, writer: &StoreWriter, options: &Options, pace: Pace) -> Result<Report> {
        let started = Instant::now();
        let mut steps = Phases::new(started);
        self.members.iter_mut().for_each(Member::look_at_program);
        self.part.iter_mut().for_each(Part::begin);
        let new = options.external.iter().filter(|key| !self.external.contains(key)).cloned().collect::<Vec<_>>();
        self.external.extend(new);
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
        let mut sink = Sink::new(writer.begin()?, prior.clone());
        fault::point("precopy")?;
        if pace == Pace::Thorough {
            self.relate(&mut sink);
            precopy(self, &options.leave_out, &mut sink, prior.as_deref())?;
        }
        self.watch = self.watch.take().or_else(|| looking.and_then(|l| l.join().ok().flatten()));
        steps.end("pre-copy");
        if pace == Pace::Thorough {
            let debts = self.members.iter().map(|m| m.debt.runs()).sum::<usize>();
            let ranges = debts + self.content.values().map(RangeSet::runs).sum::<usize>();
            self.arena.prepare(survey::estimate(self)? * PAGE, options.memory_limit, ranges)?;
            self.learn_mappings();
        }
        steps.end("prepare");

        fault::point("freeze")?;
        let (freeze_started, taken_at) = (Instant::now(), SystemTime::now());
        let mut phases = Phases::new(freeze_started);
        let frozen = self.freeze()?;
        if pace == Pace::Hasty {
            refuse(self.preflight()?)?;
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
        frozen.thaw()?;
        phases.end("thaw");
        frozen_time += freeze_started.elapsed();

        steps.end("frozen");
        log::debug!("pid {} stood still for: {phases}", self.pid());

        self.arena.drain_into(&mut sink, prior.as_deref())?;
        fault::point("write.segments")?;
        let spaces = survey.spaces(self, &sink);
        let mut omitted = self.part.as_mut().map(Part::take).unwrap_or_default();
        omitted.memory = survey.take_omitted();
        let image = sink.into_writer();
        state.write(&mut survey, &omitted, &image)?;
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
        let any = ipc::has_semaphores() || self.members.iter().any(asks);
        let wanted = self.watch.is_none() && !self.watch_tried && any;
        wanted.then(|| {
            std::thread::spawn(|| Watch::look_only().inspect_err(|e| log::info!("no eBPF programs: {e}")).ok())
        })
    }

    /// Reads the mappings in words before the frozen window, where their number may cost time.
    fn learn_mappings(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let look = watch.look();
        for pid in self.members.iter().map(|m| m.pid) {
            // Should it fail, they are read again in the frozen window, which will say why.
            watch.refresh(pid, &look);
        }
    }

    /// The mappings of a process, with their flags. `/proc/PID/smaps` takes time for each page that exists: where an
    /// iterator shows that nothing changed since it was read, it is not read again.
    fn mappings_now(&self, pid: i32, look: &Look) -> Result<Vec<Vma>> {
        match self.watch.as_ref().and_then(|w| w.recall(pid, look)) {
            Some(vmas) => Ok(vmas.to_vec()),
            None => procfs::smaps(pid).map_err(|_| gone(pid, "a look at its mappings")),
        }
    }

    /// Stops the job, and sees which processes it consists of now.
    fn freeze(&mut self) -> Result<Frozen> {
        /// How long a child of `vfork` may take until it executes its program: seldom more than a moment.
        const PATIENCE: Duration = Duration::from_secs(2);
        let started = Instant::now();
        let frozen = loop {
            match Frozen::freeze(&self.family) {
                Err(Error::Refused(_)) if started.elapsed() < PATIENCE => sleep(Duration::from_millis(5)),
                other => break other?,
            }
        };
        let alive = frozen.processes().iter().map(|p| Relative { pid: p.pid, ppid: p.ppid, zombie: false });
        self.refresh(&alive.collect::<Vec<_>>())?;
        let missing = frozen.processes().iter().find(|p| !self.members.iter().any(|m| m.pid == p.pid));
        missing.map_or(Ok(frozen.processes().len()), |p| Err(gone(p.pid, "the freeze")))?;
        Ok(frozen)
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
            member.find_gadgets().or_else(|e| if member.has_ended() { Ok(()) } else { Err(e) })
        })?;
        let started = Instant::now();
        let frozen = self.freeze()?;
        self.open_oracles(&frozen)?;
        frozen.thaw()?;
        fault::point("arm")?;
        Ok(started.elapsed())
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

    /// After the checkpoint is durable: what it holds is owed no longer.
    fn settle(&mut self, survey: Survey) {
        self.doubt = self.members.iter().any(|m| m.oracle.is_none() && m.has_own_memory());
        for member in &mut self.members {
            if let Some(dirty) = survey.dirty_of(member.pid) {
                member.settle(dirty);
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

fn shared(what: fd::Shared) -> &'static str {
    match what {
        fd::Shared::Memory => "its address space",
        fd::Shared::Files => "its table of descriptors",
        fd::Shared::Directories => "its directories and umask",
        fd::Shared::Handlers => "its signal handlers",
    }
}

fn refuse(refusals: Vec<Refusal>) -> Result<()> {
    if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
}
