//! The story of a restore, from top to bottom: read and check everything, make empty processes with the old pids, build the
//! memory of each, their files, their threads, track them, put every thread where it was, let them go.
//!
//! Each process is made by its own parent, as a copy of it whose memory is already there: so parents, sessions and shared
//! pages are what they were. Nothing is made before everything was checked, and processes under construction die with us: a
//! restore that fails leaves nothing behind but files that were cut back, whose tails are kept in the store.

mod aio;
mod birth;
mod body;
mod crew;
mod inherit;
mod ipc;
mod memory;
mod outside;
mod saved;
mod soul;
mod unpack;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use crate::bucket;
use crate::checkpoint::Job;
use crate::error::{Error, Result};
use crate::fault;
use crate::integrity;
use crate::object::clocks;
use crate::object::files::caller::{Caller, Lent};
use crate::object::files::external::{self, Key};
use crate::object::files::{self, Cut, FilePolicy, inet};
use crate::object::memory::Mapping;
use crate::object::memory::backing::Backing;
use crate::object::omitted::Omitted;
use crate::object::process;
use crate::object::spaces::Spaces;
use crate::phases::Phases;
use crate::recorded::Records;
use crate::remote::{Call, Gadgets, freeze};
use crate::store::{self, Chain, Store};
use crate::sys::ptrace::Regs;
use crate::sys::{PAGE, fd, uffd};
use crate::track::Oracle;
use crate::track::oracle;

use birth::Birth;
use body::Body;
use crew::Hands;
use memory::Prepared;
use outside::Outside;
use saved::{Living, Saved};

/// Where files that were cut back keep what was cut off, in the store.
pub const CUT_DIRECTORY: &str = "cut";

/// How a job is restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What happens to files that the job had open for writing and that grew after the checkpoint.
    pub files: FilePolicy,
    /// Memory that the checkpoint leaves out may be zeroes, or what is in the mapped file.
    pub accept_missing: bool,
    /// Who is to be connected to may be one to whom the job is not connected any more: it goes on where it stopped, with the
    /// options that it was started with.
    pub resume: bool,
    /// What becomes of TCP connections with somebody outside of the job; none: what the checkpoint says.
    pub tcp: Option<inet::Policy>,
}

impl Options {
    fn tcp(self, saved: &Saved) -> inet::Policy {
        self.tcp.unwrap_or(saved.files.tcp)
    }
}

/// A restored job that does not run yet. Dropping it ends it.
#[derive(Debug)]
pub struct Restored {
    job: Built,
    chain: Chain,
}

/// Restores the job of `store` as it was at checkpoint `id`, or at the newest.
///
/// `external`: whom outside of the job its Unix sockets are connected to instead of those that they were connected to.
///
/// Must be called from the thread that will call [`Restored::run`], which must live until then.
///
/// # Errors
/// Store and image errors when the chain is not intact, [`Error::NotHere`] when something that the job needs is missing.
pub fn restore(store: &Store, id: Option<u64>, options: Options, external: &[Key]) -> Result<Restored> {
    let started = Instant::now();
    let chain = Chain::open(store, id)?;
    store.check_trust(&chain)?;
    // First of all: records that lead to what was left out make no whole.
    let omitted = Omitted::of_image(chain.newest())?;
    omitted.check(chain.newest().id(), options.accept_missing)?;
    let records = Records::read(&chain)?;
    integrity::of(&chain, &records)?;
    let mut saved = Saved::new(records)?;
    external::redirect(&mut saved.files, external, !options.resume)?;
    trust(store)?;
    let plan = saved.check(options.files, options.tcp(&saved))?;
    for path in &plan.modified {
        log::warn!("{} was modified after the checkpoint, and is left as it is", path.display());
    }
    // All of every image, also what newer images replace: a store that decays is to be known before it matters.
    // The spool of a bucket may lack these.
    let sparse = store.dir().join(bucket::STATE).exists();
    let verify = |threads: usize| -> store::Result<()> {
        if sparse {
            return chain.verify_pages(threads);
        }
        Ok(chain.images().iter().try_for_each(|image| image.verify_pages(threads))?)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if plan.is_empty() && !saved.has_stored_files() {
        // Nothing outside the new process will be touched: it can be built while its pages are still being checked, and is
        // thrown away should one be damaged.
        let (built, checked) = std::thread::scope(|scope| {
            let checking = scope.spawn(|| verify(1));
            let built = build(&chain, &saved, Vec::new(), options);
            (built, checking.join().expect("the checking thread does not panic"))
        });
        checked?;
        log::debug!("restored in {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
        return Ok(built?.with(chain));
    }
    verify(cores)?;
    let cuts = files::roll_back(store.disk(), &plan, &store.dir().join(CUT_DIRECTORY), chain.newest().id())?;
    Ok(build(&chain, &saved, cuts, options)?.with(chain))
}

/// Reads all records of the newest image of a chain, as a restore does before it looks at the machine and but for what the chain holds
/// of memory, and changes nothing.
///
/// # Errors
/// When one is missing, or is not valid.
pub fn check_records(chain: &Chain) -> Result<()> {
    let records = Records::read(chain)?;
    integrity::of_records(chain, &records)?;
    let saved = Saved::new(records)?;
    for living in &saved.living {
        let owner = saved.owner_of_memory(living.pid());
        if saved.find(owner).is_none() {
            let what = format!("pid {} has the memory of {owner}, which is not in it", living.pid());
            return Err(crate::image::Error::damaged(chain.newest().path(), what).into());
        }
    }
    Ok(())
}

/// A restored job, but for the chain that it came from.
#[derive(Debug)]
struct Built {
    /// Its processes, the root first.
    bodies: Vec<Body>,
    /// System V objects that were made for it.
    made: ipc::Made,
    /// What watches each address space.
    oracles: HashMap<i32, Option<Oracle>>,
    spaces: Spaces,
    cuts: Vec<Cut>,
    /// What its terminal is to be like.
    caller: Option<Caller>,
    /// Its connections with somebody outside, which go on when it does.
    outside: Outside,
}

impl Built {
    fn with(self, chain: Chain) -> Restored {
        Restored { job: self, chain }
    }
}

fn build(chain: &Chain, saved: &Saved, cuts: Vec<Cut>, options: Options) -> Result<Built> {
    let mut steps = Phases::new(Instant::now());
    let base = first_free_number(saved)?;
    let outside = Outside::hush(&saved.files, options.tcp(saved));
    let mut fill = |space, file: &File| memory::fill_object(chain, space, file);
    let mut opened = files::open(&saved.files, base, options.tcp(saved), &mut fill)?;
    fault::point("restore.sockets")?;
    let put_back = options.files == FilePolicy::Rollback;
    let existing = |space| opened.by_space(space).map(|f| f.as_raw_fd());
    let prepared = Prepared::open(saved.mappings(), chain, base, put_back, existing, &saved.omitted)?;
    let places = Places::hold(saved, &opened, base)?;
    steps.end("files");
    fault::point("restore.process")?;
    clocks::needed(&saved.root().clocks)?.map_or(Ok(()), clocks::shift)?;
    let terminals = files::pty::controlling(&saved.files, &opened);
    let mut bodies = Birth::new(saved, chain, &prepared, terminals).all()?;
    let mut made = ipc::Made::default();
    ipc::attach(&mut bodies, saved, chain, &mut made)?;
    steps.end("processes and memory");
    fault::point("restore.memory")?;
    // Before anybody has other directories or rights: what sockets note of their makers is given with the calls.
    let mut hands = Hands::new(&mut bodies);
    let mut late = files::make_sockets(&saved.files, &mut opened, &mut hands)?;
    hands.dismiss()?;

    let mut oracles = HashMap::new();
    for body in &mut bodies {
        let living = saved.find(body.pid()).expect("a body for each");
        memory::finish(body, &living.mappings)?;
        let (calls, bytes) = process::restore_calls(&living.process, places.of(living), body.data());
        body.put(&bytes)?;
        body.run(0, calls, "setting its directories and memory areas")?;
        if !living.process.sharing.memory {
            oracles.insert(body.pid(), track(body, living)?);
        }
    }
    steps.end("tracking");
    fault::point("restore.tracking")?;
    late.open_rest(&saved.files)?;
    let owns_table = |pid: i32| saved.files.table_of(pid).filter(|t| t.pids[0] == pid);
    for body in &mut bodies {
        let Some(table) = owns_table(body.pid()) else { continue };
        for batch in files::early_calls(&saved.files, body.pid(), &opened, body.data()) {
            body.put(&batch.bytes)?;
            body.run(0, batch.calls, "filling its epoll sets, and setting its timers")?;
        }
        body.run(0, files::calls(table, &opened, &[]), "giving it its descriptors")?;
    }
    for body in &mut bodies {
        if owns_table(body.pid()).is_none() {
            continue;
        }
        for batch in late.calls(&saved.files, body.pid(), body.data()) {
            body.put(&batch.bytes)?;
            body.run(0, batch.calls, "giving it descriptors of the job's processes")?;
        }
    }
    for body in &mut bodies {
        for mut own in files::own_calls(&saved.files, body.pid(), body.data()) {
            body.put(&own.bytes)?;
            body.try_run(0, &mut own.calls)?;
            own.judge(&saved.files)?;
        }
    }
    ipc::restore(&mut bodies, saved, &mut made)?;
    give_life(&mut bodies, saved)?;

    let mut spaces = Spaces::default();
    chain.space_ids().into_iter().for_each(|space| spaces.reserve(space));
    prepared.adopt(&mut spaces)?;
    ipc::adopt(saved, &mut spaces);
    for (space, file) in opened.spaces() {
        let stat = nix::sys::stat::fstat(file).map_err(|e| Error::system("examining a restored file", e))?;
        spaces.adopt(stat.st_dev, stat.st_ino, space);
    }
    opened.settle(&saved.files)?;
    steps.end("threads");
    fault::point("restore.threads")?;
    log::debug!("pid {} was built in: {steps}", saved.root().pid());
    let outside = outside.with(opened.take_revived());
    Ok(Built { bodies, made, oracles, spaces, cuts, caller: saved.files.caller, outside })
}

/// The last steps before the job runs: threads, signals, timers and rights; waits that have a time limit are started again,
/// our own mappings taken out, and every thread gets its registers.
///
/// Children come before their parents: those that job control had stopped are stopped again, and what their parents hear of
/// that is what they had heard.
fn give_life(bodies: &mut [Body], saved: &Saved) -> Result<()> {
    let living = |pid: i32| saved.find(pid).expect("a body for each");
    let mut regs = HashMap::new();
    for at in (0..bodies.len()).rev() {
        let body = &mut bodies[at];
        let own = living(body.pid());
        soul::breathe(body, own, saved)?;
        if own.process.stop_signal != 0 {
            // With it goes the place from which those make calls who have the same memory.
            for sharer in bodies.iter_mut().filter(|b| saved.owner_of_memory(b.pid()) == own.pid()).rev() {
                settle(sharer, living(sharer.pid()), &mut regs)?;
            }
            stop_again(bodies, at, own)?;
        }
    }
    for body in bodies.iter_mut().rev() {
        let own = living(body.pid());
        settle(body, own, &mut regs)?;
    }
    bodies.iter().try_for_each(|body| soul::put_in_place(living(body.pid()), &regs[&body.pid()]))
}

/// The last calls that a process makes for us.
fn settle(body: &mut Body, own: &Living, regs: &mut HashMap<i32, Vec<Regs>>) -> Result<()> {
    if regs.contains_key(&body.pid()) {
        return Ok(());
    }
    regs.insert(body.pid(), soul::resume_waits(body, own)?);
    // Who shares its parent's memory comes before it.
    if !own.process.sharing.memory {
        let syscall = Gadgets::find_outside(body.pid(), body.own_range())
            .map_err(|e| Error::system("looking through the restored code", e))?;
        body.remove_scratch(syscall)?;
    }
    Ok(())
}

fn stop_again(bodies: &mut [Body], at: usize, own: &Living) -> Result<()> {
    bodies[at].stop(own.process.stop_signal)?;
    let pid = own.pid();
    if let Some(parent) = bodies.iter_mut().find(|b| b.pid() == own.process.ppid).filter(|_| own.process.stop_told) {
        let options = (libc::WSTOPPED | libc::WNOHANG | libc::__WALL) as u64;
        let wait = Call::new(libc::SYS_waitid, &[libc::P_PID.into(), pid as u64, 0, options, 0]);
        parent.run(0, vec![wait], "telling of a stopped child")?;
    }
    Ok(())
}

/// Executables and directories of the processes, held open for them.
struct Places {
    by_path: HashMap<String, OwnedFd>,
    /// Working directories that were removed, by process.
    removed: HashMap<i32, i32>,
}

impl Places {
    fn hold(saved: &Saved, opened: &files::Opened, base: i32) -> Result<Self> {
        let (mut by_path, mut removed) = (HashMap::new(), HashMap::new());
        for process in saved.living.iter().map(|l| &l.process) {
            let lost = opened.working_directory(&saved.files, process.pid);
            removed.extend(lost.map(|fd| (process.pid, fd)));
            let cwd = Some(&process.cwd).filter(|_| lost.is_none());
            for path in [&process.exe.path, &process.root].into_iter().chain(cwd) {
                if !by_path.contains_key(path) {
                    by_path.insert(path.clone(), hold(path, base)?);
                }
            }
        }
        Ok(Self { by_path, removed })
    }

    fn of(&self, living: &Living) -> process::Inherited {
        let number = |path: &String| self.by_path[path].as_raw_fd();
        let process = &living.process;
        let cwd = self.removed.get(&process.pid).copied().unwrap_or_else(|| number(&process.cwd));
        process::Inherited { exe: number(&process.exe.path), cwd, root: number(&process.root) }
    }
}

impl Restored {
    /// Lends the job our terminal, if it had one and we are in its foreground.
    pub fn lend_terminal(&self) -> Option<Lent> {
        self.job.caller.and_then(Caller::lend)
    }

    /// The pid of the job's root.
    pub fn job_pid(&self) -> i32 {
        self.job.bodies[0].pid()
    }

    /// Files that were cut back.
    pub fn cuts(&self) -> &[Cut] {
        &self.job.cuts
    }

    /// Lets the job go. It is tracked already: the next checkpoint is a delta.
    ///
    /// # Errors
    /// When a thread could not be let go: then the job is ended.
    pub fn run(self) -> Result<Job> {
        let pid = self.job_pid();
        fault::point("restore.run")?;
        let Built { bodies, made, oracles, spaces, outside, .. } = self.job;
        let job = Job::restored(pid, &self.chain, oracles, spaces)?;
        let silence = outside.go(self.chain.newest().job())?;
        bodies.into_iter().try_for_each(Body::release)?;
        freeze::let_go_of_killed();
        made.keep();
        drop(silence);
        Ok(job)
    }
}

/// An image makes a process with any credentials: only one's own, or root's, is to be trusted.
fn trust(store: &Store) -> Result<()> {
    let not_trusted = |why: String| Error::NotHere {
        what: format!("the store {}", store.dir().display()),
        why,
        todo: "copy it as the user who restores it, if you trust it (cp -r), and chmod 700 the copy".to_owned(),
    };
    let meta = std::fs::metadata(store.dir()).map_err(|e| Error::system("examining the store", e))?;
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(not_trusted(format!(
            "it belongs to user {}, who could have made a job with any rights",
            meta.uid()
        )));
    }
    if meta.permissions().mode() & 0o022 != 0 {
        return Err(not_trusted("others than its owner may write to it".to_owned()));
    }
    Ok(())
}

/// A number above all descriptors of the job, from which on ours are passed to it.
fn first_free_number(saved: &Saved) -> Result<i32> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let failed = |e| Error::system("raising our limit of open files", e);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
    let last = saved.files.numbers().max().unwrap_or(2);
    Ok((last + 1).max(256))
}

fn hold(path: &str, base: i32) -> Result<OwnedFd> {
    let file = File::open(path).map_err(|e| Error::system(format!("opening {path}"), e))?;
    fd::dup_above(file.as_fd(), base).map_err(|e| Error::system(format!("holding {path}"), e))
}

/// Puts the restored memory under tracking, all of it clean: what is written from the first instruction on is seen.
fn track(body: &mut Body, living: &Living) -> Result<Option<Oracle>> {
    let flags = u64::from(libc::O_CLOEXEC as u32) | uffd::USER_MODE_ONLY;
    let mut calls = [Call::new(libc::SYS_userfaultfd, &[flags])];
    body.try_run(0, &mut calls)?;
    let Ok(number) = calls[0].outcome() else { return Ok(None) };
    let pidfd = fd::pidfd_open(body.pid()).map_err(|e| Error::system("opening a pidfd", e))?;
    let ours =
        fd::pidfd_getfd(pidfd.as_fd(), number as i32).map_err(|e| Error::system("fetching the userfaultfd", e))?;
    body.run(0, vec![Call::new(libc::SYS_close, &[number])], "closing its userfaultfd")?;
    let Ok(oracle) = Oracle::adopt(body.pid(), ours) else { return Ok(None) };
    let pagemap = oracle::pagemap_of(body.pid())?;
    for mapping in living.mappings.iter().filter(|m| m.has_own_content()) {
        let worthwhile = mapping.is_anonymous() || mapping.prot & libc::PROT_WRITE != 0;
        if matches!(mapping.backing, Backing::File(_) | Backing::Anonymous | Backing::Object(_))
            && worthwhile
            && oracle.register(mapping.start, mapping.end).is_ok()
        {
            protect(&oracle, &pagemap, mapping)?;
        }
    }
    Ok(Some(oracle))
}

/// Only what is there: to protect a reservation would fill its page tables.
fn protect(oracle: &Oracle, pagemap: &File, mapping: &Mapping) -> Result<()> {
    let backing = oracle::backing(pagemap, mapping.start, mapping.end, mapping.is_anonymous())
        .map_err(|e| Error::system("PAGEMAP_SCAN of the new process", e))?;
    for pages in backing.own.iter() {
        oracle.written(pages.start * PAGE, pages.end * PAGE, true)?;
    }
    Ok(())
}
