//! What the eBPF programs saw: hints, beside the oracle of the page tables.
//!
//! The programs are loaded once and follow the processes that [`Hints::follow`] names, with the processes that these
//! fork and the images that they exec. They record, they never hold the job up, and they may miss: each answer says how
//! much was lost, and what raises no fault is never in it (see [`Hints::drain_written`]). Dropping [`Hints`] detaches and
//! unloads them.

use std::{
    collections::HashMap as StdHashMap,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
pub use cr_common::Followed;
use cr_common::{CPUS, Lost, PEEKS, TaskEventKind};

pub use self::error::HintsError;
pub use self::totals::Totals;
use self::{
    error::{map_error, no_map, no_program, program_error, torn},
    load::{ITER_CPUS, ITER_FILE, ITER_JOB, ITER_PEEK, ITER_TASK, ITER_VMA, Loaded},
};
use super::aio::{self, AioContext, AioLayout};
use super::datagrams::{self, Hidden, QueuedDatagram};
use super::iters::{self, FileRecord, TaskHidden, VmaRecord, covered};
use super::tty::{self, TtyQueues};
use super::undo::{self, UndoList};
use crate::procfs;
use crate::sys::bpf::{IterTarget, iter_open};

mod error;
mod load;
mod totals;
mod written;

use written::Recorded;
pub use written::WrittenRecord;

/// The compiled programs; empty where the library was built without them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CR_EBPF_EMBEDDED"));

/// Regions of 2 MiB that the record has room for: 64 GiB of touched address space in 4 MiB of kernel memory.
pub const REGIONS: u32 = 32768;

/// Names an address space for as long as it lives. (It is the kernel's address of the `mm_struct`, and only a name here.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressSpaceId(pub u64);

/// Something that became of a followed process. Pids are as this process's pid namespace numbers them (0: not visible).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// A new task.
    Fork {
        /// The process that forked.
        pid: i32,
        /// The thread that forked.
        tid: i32,
        /// The new task's process; `pid` again if it is a thread.
        child_pid: i32,
        /// The new task.
        child_tid: i32,
        /// Its address space; the parent's for a thread and for `vfork`. It is followed already.
        space: AddressSpaceId,
    },
    /// A new image, in a new address space that is followed in place of the old one.
    Exec {
        /// The process.
        pid: i32,
        /// The address space it left.
        old: AddressSpaceId,
        /// The address space it has now.
        new: AddressSpaceId,
    },
    /// A task ended.
    Exit {
        /// Its process.
        pid: i32,
        /// The task.
        tid: i32,
        /// Whether it was the process's last.
        last_thread: bool,
        /// Its address space.
        space: AddressSpaceId,
        /// When, by `CLOCK_MONOTONIC`.
        at: Duration,
    },
    /// Events were lost, or processes could not be followed: read the tree anew.
    Lost {
        /// How many.
        count: u64,
    },
}

/// The loaded programs.
pub struct Hints {
    loaded: Loaded,
    events: RingBuf<MapData>,
    /// Long ranges of which something became without a fault.
    touched: RingBuf<MapData>,
    logs: Option<EbpfLogger<&'static dyn log::Log>>,
    /// What is added to an address of per-CPU memory, by CPU; empty until it was asked.
    cpu_offsets: Vec<u64>,
    /// Taken out of the kernel's record, but not asked for yet.
    pending: StdHashMap<AddressSpaceId, Recorded>,
    /// Followed address spaces, with the count of lost pages that each already knows of.
    told: StdHashMap<AddressSpaceId, u64>,
    /// The count of lost events and tasks that was already told.
    told_events: u64,
    /// The count of lost pages at which the full record was last emptied.
    full_at: u64,
    /// How often that was: each time may have lost pages that no program counted.
    removals: u64,
}

impl Hints {
    /// Loads the programs and attaches them.
    pub fn load() -> Result<Self, HintsError> {
        Self::load_object(OBJECT, REGIONS)
    }

    /// As [`load`](Self::load), with room for a number of regions of 2 MiB (128 bytes of kernel memory each) other than
    /// [`REGIONS`].
    pub fn with_regions(regions: u32) -> Result<Self, HintsError> {
        Self::load_object(OBJECT, regions)
    }

    /// As [`with_regions`](Self::with_regions), with the programs of another object (an ELF file of this version of cr's).
    pub fn load_object(object: &[u8], regions: u32) -> Result<Self, HintsError> {
        Self::load_parts(object, regions, true)
    }

    /// Loads the iterators alone, which look at processes and follow none: quicker, for whoever asks once.
    pub fn iterators() -> Result<Self, HintsError> {
        Self::load_parts(OBJECT, 1, false)
    }

    fn load_parts(object: &[u8], regions: u32, follow: bool) -> Result<Self, HintsError> {
        let mut loaded = load::load(object, regions, follow)?;
        let ebpf = &mut loaded.ebpf;
        let logs = EbpfLogger::init(ebpf).ok();
        let events = ebpf.take_map("EVENTS").ok_or_else(|| no_map("EVENTS"))?;
        let events = RingBuf::try_from(events).map_err(map_error("EVENTS"))?;
        let touched = ebpf.take_map("TOUCHED").ok_or_else(|| no_map("TOUCHED"))?;
        let touched = RingBuf::try_from(touched).map_err(map_error("TOUCHED"))?;
        let mut hints = Self {
            loaded,
            events,
            touched,
            logs,
            cpu_offsets: Vec::new(),
            pending: StdHashMap::new(),
            told: StdHashMap::new(),
            told_events: 0,
            full_at: 0,
            removals: 0,
        };
        if hints.loaded.locks {
            // Our own looks at a job's memory are not somebody else's.
            let own = hints.leader(std::process::id().cast_signed())?.tgid;
            hints.set_controller(own)?;
        }
        Ok(hints)
    }

    /// Follows a process from now on: its written pages, its forks, execs and exit. `pid` is as this process sees it. Processes
    /// that it had forked before are not followed with it. Following twice is the same as once.
    pub fn follow(&mut self, pid: i32) -> Result<AddressSpaceId, HintsError> {
        /// A process that execs while it is looked at is looked at again, at most so often.
        const TRIES: u32 = 8;
        for _ in 0..TRIES {
            let before = self.leader(pid)?;
            self.insert(before.tgid, before.mm)?;
            if self.leader(pid).is_ok_and(|now| now.mm == before.mm) {
                let space = AddressSpaceId(before.mm);
                let lost = self.lost_pages()?;
                self.told.entry(space).or_insert(lost);
                return Ok(space);
            }
            self.unfollow(AddressSpaceId(before.mm))?;
        }
        Err(HintsError::NoProcess { pid })
    }

    /// Ends following an address space and the processes in it, and forgets what was recorded about it.
    pub fn unfollow(&mut self, space: AddressSpaceId) -> Result<(), HintsError> {
        let mut processes: HashMap<_, u32, u64> = self.map_mut("PROCESSES")?;
        let keys = processes.iter().filter_map(Result::ok).filter(|(_, mm)| *mm == space.0).map(|(tgid, _)| tgid);
        for tgid in keys.collect::<Vec<_>>() {
            remove(&mut processes, &tgid, "PROCESSES")?;
        }
        let mut followed: HashMap<_, u64, Followed> = self.map_mut("FOLLOWED")?;
        remove(&mut followed, &space.0, "FOLLOWED")?;
        self.remove_written(|key| key.mm == space.0)?;
        self.pending.remove(&space);
        self.told.remove(&space);
        Ok(())
    }

    /// What became of the followed processes since the last call, oldest first.
    pub fn events(&mut self) -> Result<Vec<TaskEvent>, HintsError> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            // The ring also holds nothing but events, so another size is another version of the programs.
            let event = bytemuck::try_pod_read_unaligned::<cr_common::TaskEvent>(&item)
                .map_err(|error| HintsError::Map { map: "EVENTS", why: error.to_string() })?;
            events.extend(task_event(&event));
        }
        let lost = self.lost(Lost::Event)? + self.lost(Lost::Task)?;
        if lost > self.told_events {
            events.push(TaskEvent::Lost { count: lost - self.told_events });
            self.told_events = lost;
        }
        self.flush_logs();
        Ok(events)
    }

    /// Readable when [`events`](Self::events) has something to say; for `poll` or an asynchronous runtime.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// What the kernel keeps about each thread of a process (`pid` as this process sees it), the leader first.
    ///
    /// The threads are looked at one after the other: for a consistent picture the process must be stopped.
    pub fn tasks(&self, pid: i32) -> Result<Vec<TaskHidden>, HintsError> {
        let bytes = self.read_iter(ITER_TASK.0, IterTarget::Process(pid), || format!("pid {pid}"))?;
        iters::tasks(&bytes, self.loaded.restart).ok_or_else(|| torn(ITER_TASK.0, pid))
    }

    /// What the kernel keeps about each thread of every followed process, in one pass.
    pub fn followed_tasks(&self) -> Result<Vec<TaskHidden>, HintsError> {
        let bytes = self.read_iter(ITER_JOB.0, IterTarget::All, || "all tasks".to_owned())?;
        iters::tasks(&bytes, self.loaded.restart).ok_or_else(|| torn(ITER_JOB.0, 0))
    }

    /// The descriptors of a process (`pid` as this process sees it), which must be stopped, ascending by number; none where this
    /// kernel does not show all that belongs to them.
    pub fn descriptors(&self, pid: i32) -> Result<Option<Vec<FileRecord>>, HintsError> {
        if !self.loaded.descriptors {
            return Ok(None);
        }
        let bytes = self.read_iter(ITER_FILE.0, IterTarget::Process(pid), || format!("pid {pid}"))?;
        let mut records: Vec<FileRecord> = iters::records(&bytes).ok_or_else(|| torn(ITER_FILE.0, pid))?;
        if !self.loaded.descriptions {
            for record in &mut records {
                record.covered = covered::NOTHING;
            }
        }
        Ok(Some(records))
    }

    /// Whether the records of tasks hold everything on which their answers about themselves depend, see [`Evidence`].
    ///
    /// [`Evidence`]: super::iters::Evidence
    pub fn has_evidence(&self) -> bool {
        self.loaded.evidence
    }

    /// Whether the records of tasks hold everything on which depends what `/proc` shows of them, see [`Outward`].
    ///
    /// [`Outward`]: super::iters::Outward
    pub fn shows_outward(&self) -> bool {
        self.loaded.outward
    }

    /// The Linux AIO contexts of a process (`pid` as this process sees it), which must be stopped.
    pub fn aio_contexts(&mut self, pid: i32) -> Result<Vec<AioContext>, HintsError> {
        let leader = self.leader(pid)?;
        let unknown = || HintsError::Map { map: "PEEK", why: "this kernel's struct kioctx is not known".into() };
        let layout = self.loaded.aio.ok_or_else(unknown)?;
        if self.cpu_offsets.is_empty() {
            self.cpu_offsets = self.ask_cpu_offsets(layout)?;
        }
        let offsets = std::mem::take(&mut self.cpu_offsets);
        let contexts = aio::contexts(leader.mm, layout, &offsets, |addresses| self.peek(addresses));
        self.cpu_offsets = offsets;
        contexts
    }

    /// What will be undone in System V semaphores when the threads of a process end (`pid` as this process sees it), which
    /// must be stopped; `sizes` tells of each set how many semaphores it has. Empty lists are left out.
    pub fn semaphore_undo(&mut self, pid: i32, sizes: &StdHashMap<i32, usize>) -> Result<Vec<UndoList>, HintsError> {
        let unknown = || HintsError::Map { map: "PEEK", why: "this kernel's struct sem_undo is not known".into() };
        let layout = self.loaded.undo.ok_or_else(unknown)?;
        let mut names: Vec<u64> = self.tasks(pid)?.iter().map(|task| task.record.undo_list).collect();
        names.sort_unstable();
        names.dedup();
        let mut lists = Vec::new();
        for name in names.into_iter().filter(|name| *name != 0) {
            lists.push(undo::list(name, layout, sizes, |addresses| self.peek(addresses))?);
        }
        lists.retain(|list| list.sets.iter().any(|(_, all)| all.iter().any(|adjustment| *adjustment != 0)));
        Ok(lists)
    }

    /// What is queued in a pseudo-terminal of which `file` (the kernel's address) is the master; both ends must rest.
    pub fn tty_queues(&mut self, file: u64) -> Result<TtyQueues, HintsError> {
        let unknown = || HintsError::Map { map: "PEEK", why: "this kernel's struct n_tty_data is not known".into() };
        let layout = self.loaded.tty.ok_or_else(unknown)?;
        tty::queues(file, layout, |addresses| self.peek(addresses))
    }

    /// What waits in the UDP socket that `file` (the kernel's address) is of, the oldest first; nobody may read meanwhile.
    pub fn datagrams(&mut self, file: u64) -> Result<Vec<QueuedDatagram>, HintsError> {
        let unknown = || HintsError::Map { map: "PEEK", why: "this kernel's struct sk_buff is not known".into() };
        let layout = self.loaded.datagrams.ok_or_else(unknown)?;
        datagrams::queue(file, layout, |addresses| self.peek(addresses))
    }

    /// What no option shows of sockets, of each that one of these files (the kernel's addresses) is of.
    pub fn hidden_of_sockets(&mut self, files: &[u64]) -> Result<Vec<Hidden>, HintsError> {
        let unknown = || HintsError::Map { map: "PEEK", why: "this kernel's struct inet_sock is not known".into() };
        let layout = self.loaded.datagrams.ok_or_else(unknown)?;
        datagrams::hidden(files, layout, |addresses| self.peek(addresses))
    }

    /// By where the kernel keeps the copies of a map of ours, and the address from which it counts.
    fn ask_cpu_offsets(&mut self, layout: AioLayout) -> Result<Vec<u64>, HintsError> {
        let me = nix::unistd::gettid().as_raw();
        let bytes = self.read_iter(ITER_CPUS.0, IterTarget::Task(me), || format!("thread {me}"))?;
        let places: Vec<u64> = iters::records(&bytes).ok_or_else(|| torn(ITER_CPUS.0, me))?;
        let (copies, map) = places.split_at_checked(CPUS).ok_or_else(|| torn(ITER_CPUS.0, me))?;
        let map = *map.first().ok_or_else(|| torn(ITER_CPUS.0, me))?;
        let base = self.peek(&[layout.copies_of(map)])?[0];
        let offsets: Vec<u64> = copies.iter().filter(|copy| **copy != 0).map(|copy| copy.wrapping_sub(base)).collect();
        let possible = aio::possible_cpus();
        if base == 0 || offsets.is_empty() || possible > CPUS {
            let why = format!("the memory of {possible} CPUs is not known");
            return Err(HintsError::Map { map: "PLACES", why });
        }
        Ok(offsets)
    }

    /// Words of kernel memory, each at an address of its own; 0 where there is nothing to read.
    fn peek(&mut self, addresses: &[u64]) -> Result<Vec<u64>, HintsError> {
        let mut words = Vec::with_capacity(addresses.len());
        for chunk in addresses.chunks(PEEKS) {
            let mut asked = [0; PEEKS];
            asked[..chunk.len()].copy_from_slice(chunk);
            let map = self.loaded.ebpf.map_mut("PEEK").ok_or_else(|| no_map("PEEK"))?;
            let mut map: Array<_, [u64; PEEKS]> = Array::try_from(map).map_err(map_error("PEEK"))?;
            map.set(0, asked, 0).map_err(map_error("PEEK"))?;
            // The program runs once for each task that it goes over: for this one alone.
            let me = nix::unistd::gettid().as_raw();
            let bytes = self.read_iter(ITER_PEEK.0, IterTarget::Task(me), || format!("thread {me}"))?;
            let told: Vec<u64> = iters::records(&bytes).ok_or_else(|| torn(ITER_PEEK.0, me))?;
            words.extend(told.get(..chunk.len()).ok_or_else(|| torn(ITER_PEEK.0, me))?);
        }
        Ok(words)
    }

    /// The address space that a process has now (`pid` as this process sees it), followed or not.
    pub fn space_of(&self, pid: i32) -> Result<AddressSpaceId, HintsError> {
        self.leader(pid).map(|leader| AddressSpaceId(leader.mm))
    }

    /// The mappings of a process (`pid` as this process sees it), ascending.
    pub fn vmas(&self, pid: i32) -> Result<Vec<VmaRecord>, HintsError> {
        let vmas = self.open_iter(ITER_VMA.0, IterTarget::Task(procfs::voice(pid)))?.and_then(iters::vmas);
        vmas.map_err(|source| HintsError::Iter { iter: ITER_VMA.0, over: format!("pid {pid}"), source })
    }

    /// Passes what the programs logged on to the `log` crate. [`events`](Self::events) and
    /// [`drain_written`](Self::drain_written) do it too, so that no runtime and no thread is needed for it; a controller
    /// with one may watch [`logs_fd`](Self::logs_fd). The programs log what the `log` crate's level was when they were loaded.
    pub fn flush_logs(&mut self) {
        if let Some(logs) = &mut self.logs {
            logs.flush();
        }
    }

    /// Readable when [`flush_logs`](Self::flush_logs) has something to pass on; nothing if the programs log nothing.
    pub fn logs_fd(&self) -> Option<BorrowedFd<'_>> {
        self.logs.as_ref().map(|logs| logs.as_fd())
    }

    fn leader(&self, pid: i32) -> Result<cr_common::TaskRecord, HintsError> {
        let tasks = match self.tasks(pid) {
            Err(HintsError::Iter { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Vec::new(),
            other => other?,
        };
        // The main thread may have ended before others, and has no address space then.
        let voice = procfs::voice(pid);
        let leader = tasks.iter().find(|task| task.record.seen_tid.cast_signed() == voice && task.record.mm != 0);
        leader.map(|task| task.record).ok_or(HintsError::NoProcess { pid })
    }

    fn insert(&mut self, tgid: u32, mm: u64) -> Result<(), HintsError> {
        let mut processes: HashMap<_, u32, u64> = self.map_mut("PROCESSES")?;
        if processes.get(&tgid, 0).is_ok_and(|known| known == mm) {
            return Ok(());
        }
        processes.insert(tgid, mm, 0).map_err(map_error("PROCESSES"))?;
        let mut followed: HashMap<_, u64, Followed> = self.map_mut("FOLLOWED")?;
        let known = followed.get(&mm, 0).unwrap_or_default();
        // What is counted in between is written over: one more says that nothing is known.
        let now = Followed { users: known.users + 1, local: known.local + 1, ..known };
        followed.insert(mm, now, 0).map_err(map_error("FOLLOWED"))
    }

    fn set_controller(&mut self, tgid: u32) -> Result<(), HintsError> {
        let map = self.loaded.ebpf.map_mut("CONTROLLER").ok_or_else(|| no_map("CONTROLLER"))?;
        let mut controller: Array<_, u32> = Array::try_from(map).map_err(map_error("CONTROLLER"))?;
        controller.set(0, tgid, 0).map_err(map_error("CONTROLLER"))
    }

    fn lost(&self, what: Lost) -> Result<u64, HintsError> {
        let map = self.loaded.ebpf.map("LOST").ok_or_else(|| no_map("LOST"))?;
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(map_error("LOST"))?;
        Ok(counts.get(&(what as u32), 0).map_err(map_error("LOST"))?.iter().sum())
    }

    fn map_mut<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<&mut MapData, K, V>, HintsError> {
        let map = self.loaded.ebpf.map_mut(name).ok_or_else(|| no_map(name))?;
        HashMap::try_from(map).map_err(map_error(name))
    }

    fn read_iter(
        &self,
        name: &'static str,
        target: IterTarget<'_>,
        over: impl Fn() -> String,
    ) -> Result<Vec<u8>, HintsError> {
        let bytes = self.open_iter(name, target)?.and_then(read_whole);
        bytes.map_err(|source| HintsError::Iter { iter: name, over: over(), source })
    }

    /// The outer error is about the programs, the inner one about the target.
    fn open_iter(&self, name: &'static str, target: IterTarget<'_>) -> Result<io::Result<File>, HintsError> {
        let program = self.loaded.ebpf.program(name).ok_or_else(|| no_program(name))?;
        let fd = program.fd().map_err(|error| program_error(name, error))?;
        Ok(iter_open(fd.as_fd(), target))
    }
}

/// All that an iterator has to say. (`read_to_end` would ask for its size, and then read a few bytes at a time.)
fn read_whole(mut iter: File) -> io::Result<Vec<u8>> {
    /// As much as the kernel hands out in one read.
    const CHUNK: usize = 32 * 1024;
    let mut bytes = Vec::new();
    loop {
        let known = bytes.len();
        bytes.resize(known + CHUNK, 0);
        let more = iter.read(&mut bytes[known..])?;
        bytes.truncate(known + more);
        if more == 0 {
            return Ok(bytes);
        }
    }
}

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hints").field("followed", &self.told.keys()).finish_non_exhaustive()
    }
}

fn task_event(event: &cr_common::TaskEvent) -> Option<TaskEvent> {
    let (pid, tid) = (event.seen_tgid.cast_signed(), event.seen_tid.cast_signed());
    let (space, new) = (AddressSpaceId(event.mm), AddressSpaceId(event.new_mm));
    Some(match event.kind {
        kind if kind == TaskEventKind::Fork as u32 => TaskEvent::Fork {
            pid,
            tid,
            child_pid: event.child_seen_tgid.cast_signed(),
            child_tid: event.child_seen_tid.cast_signed(),
            space: new,
        },
        kind if kind == TaskEventKind::Exec as u32 => TaskEvent::Exec { pid, old: space, new },
        kind if kind == TaskEventKind::Exit as u32 => {
            let at = Duration::from_nanos(event.time_ns);
            TaskEvent::Exit { pid, tid, last_thread: event.last_thread != 0, space, at }
        }
        _ => return None,
    })
}

/// Removes an entry, or finds that a program has done so already.
fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<&mut MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), HintsError> {
    match map.remove(key) {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map_err(map_error(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_object_is_a_typed_error() {
        assert!(matches!(Hints::load_object(&[], REGIONS), Err(HintsError::NoObject)));
    }
}
