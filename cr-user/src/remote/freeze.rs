//! Stopping every thread of a job, and letting all go again whatever happens.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};

use crate::error::{Error, Refusal, Result};
use crate::family::{Family, Relative};
use crate::procfs;
use crate::sys::ptrace;
use crate::sys::task::{self, Change};
use crate::sys::vm;

/// A job whose every thread is stopped. Dropping it lets them go.
#[derive(Debug)]
pub struct Frozen {
    root: i32,
    /// When the first thread was stopped.
    since: Instant,
    /// Its living processes, the root first and parents before their children.
    processes: Vec<Stopped>,
    /// Its processes that have ended, and whose parents have not noticed.
    zombies: Vec<Relative>,
}

/// A process whose every thread is stopped.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// Its pid.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its threads, and for each the signal by which job control had stopped it already.
    threads: BTreeMap<i32, JobStop>,
}

impl Stopped {
    /// Its living threads, the main one first.
    pub fn tids(&self) -> Vec<i32> {
        let mut tids: Vec<i32> = self.threads.keys().copied().collect();
        tids.sort_by_key(|t| (*t != self.pid, *t));
        tids
    }

    /// Whether its main thread has ended before others.
    pub fn has_lost_its_head(&self) -> bool {
        !self.threads.contains_key(&self.pid)
    }

    /// The signal by which job control had stopped the process before we did.
    pub fn stop_signal(&self) -> Option<i32> {
        self.threads.values().find_map(|s| s.0)
    }
}

/// What a freeze traces: forks are followed, so that what is born meanwhile is stopped too.
pub const OPTIONS: i32 =
    libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACESYSGOOD;

impl Frozen {
    /// Stops every thread of the job, those born meanwhile included (`living`: see [`Family::members_among`]). A signal that a thread was about to take is taken
    /// (its handler entered, not run) before the stop.
    ///
    /// # Errors
    /// When a process may not be traced or has a tracer already, when the root ends meanwhile, or when a thread cannot be
    /// stopped, as one that waits in `vfork`. Nothing stays stopped then.
    pub fn freeze(family: &Family, living: &mut dyn FnMut() -> Vec<i32>) -> Result<Self> {
        let mut frozen = Self { root: family.root, since: Instant::now(), processes: Vec::new(), zombies: Vec::new() };
        let mut seized = BTreeSet::new();
        match frozen.stop_all(family, living, &mut seized) {
            Ok(()) if frozen.processes.first().is_none_or(|p| p.pid != family.root) => Err(gone(family.root)),
            Ok(()) => {
                frozen.processes.iter().flat_map(|p| p.threads.keys()).for_each(|tid| resume_endless_wait(*tid));
                Ok(frozen)
            }
            Err(e) => {
                frozen.adopt(&seized);
                Err(e)
            }
        }
    }

    fn stop_all(
        &mut self,
        family: &Family,
        living: &mut dyn FnMut() -> Vec<i32>,
        seized: &mut BTreeSet<(i32, i32)>,
    ) -> Result<()> {
        // What is born by one that is taken without its descendants is none of ours.
        let single = family.only.as_ref().is_some_and(|only| only.single);
        let options = if single { OPTIONS & !(libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK) } else { OPTIONS };
        loop {
            let members = family.members_among(living).map_err(|_| gone(family.root))?;
            let mut fresh = Vec::new();
            for member in members.iter().filter(|m| !m.zombie) {
                let tids = procfs::threads(member.pid).unwrap_or_default().into_iter();
                let may_have_ended = |tid: i32| tid != member.pid || procfs::voice(member.pid) != member.pid;
                let is_new = |t: &(i32, i32)| !(seized.contains(t) || may_have_ended(t.1) && has_ended(t.1));
                fresh.extend(tids.map(|tid| (member.pid, tid)).filter(is_new));
            }
            // One that has ended since it was listed is listed again, as the zombie that it is now.
            let is_held = |m: &Relative| m.zombie || self.processes.iter().any(|p| p.pid == m.pid);
            if fresh.is_empty() && members.iter().all(is_held) {
                self.arrange(&members);
                return Ok(());
            }
            if seized.is_empty() {
                self.since = Instant::now();
            }
            for &(pid, tid) in &fresh {
                match ptrace::seize(tid, options) {
                    Ok(()) => {}
                    Err(Errno::ESRCH) => continue,
                    // One born of a seized one is seized already, and stops by itself.
                    Err(Errno::EPERM) if traced_by_us(pid, tid) => {}
                    Err(Errno::EPERM) if has_ended(tid) => continue,
                    Err(e) => return Err(refused(pid, tid, e)),
                }
                seized.insert((pid, tid));
                let _ = ptrace::interrupt(tid);
            }
            // Stopped threads bear no more: once all known ones stand still, one more look finds the stragglers.
            for (pid, tid) in fresh {
                if seized.contains(&(pid, tid))
                    && let Some(stop) = wait_stopped(pid, tid)?
                {
                    self.take(pid, tid, stop);
                }
            }
        }
    }

    fn take(&mut self, pid: i32, tid: i32, stop: JobStop) {
        let at = self.processes.iter().position(|p| p.pid == pid).unwrap_or_else(|| {
            self.processes.push(Stopped { pid, ppid: 0, threads: BTreeMap::new() });
            self.processes.len() - 1
        });
        self.processes[at].threads.insert(tid, stop);
    }

    /// Puts the processes into the order of the family, as it was when all stood still.
    fn arrange(&mut self, members: &[Relative]) {
        for process in &mut self.processes {
            process.ppid = members.iter().find(|m| m.pid == process.pid).map_or(0, |m| m.ppid);
        }
        let place = |pid: i32| members.iter().position(|m| m.pid == pid).unwrap_or(usize::MAX);
        self.processes.sort_by_key(|p| place(p.pid));
        // One that has left the job, its session say, before it was stopped: nobody else would let it go.
        for stranger in self.processes.iter().filter(|p| place(p.pid) == usize::MAX) {
            for e in stranger.threads.keys().filter_map(|tid| let_go(stranger.pid, *tid).err()) {
                log::error!("pid {}: {e}", stranger.pid);
            }
        }
        // One that was killed in the middle, some of its threads before we had seen them.
        self.processes.retain(|p| place(p.pid) != usize::MAX && !members[place(p.pid)].zombie);
        self.zombies = members.iter().filter(|m| m.zombie).cloned().collect();
        for zombie in &self.zombies {
            let tids = procfs::threads(zombie.pid).unwrap_or_default();
            tids.into_iter().filter(|tid| traced_by_us(zombie.pid, *tid)).for_each(|tid| owe(zombie.pid, tid));
        }
    }

    /// Only a stopped thread can be let go: waits for those that were seized before something failed.
    fn adopt(&mut self, seized: &BTreeSet<(i32, i32)>) {
        for &(pid, tid) in seized {
            let known = self.processes.iter().any(|p| p.threads.contains_key(&tid));
            if !known && let Ok(Some(stop)) = wait_stopped(pid, tid) {
                self.take(pid, tid, stop);
            }
        }
    }

    /// When the first thread was stopped.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The job's root.
    pub fn root(&self) -> i32 {
        self.root
    }

    /// The living processes of the job, the root first and parents before their children.
    pub fn processes(&self) -> &[Stopped] {
        &self.processes
    }

    /// Processes that have ended, and whose parents have not noticed.
    pub fn zombies(&self) -> &[Relative] {
        &self.zombies
    }

    /// Lets every thread go.
    ///
    /// # Errors
    /// When a thread could not be let go; the others were.
    pub fn thaw(mut self) -> Result<()> {
        self.release()
    }

    /// Ends every process where it stands, and waits until all are dead: not an instruction of theirs is run any more.
    ///
    /// # Errors
    /// When one does not end.
    pub fn kill(mut self) -> Result<()> {
        let processes = std::mem::take(&mut self.processes);
        for process in &processes {
            // What we hold cannot be another by that number.
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        let mut first = None;
        for process in &processes {
            // The main thread is told of when the others have ended.
            for tid in process.tids().into_iter().rev() {
                first = first.or(wait_stopped(process.pid, tid).err());
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn release(&mut self) -> Result<()> {
        let mut first = None;
        let processes = std::mem::take(&mut self.processes);
        for (pid, tid) in processes.iter().flat_map(|p| p.threads.keys().map(|tid| (p.pid, *tid))) {
            first = first.or(let_go(pid, tid).err());
        }
        let_go_of_killed();
        first.map_or(Ok(()), Err)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(e) = self.release() {
            log::error!("pid {}: {e}", self.root);
        }
    }
}

/// Some calls answer `EINTR` at any stop, and are not started again by the kernel (`signal(7)`). One that would have waited
/// for ever starts again, as if nobody had stopped it. One with a time limit cannot: how much of it is left is not known.
fn resume_endless_wait(tid: i32) {
    const SYS_EPOLL_PWAIT2: i64 = 441;
    let Ok(mut regs) = ptrace::regs(tid) else { return };
    let endless = match regs.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => (regs.r10 as u32) == u32::MAX,
        SYS_EPOLL_PWAIT2 | libc::SYS_semtimedop => regs.r10 == 0,
        libc::SYS_rt_sigtimedwait => regs.rdx == 0,
        libc::SYS_io_getevents => regs.r8 == 0,
        libc::SYS_semop => true,
        _ => false,
    };
    if endless && regs.rax as i64 == -i64::from(libc::EINTR) {
        regs.rax = regs.orig_rax;
        regs.rip -= 2;
        regs.orig_rax = u64::MAX;
        if let Err(e) = ptrace::set_regs(tid, &regs) {
            log::warn!("thread {tid}: its wait ends early ({e})");
        }
    }
}

/// Looks at a thread while it stands still: for a moment, unless it does so already. `None` when it has ended.
///
/// # Errors
/// When it cannot be stopped, and what `look` says.
pub fn at_rest<T>(pid: i32, tid: i32, look: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    if traced_by_us(pid, tid) {
        return look().map(Some);
    }
    match ptrace::seize(tid, 0) {
        Err(_) if has_ended(tid) => return Ok(None),
        seized => seized.map_err(|e| refused(pid, tid, e))?,
    }
    let _ = ptrace::interrupt(tid);
    if wait_stopped(pid, tid)?.is_none() {
        return Ok(None);
    }
    resume_endless_wait(tid);
    let seen = look();
    let_go(pid, tid).and(seen.map(Some))
}

/// Lets a stopped thread go. One that was killed where it stood is let go to its parent once it has ended.
fn let_go(pid: i32, tid: i32) -> Result<()> {
    match ptrace::detach(tid, 0) {
        Ok(()) => Ok(()),
        Err(Errno::ESRCH) => {
            owe(pid, tid);
            Ok(())
        }
        Err(e) => Err(Error::system(format!("letting thread {tid} go"), e)),
    }
}

/// The signal of the job-control stop that a thread was in, if it was in one.
#[derive(Clone, Copy, Debug)]
struct JobStop(Option<i32>);

/// Waits until `tid` stands still; `None` when it ended instead.
fn wait_stopped(pid: i32, tid: i32) -> Result<Option<JobStop>> {
    /// A thread that has not stopped by then is looked at more closely.
    const PATIENCE: Duration = Duration::from_millis(50);
    /// One that waits for a disk or a file server does not hold the whole job up for longer.
    const LIMIT: Duration = Duration::from_secs(10);
    let started = Instant::now();
    loop {
        match task::poll_change(tid) {
            Ok(Some(Change::Trapped { signal, event: ptrace::EVENT_STOP })) => {
                return Ok(Some(JobStop((signal != libc::SIGTRAP).then_some(signal))));
            }
            // On its way to take a signal, or just past a clone: let it. This stop may have taken the place of the one that we asked for
            // (`ptrace_stop` in `kernel/signal.c`).
            Ok(Some(Change::Trapped { signal, event })) => {
                let deliver = if event == 0 { signal } else { 0 };
                let _ = ptrace::interrupt(tid);
                match ptrace::cont(tid, deliver) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(e) => return Err(Error::system(format!("stopping thread {tid}"), e)),
                }
            }
            Ok(Some(Change::Ended)) => {
                bury(pid, tid);
                return Ok(None);
            }
            Err(Errno::ECHILD) => return Ok(None),
            Err(e) => return Err(Error::system(format!("waiting for thread {tid} to stop"), e)),
            Ok(None) if started.elapsed() < Duration::from_millis(2) => std::thread::yield_now(),
            Ok(None) => {
                std::thread::sleep(Duration::from_micros(100));
                // A main thread that has ended before others is not told of.
                if tid == pid && has_ended(tid) {
                    owe(pid, tid);
                    return Ok(None);
                }
                if started.elapsed() > PATIENCE && is_in_vfork(pid, tid) {
                    return Err(Error::Refused(vec![in_vfork(pid, tid)]));
                }
                if started.elapsed() > LIMIT {
                    return Err(does_not_stop(pid, tid));
                }
            }
        }
    }
}

thread_local! {
    /// Threads (with their processes) that were ended while we traced them: the kernel keeps their end from the parent until we
    /// have heard of it, and only the thread that seized them can. That may be later: one that was killed is still dying, and a
    /// main thread that ended before others is taken back from nobody until the last of these has ended.
    static OWED: RefCell<BTreeSet<(i32, i32)>> = const { RefCell::new(BTreeSet::new()) };
}

/// Takes note that a tracee was killed where it stood, by another that was let go before it say: [`let_go_of_ended`] lets it go
/// to its parent.
pub fn owe(pid: i32, tid: i32) {
    OWED.with_borrow_mut(|owed| owed.insert((pid, tid)));
}

/// Whether [`let_go_of_ended`] may have something to do later.
pub fn holds_ended() -> bool {
    OWED.with_borrow(|owed| !owed.is_empty())
}

/// Lets those go to their parents that have ended altogether since. Costs nothing where there are none.
pub fn let_go_of_ended() {
    OWED.with_borrow_mut(|owed| {
        owed.retain(|&(pid, tid)| traced_by_us(pid, tid) && !is_buried(pid, tid));
    });
}

/// The same for those that were killed a moment ago: they are waited for a little, as their parents may wait for them.
pub fn let_go_of_killed() {
    const PATIENCE: Duration = Duration::from_millis(20);
    let started = Instant::now();
    while holds_ended() && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_micros(50));
        let_go_of_ended();
    }
}

/// A tracee that has ended is kept from its parent until we have waited for it. What is our own child as well is left for
/// whoever wants to know how it ended.
fn bury(pid: i32, tid: i32) {
    if !is_our_child(pid, tid) {
        let _ = task::wait_end(tid);
    }
}

/// The same, if it has ended by now.
fn is_buried(pid: i32, tid: i32) -> bool {
    is_our_child(pid, tid) || !matches!(task::reap(tid), Ok(None))
}

fn is_our_child(pid: i32, tid: i32) -> bool {
    let parent = procfs::Status::read(pid, tid).map(|s| s.numbers("PPid").first().copied().unwrap_or(0));
    tid == pid && parent.is_ok_and(|p| p == std::process::id())
}

/// Whether a thread has ended, told or not.
pub fn has_ended(tid: i32) -> bool {
    procfs::stat(tid).map_or(true, |s| s.first().is_none_or(|state| matches!(state.as_str(), "Z" | "X")))
}

/// Whether a thread waits for its child of `vfork` to execute a program, which nothing interrupts.
fn is_in_vfork(pid: i32, tid: i32) -> bool {
    if procfs::stat(tid).is_ok_and(|s| s.first().is_none_or(|state| state != "D")) {
        return false;
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let number = words.next().and_then(|w| w.parse::<i64>().ok());
    let first = words.next().and_then(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok()).unwrap_or(0);
    let flags = match number {
        Some(libc::SYS_vfork) => return true,
        Some(libc::SYS_clone) => first,
        Some(libc::SYS_clone3) => {
            let mut flags = [0; 8];
            let _ = vm::read(tid, &[vm::Range { start: first, len: 8 }], &mut flags);
            u64::from_le_bytes(flags)
        }
        _ => 0,
    };
    flags & libc::CLONE_VFORK as u64 != 0
}

/// How long a child of `vfork` may take until it executes its program: seldom more than a moment.
pub const VFORK_PATIENCE: Duration = Duration::from_secs(2);

/// Why a thread of a running process could not be stopped, if it waits in `vfork` for that long.
pub fn stays_in_vfork(pid: i32, tid: i32) -> Option<Refusal> {
    let started = Instant::now();
    while is_in_vfork(pid, tid) {
        if started.elapsed() > VFORK_PATIENCE {
            return Some(in_vfork(pid, tid));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn in_vfork(pid: i32, tid: i32) -> Refusal {
    let child = procfs::children(pid).unwrap_or_default();
    let child =
        child.iter().find(|c| crate::sys::fd::shares(**c, tid, crate::sys::fd::Shared::Memory).unwrap_or(false));
    let why = format!("waits in vfork for its child {} to execute a program", child.copied().unwrap_or(0));
    let todo = "try again once it has; a program that stays in that state cannot be checkpointed".to_owned();
    Refusal { pid, place: format!("thread {tid}"), why, todo }
}

fn does_not_stop(pid: i32, tid: i32) -> Error {
    let place = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).unwrap_or_default();
    let why = format!("thread {tid} waits in the kernel ({place}) and cannot be stopped");
    Error::NotAllowed { pid, why, todo: "see whether a disk or file server hangs, and try again".to_owned() }
}

fn traced_by_us(pid: i32, tid: i32) -> bool {
    procfs::Status::read(pid, tid).is_ok_and(|s| tracer(&s).is_some_and(is_ours))
}

/// Who traces a thread, if that is not we: a pid and its name.
pub fn other_tracer(status: &procfs::Status) -> Option<String> {
    let tracer = tracer(status).filter(|t| !is_ours(*t))?;
    let name = std::fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
    Some(format!("pid {tracer} ({})", name.trim()))
}

fn tracer(status: &procfs::Status) -> Option<i32> {
    status.numbers("TracerPid").first().map(|t| *t as i32).filter(|t| *t != 0)
}

fn is_ours(tracer: i32) -> bool {
    tracer == gettid().as_raw() || procfs::threads(std::process::id() as i32).is_ok_and(|own| own.contains(&tracer))
}

fn gone(pid: i32) -> Error {
    Error::JobGone { pid, during: "the freeze" }
}

fn refused(pid: i32, tid: i32, e: Errno) -> Error {
    if let Some(tracer) = procfs::Status::read(pid, tid).ok().and_then(|s| other_tracer(&s)) {
        return Error::NotAllowed {
            pid,
            why: format!("thread {tid} is traced by {tracer}"),
            todo: "let that one detach first".to_owned(),
        };
    }
    match e {
        Errno::EPERM => Error::NotAllowed {
            pid,
            why: format!("the kernel does not let us trace thread {tid}"),
            todo: "run cr as root, or as the job's owner".to_owned(),
        },
        e => Error::system(format!("seizing thread {tid}"), e),
    }
}
