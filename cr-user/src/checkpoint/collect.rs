//! The state of a stopped job that is not memory, as records.

use crate::checkpoint::aio;
use crate::checkpoint::ipc;
use crate::checkpoint::member::Member;
use crate::checkpoint::survey::Survey;
use crate::checkpoint::{Job, gone, refuse};
use crate::error::{Error, Result};
use crate::fault;
use crate::image::ImageWriter;
use crate::object::cgroups::{self, Cgroups};
use crate::object::clocks::{self, Clocks};
use crate::object::credentials::{self, Credentials};
use crate::object::files::{self, Files};
use crate::object::ipc::{self as objects, Ipc};
use crate::object::lineage::{self, Ancestry};
use crate::object::memory;
use crate::object::memory::backing::Source;
use crate::object::process::{self, Process};
use crate::object::records::{get, put};
use crate::object::scheduling::{self, Scheduling};
use crate::object::seccomp::{self, Seccomp};
use crate::object::signals::{self, Signals};
use crate::object::threads::{self, RestartFunctions, Threads, Wait};
use crate::object::timers::{self, Timers};
use crate::object::zombies::{self, Zombie};
use crate::procfs::{Status, Vma};
use crate::remote::freeze::Stopped;
use crate::remote::{Frozen, Puppet, Questions};
use crate::store::Chain;
use crate::sys::ptrace::{self, Regs};
use crate::track::iters::TaskHidden;

use super::watch::Watch;

/// Everything about a stopped job but the content of its memory. By process, in the job's order.
#[derive(Debug, Default)]
pub struct State {
    processes: Vec<Process>,
    threads: Vec<Threads>,
    signals: Vec<Signals>,
    timers: Vec<Timers>,
    credentials: Vec<Credentials>,
    scheduling: Vec<Scheduling>,
    seccomp: Seccomp,
    cgroups: Cgroups,
    clocks: Vec<Clocks>,
    zombies: Vec<Zombie>,
    ipc: Ipc,
    files: Files,
    file_contents: Vec<Source>,
    vmas: Vec<(i32, Vec<Vma>)>,
}

impl State {
    /// Asks the kernel, and has each thread ask for what only it may ask.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn collect(job: &mut Job, frozen: &Frozen) -> Result<Self> {
        let mut state = Self::default();
        for stopped in frozen.processes() {
            let Some(at) = job.members.iter().position(|m| m.pid == stopped.pid) else { continue };
            state.collect_process(&mut job.members[at], stopped, job.watch.as_ref())?;
            state.cgroups.add(stopped.pid)?;
        }
        for member in job.members.iter().filter(|m| m.has_own_memory()) {
            state.vmas.push((member.pid, job.mappings_now(member)?));
        }
        for (pid, vmas) in &state.vmas {
            aio::wait(*pid, vmas, &mut job.watch)?;
        }
        // Others' parents run, and may notice them at any time.
        let parent_is_here = |ppid: i32| frozen.processes().iter().any(|p| p.pid == ppid);
        let zombies = frozen.zombies().iter().filter(|z| parent_is_here(z.ppid));
        state.zombies = zombies.map(|z| zombies::capture(z.pid)).collect::<Result<_>>()?;
        state.find_lineage()?;
        let users = ipc::of_frozen(job.pid(), frozen, &state.vmas, &job.ipc, &mut job.watch)?;
        let (ipc, segments) = objects::capture(&users, &mut job.spaces)?;
        job.ipc = ipc.ids();
        state.ipc = ipc;
        // The spaces are put aside: who holds the descriptors is told by the job as well.
        let mut spaces = std::mem::take(&mut job.spaces);
        let captured = files::capture(&job.holders(), &mut |dev, ino| spaces.of_file(dev, ino));
        job.spaces = spaces;
        let (files, contents) = captured?;
        state.files = files;
        state.file_contents =
            contents.into_iter().map(|c| Source { space: c.space, file: c.file, range: 0..c.len }).collect();
        state.file_contents.extend(segments);
        Ok(state)
    }

    fn collect_process(&mut self, member: &mut Member, stopped: &Stopped, watch: Option<&Watch>) -> Result<()> {
        let pid = member.pid;
        let gadgets = member.gadgets()?;
        let tids = stopped.tids();
        let mut threads = Threads { pid, all: Vec::new(), head: None };
        let mut signals = Signals { pid, actions: Vec::new(), queued: Vec::new(), threads: Vec::new() };
        let mut credentials = Credentials { pid, threads: Vec::new() };
        let mut scheduling = Scheduling { pid, threads: Vec::new() };

        let waits = Waits::look(pid, watch, &tids);
        let mut puppet = Puppet::begin(pid, &tids, gadgets)?;
        let mut questions = Questions::new(&puppet);
        let (actions, knobs) = (signals::ask(&mut questions), process::ask(&mut questions));
        let clocks = timers::ask(pid, &mut questions)?;
        let answers = questions.put(&mut puppet)?;
        signals.actions = signals::actions(actions, &answers);
        self.timers.push(timers::capture(pid, clocks, &answers));
        fault::point("collect.process")?;
        self.processes.push(process::capture(pid, member.sharing, stopped.stop_signal(), knobs, &answers)?);
        for tid in tids {
            puppet.switch(tid)?;
            let mut questions = Questions::new(&puppet);
            let (own, rights, turns) =
                (threads::ask(&mut questions), credentials::ask(&mut questions), scheduling::ask(&mut questions));
            let answers = questions.put(&mut puppet)?;
            let status = Status::read(pid, tid).map_err(|_| gone(pid, "the collection of its state"))?;
            refuse(threads::refusals(pid, tid, &status))?;
            self.seccomp.add(pid, tid, &status)?;
            let context = puppet.context();
            let xstate = context.xstate.clone();
            let wait = waits.of(tid, &context.regs);
            threads.all.push(threads::capture(pid, tid, &context.regs, xstate, own, &answers, wait)?);
            signals.threads.push(signals::capture_thread(tid, context.sigmask)?);
            if stopped.has_lost_its_head() && threads.head.is_none() {
                // Nobody can ask for it: what only a thread itself is told is what its first sister was told.
                let status = Status::read(pid, pid).map_err(|_| gone(pid, "the collection of its state"))?;
                credentials.threads.push(credentials::capture(pid, &status, rights, &answers));
                threads.head = Some(threads::capture_head(pid)?);
            }
            credentials.threads.push(credentials::capture(tid, &status, rights, &answers));
            scheduling.threads.push(scheduling::capture(tid, turns, &answers)?);
            fault::point("collect.threads")?;
        }
        signals.queued = signals::queued_for_process(pid)?;
        puppet.end()?;
        self.threads.push(threads);
        self.signals.push(signals);
        self.credentials.push(credentials);
        self.scheduling.push(scheduling);
        self.clocks.push(clocks::capture(pid)?);
        Ok(())
    }

    /// Sessions and process groups that the job was started in, and is restarted in whatever they are then, get the number 0.
    ///
    /// # Errors
    /// [`Error::Refused`] when a process could not be brought into its session again.
    fn find_lineage(&mut self) -> Result<()> {
        let living = self.processes.iter().map(|p| (p.pid, p.ppid, p.pgid, p.sid));
        let ended = self.zombies.iter().map(|z| (z.pid, z.ppid, z.pgid, z.sid));
        let mut all: Vec<Ancestry> =
            living.chain(ended).map(|(pid, ppid, pgid, sid)| Ancestry { pid, ppid, pgid, sid }).collect();
        lineage::mark_outside(&mut all);
        lineage::forest(&all).map_err(|lost| Error::Refused(vec![lost.into_refusal()]))?;
        let living = self.processes.iter_mut().map(|p| (&mut p.pgid, &mut p.sid));
        let ended = self.zombies.iter_mut().map(|z| (&mut z.pgid, &mut z.sid));
        for ((pgid, sid), now) in living.chain(ended).zip(all) {
            (*pgid, *sid) = (now.pgid, now.sid);
        }
        Ok(())
    }

    /// The mappings of each process that has an address space of its own, as they were after our own was taken out.
    pub fn take_vmas(&mut self) -> Vec<(i32, Vec<Vma>)> {
        std::mem::take(&mut self.vmas)
    }

    /// Files whose bytes must go into the image.
    pub fn take_file_contents(&mut self) -> Vec<Source> {
        std::mem::take(&mut self.file_contents)
    }

    /// Puts the records into the image.
    ///
    /// # Errors
    /// When the image cannot take them.
    pub fn write(mut self, survey: &mut Survey, image: &ImageWriter) -> Result<()> {
        for threads in &self.threads {
            // There may be many, and they are read while the job runs.
            let tids: Vec<i32> = threads.all.iter().map(|t| t.tid).collect();
            self.cgroups.add_threads(threads.pid, &tids);
        }
        put(image, process::KIND, &self.processes)?;
        put(image, threads::KIND, &self.threads)?;
        put(image, memory::KIND, &survey.take_mappings())?;
        put(image, signals::KIND, &self.signals)?;
        put(image, timers::KIND, &self.timers)?;
        put(image, credentials::KIND, &self.credentials)?;
        put(image, files::KIND, &self.files)?;
        put(image, clocks::KIND, &self.clocks)?;
        put(image, scheduling::KIND, &self.scheduling)?;
        put(image, objects::KIND, &self.ipc)?;
        put(image, seccomp::KIND, &self.seccomp)?;
        put(image, cgroups::KIND, &self.cgroups)?;
        put(image, zombies::KIND, &self.zombies)
    }
}

/// What the kernel remembers of interrupted waits. Only asked where a thread is in one.
struct Waits<'a> {
    pid: i32,
    tasks: Vec<TaskHidden>,
    functions: Option<&'a RestartFunctions>,
}

impl<'a> Waits<'a> {
    fn look(pid: i32, watch: Option<&'a Watch>, tids: &[i32]) -> Self {
        let any = tids.iter().any(|tid| ptrace::regs(*tid).is_ok_and(|r| threads::has_restart_block(&r)));
        let watch = watch.filter(|_| any);
        let tasks = watch.and_then(|w| w.hints.tasks(pid).ok()).unwrap_or_default();
        Self { pid, tasks, functions: watch.map(|w| &w.functions) }
    }

    fn of(&self, tid: i32, regs: &Regs) -> Option<Wait> {
        let task = self.tasks.iter().find(|t| t.record.seen_tid as i32 == tid);
        let unknown = RestartFunctions::default();
        threads::wait(self.pid, regs, task, self.functions.unwrap_or(&unknown))
    }
}

/// A store holds the chain of one job: the process must be the one that the chain is of, or its restored self.
///
/// # Errors
/// [`Error::OtherJob`] when it is another.
pub fn check_same_job(pid: i32, chain: &Chain) -> Result<()> {
    let known: Vec<Process> = get(chain.newest(), process::KIND)?;
    if known.first().is_some_and(|p| p.pid == pid) {
        return Ok(());
    }
    Err(Error::OtherJob { pid, owner: known.first().map_or(0, |p| p.pid) })
}
