//! The eBPF programs at work for one job: what they noted, and what their iterators tell.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::checkpoint::narrow::Noted;
use crate::object::threads::RestartFunctions;
use crate::procfs::{self, Vma};
use crate::track::Hints;
use crate::track::hints::{AddressSpaceId, HintsError, TaskEvent};
use crate::track::iters::{Evidence, FileRecord, Outward, TaskHidden, VmaRecord};

/// Programs that follow a job.
pub struct Watch {
    /// The programs.
    pub hints: Hints,
    /// The kernel's functions that resume interrupted waits.
    pub functions: RestartFunctions,
    /// What they follow, by pid; none when they only look.
    spaces: Option<HashMap<i32, AddressSpaceId>>,
    /// Processes that are followed, or that those have made, and of which no program has said that they ended.
    living: BTreeSet<i32>,
    /// Those that have ended since this was last asked, with the time of that, since 1970.
    ended: Vec<(i32, Duration)>,
    /// By pid, mappings that were read.
    known: HashMap<i32, Known>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("spaces", &self.spaces).finish_non_exhaustive()
    }
}

impl Watch {
    /// Loads the programs and lets them follow processes.
    ///
    /// # Errors
    /// Why they cannot be used here.
    pub fn begin(pids: impl Iterator<Item = i32>) -> Result<Self, HintsError> {
        let mut watch = Self::of(Hints::load()?, Some(HashMap::new()));
        pids.for_each(|pid| watch.follow(pid));
        Ok(watch)
    }

    /// Loads only what looks, for a single checkpoint.
    ///
    /// # Errors
    /// Why they cannot be used here.
    pub fn look_only() -> Result<Self, HintsError> {
        Ok(Self::of(Hints::iterators()?, None))
    }

    fn of(hints: Hints, spaces: Option<HashMap<i32, AddressSpaceId>>) -> Self {
        let functions = RestartFunctions::read();
        Self { hints, functions, spaces, living: BTreeSet::new(), ended: Vec::new(), known: HashMap::new() }
    }

    /// Follows a process from now on, if it is not followed yet. Not to follow it loses nothing but a cross-check.
    pub fn follow(&mut self, pid: i32) {
        let Some(spaces) = self.spaces.as_mut().filter(|s| !s.contains_key(&pid)) else { return };
        match self.hints.follow(pid) {
            Ok(space) => {
                spaces.insert(pid, space);
                self.living.insert(pid);
            }
            Err(e) => log::info!("the eBPF programs do not follow pid {pid}: {e}"),
        }
    }

    /// Processes that have ended since this was last asked, with the time of that, since 1970.
    pub fn ended(&mut self) -> Vec<(i32, Duration)> {
        self.read_events();
        std::mem::take(&mut self.ended)
    }

    fn read_events(&mut self) {
        for event in self.hints.events().unwrap_or_default() {
            match event {
                TaskEvent::Fork { pid, child_pid, .. } if pid != child_pid => {
                    self.living.insert(child_pid);
                }
                TaskEvent::Exit { pid, last_thread: true, at, .. } => {
                    self.living.remove(&pid);
                    self.ended.push((pid, since_1970(at)));
                }
                // Of those that ended unheard, /proc knows.
                TaskEvent::Lost { .. } => self.living.extend(self.look().by_process.into_keys()),
                TaskEvent::Fork { .. } | TaskEvent::Exit { .. } | TaskEvent::Exec { .. } => {}
            }
        }
    }

    /// Follows the process in its new address space.
    pub fn follow_again(&mut self, pid: i32) {
        self.forget(pid);
        self.follow(pid);
    }

    /// Forgets a process whose address space is gone, and with it what was known of it.
    pub fn forget(&mut self, pid: i32) {
        self.known.remove(&pid);
        self.living.remove(&pid);
        if let Some(space) = self.spaces.as_mut().and_then(|s| s.remove(&pid)) {
            let _ = self.hints.unfollow(space);
        }
    }

    /// What the kernel keeps of every thread of the processes that are followed, in one pass.
    pub fn look(&self) -> Look {
        let mut by_process: HashMap<i32, Vec<TaskHidden>> = HashMap::new();
        if self.spaces.as_ref().is_some_and(|s| !s.is_empty()) {
            for task in self.hints.followed_tasks().unwrap_or_default() {
                by_process.entry(task.record.seen_tgid.cast_signed()).or_default().push(task);
            }
        }
        Look { by_process, has_evidence: self.hints.has_evidence(), shows_outward: self.hints.shows_outward() }
    }

    /// The descriptors of a process that stands still, if the kernel lists them.
    pub fn descriptors(&self, pid: i32) -> Option<Vec<FileRecord>> {
        self.hints.descriptors(pid).ok().flatten()
    }

    /// Has what was noted of written pages until now ready for [`Self::noted`].
    pub fn gather_ahead(&mut self) {
        if self.spaces.is_some()
            && let Err(e) = self.hints.gather_written()
        {
            unread(&e);
        }
    }

    /// Has what was noted of written pages ready for [`Self::take_noted`]. The job stands still.
    pub fn gather_written(&mut self) {
        if self.spaces.is_some()
            && let Err(e) = self.hints.gather_written_at_rest()
        {
            unread(&e);
        }
    }

    /// What was noted of the address space of a process since the last frozen window took it, between the calls of
    /// [`Self::gather_written`] before and after; nothing if it is not followed.
    pub fn take_noted(&mut self, pid: i32) -> Option<Noted> {
        let space = self.spaces.as_ref()?.get(&pid).copied()?;
        // Who comes later is seen by the next one.
        let followed = self.hints.followed(space).ok()?;
        let record = self.hints.gathered(space).inspect_err(unread).ok()?;
        Some(Noted { space, followed, record })
    }

    /// The same up to the last call of [`Self::gather_ahead`], which stays.
    pub fn noted(&self, pid: i32) -> Option<Noted> {
        let space = self.spaces.as_ref()?.get(&pid).copied()?;
        let followed = self.hints.followed(space).ok()?;
        let record = self.hints.noted(space).inspect_err(unread).ok()?;
        Some(Noted { space, followed, record })
    }

    /// Reads mappings, also in words, and remembers them: they are worth nothing if anything changed meanwhile.
    fn learn(&mut self, pid: i32) {
        let records = self.hints.vmas(pid).ok();
        let vmas = procfs::smaps(pid).map(Arc::new).ok();
        match records.zip(vmas) {
            Some((records, vmas)) => drop(self.known.insert(pid, Known { state: None, records, vmas })),
            None => drop(self.known.remove(&pid)),
        }
    }

    /// The mappings in words, if they are exactly those that are remembered.
    pub fn recall(&self, pid: i32, look: &Look) -> Option<Arc<Vec<Vma>>> {
        let known = self.known.get(&pid)?;
        let state = look.mappings_state(pid);
        let same = state.is_some() && state == known.state || same(&self.hints.vmas(pid).ok()?, &known.records);
        same.then(|| Arc::clone(&known.vmas))
    }

    /// Makes sure that the mappings of processes that run are remembered as they are now; those are not that change meanwhile.
    ///
    /// That they are the same before and after they were read in words does not tell that they were so when they were read: a program
    /// goes through the same mappings time and again. So it takes the kernel's count of changes.
    pub fn refresh(&mut self, pids: &[i32]) {
        /// Those that change all the time are read in the frozen window.
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            let before = self.look();
            let (known, unknown): (Vec<i32>, Vec<i32>) =
                pids.iter().partition(|pid| self.recall(**pid, &before).is_some());
            for pid in &unknown {
                self.learn(*pid);
            }
            let after = if unknown.is_empty() { Look::default() } else { self.look() };
            let is_sure = |pid: &i32| {
                let state = before.mappings_state(*pid);
                state.is_some() && state == after.mappings_state(*pid)
            };
            let (sure, doubtful): (Vec<i32>, Vec<i32>) = unknown.into_iter().partition(is_sure);
            for pid in known.iter().chain(&sure) {
                if let Some(known) = self.known.get_mut(pid) {
                    // Was it before the last change, then it never comes true again.
                    known.state = before.mappings_state(*pid);
                }
            }
            if doubtful.is_empty() {
                break;
            }
            for pid in doubtful {
                self.known.remove(&pid);
            }
        }
    }
}

/// Whom the programs know to be of the job, and to live: nobody, where there are no programs.
pub fn living(watch: &mut Option<Watch>) -> impl FnMut() -> Vec<i32> {
    move || {
        watch.as_mut().map_or_else(Vec::new, |watch| {
            watch.read_events();
            watch.living.iter().copied().collect()
        })
    }
}

fn unread(e: &HintsError) {
    log::info!("what the eBPF programs noted cannot be read: {e}");
}

/// A time of `CLOCK_MONOTONIC`, since 1970.
fn since_1970(at: Duration) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wall.saturating_sub(now.saturating_sub(at))
}

/// Mappings of a process.
struct Known {
    /// [`Look::mappings_state`] at a time when they were these.
    state: Option<(u64, u32)>,
    /// As the iterator gives them.
    records: Vec<VmaRecord>,
    /// In words, with their flags.
    vmas: Arc<Vec<Vma>>,
}

/// What the kernel kept of every thread of the job at one time.
#[derive(Debug, Default)]
pub struct Look {
    by_process: HashMap<i32, Vec<TaskHidden>>,
    has_evidence: bool,
    shows_outward: bool,
}

impl Look {
    /// Of the threads of a process; none if it is not followed.
    pub fn of(&self, pid: i32) -> &[TaskHidden] {
        self.by_process.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// What all answers of a process about itself depend on, if that is known and does not change by itself.
    pub fn evidence(&self, pid: i32) -> Option<Evidence> {
        self.has_evidence.then(|| Evidence::of(self.of(pid)))?
    }

    /// What is shown in `/proc` of a process with these threads depends on this, if that is known.
    pub fn outward(&self, pid: i32, ppid: i32, tids: &[i32]) -> Option<Outward> {
        let tasks = self.of(pid);
        (self.shows_outward && is_of(tasks, tids)).then(|| Outward::of(tasks, ppid))?
    }

    /// The name of a thread.
    pub fn name(&self, pid: i32, tid: i32) -> Option<Vec<u8>> {
        let task = self.of(pid).iter().find(|task| task.record.seen_tid.cast_signed() == tid);
        let name = task.filter(|_| self.shows_outward)?.record.name;
        Some(name.into_iter().take_while(|byte| *byte != 0).collect())
    }

    /// Whether these are all threads of a process, and have one table of descriptors.
    pub fn has_one_table(&self, pid: i32, tids: &[i32]) -> bool {
        let tasks = self.of(pid);
        let first = tasks.first().map_or(0, |task| task.record.files);
        first != 0 && is_of(tasks, tids) && tasks.iter().all(|task| task.record.files == first)
    }

    /// Names of the sets of namespaces and of control groups that a process is in.
    pub fn sets(&self, pid: i32) -> Option<[u64; 2]> {
        let leader = self.of(pid).iter().find(|task| task.actions.is_some())?;
        Some(leader.record.sets).filter(|sets| !sets.contains(&0))
    }

    /// What is different after any change of the mappings of a process: its address space, and a count of that.
    fn mappings_state(&self, pid: i32) -> Option<(u64, u32)> {
        let leader = self.of(pid).iter().find(|task| task.actions.is_some())?;
        Some((leader.record.mm, leader.record.mm_sequence)).filter(|(mm, sequence)| *mm != 0 && *sequence != 0)
    }
}

/// Whether they are exactly these threads.
fn is_of(tasks: &[TaskHidden], tids: &[i32]) -> bool {
    let is_one = |task: &TaskHidden| tids.contains(&task.record.seen_tid.cast_signed());
    tasks.len() == tids.len() && tasks.iter().all(is_one)
}

fn same(a: &[VmaRecord], b: &[VmaRecord]) -> bool {
    let key = |v: &VmaRecord| (v.start, v.end, v.flags, v.pgoff, v.inode, v.dev, v.has_file, v.anon_name);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| key(a) == key(b))
}
