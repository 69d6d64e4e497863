//! The state of a stopped job that is not memory, as records.

use std::os::fd::AsFd;

use crate::checkpoint::survey::Survey;
use crate::checkpoint::{Job, refuse};
use crate::error::{Error, Result};
use crate::fault;
use crate::image::ImageWriter;
use crate::object::clocks::{self, Clocks};
use crate::object::credentials::{self, Credentials};
use crate::object::files::{self, Files};
use crate::object::memory::backing::Source;
use crate::object::memory::{self, Mappings};
use crate::object::process::{self, Process};
use crate::object::records::{get, put};
use crate::object::scheduling::{self, Scheduling};
use crate::object::signals::{self, Signals};
use crate::object::threads::{self, RestartFunctions, Threads, Wait};
use crate::object::timers::{self, Timers};
use crate::procfs::{Status, Vma};
use crate::remote::{Frozen, Gadgets, Puppet, Questions};
use crate::store::Chain;
use crate::sys::ptrace::{self, Regs};
use crate::track::iters::TaskHidden;

/// Everything about a stopped process but the content of its memory.
#[derive(Debug)]
pub struct State {
    process: Process,
    threads: Threads,
    signals: Signals,
    timers: Timers,
    credentials: Credentials,
    scheduling: Scheduling,
    files: Files,
    clocks: Clocks,
    file_contents: Vec<Source>,
    vmas: Vec<Vma>,
}

impl State {
    /// Asks the kernel, and has each thread ask for what only it may ask.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn collect(job: &mut Job, frozen: &Frozen) -> Result<Self> {
        let pid = job.pid;
        let gadgets = match job.gadgets.filter(|g| g.still_there(pid)) {
            Some(gadgets) => gadgets,
            None => {
                Gadgets::find(pid).map_err(|e| Error::system(format!("looking through the code of pid {pid}"), e))?
            }
        };
        job.gadgets = Some(gadgets);
        // Born since the preflight.
        refuse(process::children(pid)?)?;
        let tids = frozen.tids();
        let mut threads = Threads { pid, all: Vec::new() };
        let mut signals = Signals { pid, actions: Vec::new(), queued: Vec::new(), threads: Vec::new() };
        let mut credentials = Credentials { pid, threads: Vec::new() };
        let mut scheduling = Scheduling { pid, threads: Vec::new() };

        let waits = Waits::look(job, &tids);
        let mut puppet = Puppet::begin(pid, &tids, gadgets)?;
        let mut questions = Questions::new(&puppet);
        let (actions, knobs) = (signals::ask(&mut questions), process::ask(&mut questions));
        let clocks = timers::ask(pid, &mut questions)?;
        let answers = questions.put(&mut puppet)?;
        signals.actions = signals::actions(actions, &answers);
        let timers = timers::capture(pid, clocks, &answers);
        fault::point("collect.process")?;
        let process = process::capture(pid, frozen.was_stopped(), knobs, &answers)?;
        for tid in tids {
            puppet.switch(tid)?;
            let mut questions = Questions::new(&puppet);
            let (own, rights, turns) =
                (threads::ask(&mut questions), credentials::ask(&mut questions), scheduling::ask(&mut questions));
            let answers = questions.put(&mut puppet)?;
            let status = Status::read(pid, tid).map_err(|_| job.gone("the collection of its state"))?;
            refuse(threads::refusals(pid, tid, &status))?;
            let context = puppet.context();
            let xstate = context.xstate.clone();
            let wait = waits.of(tid, &context.regs);
            threads.all.push(threads::capture(pid, tid, &context.regs, xstate, own, &answers, wait)?);
            signals.threads.push(signals::capture_thread(tid, context.sigmask)?);
            credentials.threads.push(credentials::capture(tid, &status, rights, &answers));
            scheduling.threads.push(scheduling::capture(tid, turns, &answers)?);
            fault::point("collect.threads")?;
        }
        signals.queued = signals::queued_for_process(pid)?;
        puppet.end()?;
        let vmas = job.mappings_now()?;
        let spaces = &mut job.spaces;
        let (files, contents) = files::capture(
            &[files::Holder { pid, pidfd: job.pidfd.as_fd(), sharers: Vec::new() }],
            &mut |dev, ino| spaces.of_file(dev, ino),
        )?;
        let file_contents =
            contents.into_iter().map(|c| Source { space: c.space, file: c.file, range: 0..c.len }).collect();
        let clocks = clocks::capture(pid)?;
        Ok(Self { process, threads, signals, timers, credentials, scheduling, files, clocks, file_contents, vmas })
    }

    /// The mappings as they were after our own was taken out.
    pub fn vmas(&self) -> &[Vma] {
        &self.vmas
    }

    /// Files whose bytes must go into the image.
    pub fn take_file_contents(&mut self) -> Vec<Source> {
        std::mem::take(&mut self.file_contents)
    }

    /// Puts the records into the image.
    ///
    /// # Errors
    /// When the image cannot take them.
    pub fn write(self, survey: &mut Survey, image: &ImageWriter) -> Result<()> {
        let mappings = Mappings { pid: self.process.pid, all: std::mem::take(&mut survey.mappings) };
        put(image, process::KIND, &vec![self.process])?;
        put(image, threads::KIND, &vec![self.threads])?;
        put(image, memory::KIND, &vec![mappings])?;
        put(image, signals::KIND, &vec![self.signals])?;
        put(image, timers::KIND, &vec![self.timers])?;
        put(image, credentials::KIND, &vec![self.credentials])?;
        put(image, files::KIND, &self.files)?;
        put(image, clocks::KIND, &vec![self.clocks])?;
        put(image, scheduling::KIND, &vec![self.scheduling])
    }
}

/// What the kernel remembers of interrupted waits. Only asked where a thread is in one.
struct Waits<'a> {
    pid: i32,
    tasks: Vec<TaskHidden>,
    functions: Option<&'a RestartFunctions>,
}

impl<'a> Waits<'a> {
    fn look(job: &'a Job, tids: &[i32]) -> Self {
        let any = tids.iter().any(|tid| ptrace::regs(*tid).is_ok_and(|r| threads::has_restart_block(&r)));
        let watch = job.watch.as_ref().filter(|_| any);
        let tasks = watch.and_then(|w| w.hints.tasks(job.pid).ok()).unwrap_or_default();
        Self { pid: job.pid, tasks, functions: watch.map(|w| &w.functions) }
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
    if known.iter().any(|p| p.pid == pid) {
        return Ok(());
    }
    Err(Error::OtherJob { pid, owner: known.first().map_or(0, |p| p.pid) })
}
