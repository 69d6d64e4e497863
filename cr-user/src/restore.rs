//! The story of a restore, from top to bottom: read and check everything, make an empty process with the old pid, build its
//! memory, its files, its threads, track it, put every thread where it was, let it go.
//!
//! Nothing is made before everything was checked, and a process under construction dies with us: a restore that fails
//! leaves nothing behind but files that were cut back, whose tails are kept in the store.

mod body;
mod memory;
mod saved;
mod soul;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use crate::checkpoint::Job;
use crate::error::{Error, Result};
use crate::fault;
use crate::object::clocks;
use crate::object::files::{self, Cut, FilePolicy};
use crate::object::memory::Mapping;
use crate::object::memory::backing::Backing;
use crate::object::process;
use crate::object::spaces::Spaces;
use crate::phases::Phases;
use crate::remote::{Call, Gadgets};
use crate::store::{Chain, Store};
use crate::sys::{PAGE, fd, uffd};
use crate::track::Oracle;
use crate::track::oracle;

use body::Body;
use memory::Prepared;
use saved::Saved;

/// Where files that were cut back keep what was cut off, in the store.
pub const CUT_DIRECTORY: &str = "cut";

/// How a job is restored.
#[derive(Clone, Debug)]
pub struct Options {
    /// What happens to files that the job had open for writing and that grew after the checkpoint.
    pub files: FilePolicy,
}

/// A restored process that does not run yet. Dropping it ends it.
#[derive(Debug)]
pub struct Restored {
    body: Body,
    chain: Chain,
    oracle: Option<Oracle>,
    spaces: Spaces,
    cuts: Vec<Cut>,
    stopped: bool,
}

/// Restores the job of `store` as it was at checkpoint `id`, or at the newest.
///
/// Must be called from the thread that will call [`Restored::run`], which must live until then.
///
/// # Errors
/// Store and image errors when the chain is not intact, [`Error::NotHere`] when something that the job needs is missing.
pub fn restore(store: &Store, id: Option<u64>, options: &Options) -> Result<Restored> {
    let started = Instant::now();
    let chain = Chain::open(store, id)?;
    let saved = Saved::read(&chain)?;
    trust(store)?;
    let plan = saved.check(options.files)?;
    for path in &plan.modified {
        log::warn!("{} was modified after the checkpoint, and is left as it is", path.display());
    }
    // All of every image, also what newer images replace: a store that decays is to be known before it matters.
    let verify = |threads: usize| chain.images().iter().try_for_each(|image| image.verify_pages(threads));
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
    let cuts = files::roll_back(&plan, &store.dir().join(CUT_DIRECTORY), chain.newest().id())?;
    Ok(build(&chain, &saved, cuts, options)?.with(chain))
}

/// A restored process, but for the chain that it came from.
struct Built {
    body: Body,
    oracle: Option<Oracle>,
    spaces: Spaces,
    cuts: Vec<Cut>,
    stopped: bool,
}

impl Built {
    fn with(self, chain: Chain) -> Restored {
        let Self { body, oracle, spaces, cuts, stopped } = self;
        Restored { body, chain, oracle, spaces, cuts, stopped }
    }
}

fn build(chain: &Chain, saved: &Saved, cuts: Vec<Cut>, options: &Options) -> Result<Built> {
    let mut steps = Phases::new(Instant::now());
    let base = first_free_number(saved)?;
    let opened = files::open(&saved.files, base, &mut |space, file| memory::fill_object(chain, space, file))?;
    let put_back = options.files == FilePolicy::Rollback;
    let existing = |space| opened.by_space(space).map(|f| f.as_raw_fd());
    let prepared = Prepared::open(&saved.mappings.all, chain, base, put_back, existing)?;
    let exe = hold(&saved.process.exe.path, base)?;
    let (cwd, root) = (hold(&saved.process.cwd, base)?, hold(&saved.process.root, base)?);

    let keep_free: Vec<(u64, u64)> = saved.mappings.all.iter().map(|m| (m.start, m.end)).collect();
    steps.end("files");
    fault::point("restore.process")?;
    clocks::needed(&saved.clocks)?.map_or(Ok(()), clocks::shift)?;
    let mut body = Body::make(saved.process.pid, &keep_free)?;
    steps.end("process");
    body.run(0, session_calls(saved), "entering its session")?;
    body.run(0, process::xstate_calls(&saved.process), "asking for CPU features")?;
    prepared.build(&mut body, &saved.mappings.all, chain)?;
    steps.end("memory");
    fault::point("restore.memory")?;
    let fds = process::Inherited { exe: exe.as_raw_fd(), cwd: cwd.as_raw_fd(), root: root.as_raw_fd() };
    let (calls, bytes) = process::restore_calls(&saved.process, fds, body.data());
    body.put(&bytes)?;
    body.run(0, calls, "setting its directories and memory areas")?;
    let oracle = track(&mut body, saved)?;
    steps.end("tracking");
    fault::point("restore.tracking")?;
    let late = files::open_late(&saved.files)?;
    for batch in files::early_calls(&saved.files, body.pid(), &opened, body.data()) {
        body.put(&batch.bytes)?;
        body.run(0, batch.calls, "filling its epoll sets, and setting its timers")?;
    }
    body.run(0, files::calls(&saved.files.tables[0], &opened, &[]), "giving it its descriptors")?;
    for batch in late.calls(&saved.files, body.pid(), body.data()) {
        body.put(&batch.bytes)?;
        body.run(0, batch.calls, "giving it descriptors of itself")?;
    }
    soul::breathe(&mut body, saved)?;

    let mut spaces = Spaces::default();
    chain.space_ids().into_iter().for_each(|space| spaces.reserve(space));
    prepared.adopt(&mut spaces)?;
    for (space, file) in opened.spaces() {
        let stat = nix::sys::stat::fstat(file).map_err(|e| Error::system("examining a restored file", e))?;
        spaces.adopt(stat.st_dev, stat.st_ino, space);
    }
    let regs = soul::resume_waits(&mut body, saved)?;
    let syscall = Gadgets::find_outside(body.pid(), body.own_range())
        .map_err(|e| Error::system("looking through the restored code", e))?;
    body.remove_scratch(syscall)?;
    soul::put_in_place(saved, &regs)?;
    opened.settle(&saved.files)?;
    steps.end("threads");
    fault::point("restore.threads")?;
    log::debug!("pid {} was built in: {steps}", saved.process.pid);
    Ok(Built { body, oracle, spaces, cuts, stopped: saved.process.stopped })
}

impl Restored {
    /// The job's pid.
    pub fn job_pid(&self) -> i32 {
        self.body.pid()
    }

    /// Files that were cut back.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// Lets the job go. It is tracked already: the next checkpoint is a delta.
    ///
    /// # Errors
    /// When a thread could not be let go: then the job is ended.
    pub fn run(self) -> Result<Job> {
        let pid = self.body.pid();
        fault::point("restore.run")?;
        let job = Job::restored(pid, &self.chain, self.oracle, self.spaces)?;
        if self.stopped {
            // Taken by each thread as it is let go, as if job control had never let it run.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP);
        }
        self.body.release()?;
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

/// A job that led its session or group leads one again; any other belongs to ours.
fn session_calls(saved: &Saved) -> Vec<Call> {
    let process = &saved.process;
    if process.sid == process.pid {
        vec![Call::new(libc::SYS_setsid, &[])]
    } else if process.pgid == process.pid {
        vec![Call::new(libc::SYS_setpgid, &[0, 0])]
    } else {
        Vec::new()
    }
}

/// Puts the restored memory under tracking, all of it clean: what is written from the first instruction on is seen.
fn track(body: &mut Body, saved: &Saved) -> Result<Option<Oracle>> {
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
    for mapping in saved.mappings.all.iter().filter(|m| m.has_own_content()) {
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
