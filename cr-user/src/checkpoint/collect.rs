//! The state of a stopped job that is not memory, as records.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::checkpoint::aio;
use crate::checkpoint::audit;
use crate::checkpoint::connections::{self, Parting};
use crate::checkpoint::datagrams;
use crate::checkpoint::ipc;
use crate::checkpoint::member::{self, Known, Member};
use crate::checkpoint::shown::{self, Shown};
use crate::checkpoint::survey::Survey;
use crate::checkpoint::terminals;
use crate::checkpoint::told::{Kept, Told};
use crate::checkpoint::watch::{Look, Watch};
use crate::checkpoint::{Job, gone, refuse};
use crate::error::{Error, Result};
use crate::fault;
use crate::image::ImageWriter;
use crate::object::cgroups::{self, Cgroups};
use crate::object::clocks::{self, Clocks};
use crate::object::credentials::{self, Credentials};
use crate::object::files::stored::{Digests, Stored};
use crate::object::files::{self, Beyond, Files};
use crate::object::ipc::{self as objects, Captured, Ipc};
use crate::object::lineage::{self, Ancestry};
use crate::object::memory;
use crate::object::memory::backing::Source;
use crate::object::omitted::{self, Omitted};
use crate::object::process::{self, Process};
use crate::object::records::{get, put};
use crate::object::scheduling::{self, Scheduling};
use crate::object::seccomp::{self, Seccomp};
use crate::object::signals::{self, Signals};
use crate::object::threads::{self, RestartFunctions, Threads, Wait};
use crate::object::timers::{self, Timers};
use crate::object::zombies::{self, Zombie};
use crate::phases::Phases;
use crate::procfs::{self, Status, Vma};
use crate::remote::Frozen;
use crate::remote::frame::Context;
use crate::remote::freeze::Stopped;
use crate::store::Chain;
use crate::sys::aide::Aide;
use crate::sys::ptrace::Regs;
use crate::track::iters::TaskHidden;

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
    vmas: Vec<(i32, Arc<Vec<Vma>>)>,
    parting: Parting,
}

impl State {
    /// Asks the kernel, and has each thread ask for what only it may ask.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn collect(job: &mut Job, frozen: &Frozen) -> Result<Self> {
        let mut state = Self::default();
        let mut phases = Phases::new(Instant::now());
        let mut known: Vec<Known> = job.members.iter_mut().map(|m| std::mem::take(&mut m.known)).collect();
        let Job { members, watch, spaces, part, external, plan, descriptions, aide, .. } = job;
        let beyond = Beyond { external, tcp: *plan, is_part: part.is_some() };
        let watch = watch.as_ref();
        let mut holders = member::holders(members);
        let (captured, collected) = beside(
            aide.as_mut(),
            || {
                for holder in holders.iter_mut().filter(|h| procfs::voice(h.pid) == h.pid) {
                    holder.listed = watch.and_then(|w| w.descriptors(holder.pid));
                }
                let judge = &mut |all| match part {
                    Some(part) => part.judge(all),
                    None => all,
                };
                files::capture(&holders, &beyond, &mut |dev, ino| spaces.of_file(dev, ino), judge, descriptions)
            },
            || -> Result<Look> {
                let look = watch.map(Watch::look).unwrap_or_default();
                phases.end("evidence");
                let places: HashMap<i32, usize> = members.iter().enumerate().map(|(at, m)| (m.pid, at)).collect();
                let shown = frozen.processes().iter().map(|p| known[*places.get(&p.pid)?].shown.take()).collect();
                let shown = shown::look(frozen.processes(), shown, &look)?;
                phases.end("/proc");
                let mut alike = Alike::default();
                for (stopped, shown) in frozen.processes().iter().zip(shown) {
                    let Some(at) = places.get(&stopped.pid).copied() else { continue };
                    let (member, known) = (&members[at], &mut known[at]);
                    state.collect_process(member, known, (stopped, &shown), watch, &look, &mut alike)?;
                    known.shown = Some(shown);
                }
                phases.end("threads");
                Ok(look)
            },
        );
        drop(holders);
        job.members.iter_mut().zip(known).for_each(|(member, known)| member.known = known);
        let look = collected?;
        phases.end("files");
        let (files, contents, connections) = captured?;
        // Of a single thread, or where the iterator shows it, that needs no look.
        let doubtful = frozen.processes().iter().filter(|p| {
            let tids = p.tids();
            tids.len() > 1 && !look.has_one_table(p.pid, &tids)
        });
        refuse(job.judge(files::other_tables(doubtful.map(|p| p.pid))?))?;
        state.files = files;
        terminals::read_queues(&job.members, &mut state.files, &mut job.watch)?;
        let lost = datagrams::read_hidden(&job.members, &mut state.files, &mut job.watch, job.datagrams)?;
        job.notes.extend(lost);
        for member in job.members.iter().filter(|m| m.has_own_memory()) {
            let vmas = job.mappings_now(member.pid, &look)?;
            audit::compare_mappings(member.pid, &vmas)?;
            state.vmas.push((member.pid, vmas));
        }
        phases.end("mappings");
        state.parting =
            connections::read_queues(connections, job, frozen, &state.threads, &state.vmas, &mut state.files)?;
        for (pid, vmas) in &state.vmas {
            aio::wait(*pid, vmas, &mut job.watch)?;
        }
        phases.end("connections");
        // Others' parents run, and may notice them at any time.
        let parent_is_here = |ppid: i32| frozen.processes().iter().any(|p| p.pid == ppid);
        let zombies = frozen.zombies().iter().filter(|z| parent_is_here(z.ppid));
        state.zombies = zombies.map(|z| zombies::capture(z.pid)).collect::<Result<_>>()?;
        state.find_lineage(job)?;
        phases.end("lineage");
        let users = ipc::of_frozen(job.pid(), frozen, &state.vmas, &job.ipc, &mut job.watch)?;
        let captured = match objects::capture(&users, &mut job.spaces) {
            Err(Error::Refused(all)) => refuse(job.judge(all)).map(|()| Captured::default())?,
            captured => captured?,
        };
        job.ipc.learn(&captured);
        job.notes.extend(captured.notes);
        state.ipc = captured.ipc;
        state.file_contents =
            contents.into_iter().map(|c| Source { space: c.space, file: c.file, range: 0..c.len }).collect();
        state.file_contents.extend(captured.sources);
        if let Some(part) = &mut job.part {
            part.look(frozen, &state.vmas);
        }
        phases.end("System V objects");
        log::debug!("collected of pid {}: {phases}", job.pid());
        Ok(state)
    }

    fn collect_process(
        &mut self,
        member: &Member,
        known: &mut Known,
        (stopped, shown): (&Stopped, &Shown),
        watch: Option<&Watch>,
        look: &Look,
        alike: &mut Alike,
    ) -> Result<()> {
        let pid = member.pid;
        let tids = stopped.tids();
        let mut threads = Threads { pid, all: Vec::new(), head: None };
        let mut signals = Signals { pid, actions: Vec::new(), queued: Vec::new(), threads: Vec::new() };
        let mut credentials = Credentials { pid, threads: Vec::new() };
        let mut scheduling = Scheduling { pid, threads: Vec::new() };

        // As they are before anybody makes calls for us.
        let contexts = tids.iter().map(|tid| Context::read(*tid)).collect::<Result<Vec<_>>>()?;
        let waits = Waits::look(pid, watch, look, &contexts);
        let evidence = look.evidence(pid).filter(|e| e.is_of(&tids));
        let mut kept = known.told.take();
        let told = Kept::or_ask(&mut kept, evidence, || Told::ask(pid, &tids, known.gadgets(pid)?))?;
        signals.actions = signals::actions(told.actions, &told.answers);
        self.timers.push(timers::capture(pid, &told.clocks, &told.answers));
        fault::point("collect.process")?;
        self.processes.push(process::capture(
            &shown.process,
            &shown.threads[0],
            member.sharing,
            stopped.stop_signal(),
            &told.facts,
            &told.answers,
            &mut alike.stamps,
        )?);
        for ((context, status), told) in contexts.into_iter().zip(&shown.threads).zip(&told.threads) {
            let tid = told.tid;
            refuse(threads::refusals(pid, tid, status))?;
            self.seccomp.add(pid, tid, status)?;
            let wait = waits.of(tid, &context.regs);
            threads.all.push(threads::capture(
                pid,
                tid,
                look.name(pid, tid),
                (&context.regs, context.xstate),
                told.own,
                &told.answers,
                wait,
            )?);
            signals.threads.push(signals::capture_thread(tid, context.sigmask)?);
            credentials.threads.push(credentials::capture(tid, status, told.rights, &told.answers));
            scheduling.threads.push(scheduling::capture(tid, told.turns, &told.answers)?);
            fault::point("collect.threads")?;
        }
        if stopped.has_lost_its_head() {
            // Nobody can ask for it: what only a thread itself is told is what its first sister was told.
            let status = Status::read(pid, pid).map_err(|_| gone(pid, "the collection of its state"))?;
            credentials
                .threads
                .insert(0, credentials::capture(pid, &status, told.threads[0].rights, &told.threads[0].answers));
            threads.head = Some(threads::capture_head(pid)?);
        }
        signals.queued = signals::queued_for_process(procfs::voice(pid))?;
        self.threads.push(threads);
        self.signals.push(signals);
        self.credentials.push(credentials);
        self.scheduling.push(scheduling);
        known.told = kept;
        let [namespaces, groups] = look.sets(pid).unwrap_or_default();
        let clocks = match alike.clocks.get(&namespaces) {
            Some(clocks) => Clocks { pid, ..clocks.clone() },
            None => clocks::capture(pid)?,
        };
        match alike.groups.get(&groups) {
            Some(other) => self.cgroups.add_like(pid, *other),
            None => self.cgroups.add(pid)?,
        }
        if namespaces != 0 {
            alike.clocks.insert(namespaces, clocks.clone());
            alike.groups.insert(groups, pid);
        }
        self.clocks.push(clocks);
        Ok(())
    }

    /// Sessions and process groups that the job was started in, and is restarted in whatever they are then, get the number 0.
    ///
    /// # Errors
    /// [`Error::Refused`] when a process could not be brought into its session again.
    fn find_lineage(&mut self, job: &mut Job) -> Result<()> {
        let mut all = Ancestry::of_saved(&self.processes, &self.zombies);
        lineage::mark_outside(&mut all);
        if let Err(lost) = lineage::plan(&all) {
            refuse(job.judge(vec![lost.into_refusal()]))?;
        }
        let living = self.processes.iter_mut().map(|p| (&mut p.pgid, &mut p.sid));
        let ended = self.zombies.iter_mut().map(|z| (&mut z.pgid, &mut z.sid));
        for ((pgid, sid), now) in living.chain(ended).zip(all) {
            (*pgid, *sid) = (now.pgid, now.sid);
        }
        Ok(())
    }

    /// The mappings of each process that has an address space of its own, as they were after our own was taken out.
    pub fn take_vmas(&mut self) -> Vec<(i32, Arc<Vec<Vma>>)> {
        std::mem::take(&mut self.vmas)
    }

    /// Remembers the open files for the next checkpoint.
    pub fn teach(&self, descriptions: &mut files::kept::Past) {
        descriptions.learn(&self.files);
    }

    /// What a job leaves behind that is ended.
    pub fn take_parting(&mut self) -> Parting {
        std::mem::take(&mut self.parting)
    }

    /// Files whose bytes must go into the image.
    pub fn take_file_contents(&mut self) -> Vec<Source> {
        std::mem::take(&mut self.file_contents)
    }

    /// Puts the records into the image; of the descriptions, those that its parent does not have. Says which there are.
    ///
    /// # Errors
    /// When the image cannot take them.
    pub fn write(
        mut self,
        survey: &mut Survey,
        omitted: &Omitted,
        parent: &Digests,
        image: &ImageWriter,
    ) -> Result<Digests> {
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
        let (stored, digests) = Stored::new(self.files, parent)?;
        put(image, files::KIND, &stored)?;
        put(image, clocks::KIND, &self.clocks)?;
        put(image, scheduling::KIND, &self.scheduling)?;
        put(image, objects::KIND, &self.ipc)?;
        put(image, seccomp::KIND, &self.seccomp)?;
        put(image, cgroups::KIND, &self.cgroups)?;
        // A reader that does not know of it must not take the checkpoint to be whole.
        if !omitted.is_empty() {
            put(image, omitted::KIND, omitted)?;
        }
        put(image, zombies::KIND, &self.zombies)?;
        Ok(digests)
    }
}

/// Does two things, on two threads where there is an aide; the second one on the calling thread, which is the one that may stop the
/// job and look at it by ptrace.
fn beside<A: Send, B>(aide: Option<&mut Aide>, one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    if let Some(aide) = aide {
        return aide.beside(one, other);
    }
    // What asks threads of the job comes first.
    let other = other();
    (one(), other)
}

/// What processes have in common, and is not read again for each.
#[derive(Default)]
struct Alike {
    stamps: process::Stamps,
    /// By the kernel's set of namespaces.
    clocks: HashMap<u64, Clocks>,
    /// By the kernel's set of groups: a process that is in it.
    groups: HashMap<u64, i32>,
}

/// What the kernel remembers of interrupted waits. Only asked where a thread is in one.
struct Waits<'a> {
    pid: i32,
    tasks: Cow<'a, [TaskHidden]>,
    functions: Option<&'a RestartFunctions>,
}

impl<'a> Waits<'a> {
    fn look(pid: i32, watch: Option<&'a Watch>, look: &'a Look, contexts: &[Context]) -> Self {
        let any = contexts.iter().any(|c| threads::has_restart_block(&c.regs));
        let watch = watch.filter(|_| any);
        let tasks = match (watch, look.of(pid)) {
            (Some(watch), []) => watch.hints.tasks(pid).unwrap_or_default().into(),
            (_, tasks) => tasks.into(),
        };
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
