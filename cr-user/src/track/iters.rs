//! What the BPF iterators answer, taken apart.

use std::{
    fs::File,
    io::{self, Read as _},
};

use bytemuck::AnyBitPattern;
use cr_common::{AUXV, LIMITS, RESTART_BLOCK_LEN, SIGNALS, SignalAction, TaskRecord};
pub use cr_common::{FileRecord, VmaRecord, covered};

use super::btf::{Btf, BtfError};

/// A thread's state that `/proc` does not show.
#[derive(Clone, Debug)]
pub struct TaskHidden {
    /// What the kernel keeps about the thread; the fields say what they are.
    pub record: TaskRecord,
    /// The process's signal handlers: index 0 is signal 1. With the group leader only.
    pub actions: Option<Box<[SignalAction; SIGNALS]>>,
    restart: RestartLayout,
}

/// What `nanosleep` and `clock_nanosleep` with a relative time will go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartSleep {
    /// Which clock, as in `clock_nanosleep(2)`.
    pub clock: i32,
    /// Whether and in which form the time left is reported: 0 not, 1 as `struct timespec`, 2 as 32-bit `struct timespec`.
    pub report: i32,
    /// Where in the process it is reported.
    pub remaining: u64,
    /// When the sleep is to end: nanoseconds of that clock.
    pub expires_ns: u64,
}

/// What `futex(FUTEX_WAIT)` with a time limit will go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartFutex {
    /// The futex's address.
    pub address: u64,
    /// The value that it must have.
    pub value: u32,
    /// The kernel's `FLAGS_*`.
    pub flags: u32,
    /// The mask of wakers.
    pub bitset: u32,
    /// When the wait is to end, in nanoseconds of `CLOCK_MONOTONIC`, or of `CLOCK_REALTIME` if the flags say so.
    pub expires_ns: u64,
}

/// What `poll` will go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPoll {
    /// The array of `struct pollfd`.
    pub fds: u64,
    /// How many there are.
    pub count: u32,
    /// Whether there is a time limit.
    pub limited: bool,
    /// When it is to end on `CLOCK_MONOTONIC`: seconds.
    pub end_s: u64,
    /// The same: nanoseconds within the second.
    pub end_ns: u64,
}

impl TaskHidden {
    /// Bytes of the kernel's `struct restart_block`.
    ///
    /// The three views below share its bytes. Which one is meant follows from the interrupted system call's number; all are
    /// meaningful only while the thread's `rax` is `-ERESTART_RESTARTBLOCK` (or it is within `restart_syscall`).
    pub fn restart_block(&self) -> &[u8; RESTART_BLOCK_LEN] {
        &self.record.restart_block
    }

    /// For an interrupted `nanosleep` or `clock_nanosleep`.
    pub fn restart_sleep(&self) -> RestartSleep {
        let at = &self.restart;
        RestartSleep {
            clock: self.word(at.sleep_clock).cast_signed(),
            report: self.word(at.sleep_report).cast_signed(),
            remaining: self.long(at.sleep_remaining),
            expires_ns: self.long(at.sleep_expires),
        }
    }

    /// For an interrupted `futex` wait.
    pub fn restart_futex(&self) -> RestartFutex {
        let at = &self.restart;
        RestartFutex {
            address: self.long(at.futex_address),
            value: self.word(at.futex_value),
            flags: self.word(at.futex_flags),
            bitset: self.word(at.futex_bitset),
            expires_ns: self.long(at.futex_time),
        }
    }

    /// For an interrupted `poll`.
    pub fn restart_poll(&self) -> RestartPoll {
        let at = &self.restart;
        RestartPoll {
            fds: self.long(at.poll_fds),
            count: self.word(at.poll_count),
            limited: self.word(at.poll_limited) != 0,
            end_s: self.long(at.poll_end_s),
            end_ns: self.long(at.poll_end_ns),
        }
    }

    fn word(&self, at: u32) -> u32 {
        field(&self.record.restart_block, at)
    }

    fn long(&self, at: u32) -> u64 {
        field(&self.record.restart_block, at)
    }
}

/// Everything on which the answers depend that a process gives to questions about itself: as long as this stays the same, they do.
/// (Kernel addresses are only names here.) Not what changes by itself as time goes on: of a process with timers there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence(Vec<TaskEvidence>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct TaskEvidence {
    tid: u32,
    mm: [u64; 4],
    bounds: [u64; 11],
    namespaces: u64,
    limits: [u64; LIMITS],
    auxv: Vec<u64>,
    personality: u32,
    oom_score_adj: i32,
    clear_child_tid: u64,
    alternate_stack: (u64, u64, u32),
    timer_slack: u64,
    death_signal: u32,
    cred: (u64, u32),
    subreaper: u32,
    xstate_permission: u64,
    actions: Option<Box<[SignalAction; SIGNALS]>>,
}

impl Evidence {
    /// Of all threads of a process.
    pub fn of(tasks: &[TaskHidden]) -> Option<Self> {
        let timed = |r: &TaskRecord| {
            r.real_timer_armed != 0 || r.real_timer_interval_ns != 0 || r.posix_timers != 0 || r.cpu_timers != [0; 4]
        };
        let has_leader = tasks.iter().any(|task| task.actions.is_some());
        if !has_leader || tasks.iter().any(|task| timed(&task.record)) {
            return None;
        }
        let of = |task: &TaskHidden| {
            let r = &task.record;
            TaskEvidence {
                tid: r.seen_tid,
                mm: [r.mm, r.mm_flags, r.mm_def_flags, r.exe_file],
                bounds: r.mm_bounds,
                namespaces: r.sets[0],
                limits: r.limits,
                auxv: until_its_end(&r.auxv),
                personality: r.personality,
                oom_score_adj: r.oom_score_adj,
                clear_child_tid: r.clear_child_tid,
                alternate_stack: (r.sas_ss_sp, r.sas_ss_size, r.sas_ss_flags),
                timer_slack: r.timer_slack_ns,
                death_signal: r.pdeath_signal,
                cred: (r.cred, r.securebits),
                subreaper: r.subreaper,
                xstate_permission: r.xstate_permission,
                actions: task.actions.clone(),
            }
        };
        let mut all: Vec<TaskEvidence> = tasks.iter().map(of).collect();
        all.sort_unstable_by_key(|task| task.tid);
        Some(Self(all))
    }

    /// Whether it is of exactly these threads.
    pub fn is_of(&self, tids: &[i32]) -> bool {
        let is_here = |tid: &i32| self.0.binary_search_by_key(tid, |task| task.tid.cast_signed()).is_ok();
        tids.len() == self.0.len() && tids.iter().all(is_here)
    }
}

/// The lines of `/proc/PID/status` for which [`Outward`] answers.
pub const OUTWARD_LINES: [&str; 13] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Speculation_Store_Bypass",
    "x86_Thread_features",
];

/// Everything on which depends what others see of a process in `/proc`, of what a checkpoint reads there: users, groups and
/// capabilities of each thread, the mask for files, parent, group and session, areas of its memory, executable, working directory and
/// root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outward(Vec<u64>);

impl Outward {
    /// Of all threads of a process; none where that is not everything.
    pub fn of(tasks: &[TaskHidden], ppid: i32) -> Option<Self> {
        let leader = &tasks.iter().find(|task| task.actions.is_some())?.record;
        let mut words = vec![ppid as u64, leader.exit_signal as u64, leader.mm, leader.exe_file];
        words.extend([leader.seen_group, leader.seen_session].map(u64::from));
        words.extend(leader.mm_bounds.iter().chain(&leader.places));
        for TaskHidden { record: r, .. } in tasks {
            if r.rights == 0 || r.seccomp != 0 {
                return None;
            }
            words.extend([r.seen_tid.into(), r.rights, r.atomic_flags, r.cpu_features, r.umask.into()]);
        }
        (!leader.places.contains(&0)).then_some(Self(words))
    }
}

/// Of what was read in place of the auxiliary vector, the vector; behind it stands something else.
fn until_its_end(auxv: &[u64; AUXV]) -> Vec<u64> {
    auxv.chunks_exact(2).take_while(|pair| pair[0] != libc::AT_NULL).flatten().copied().collect()
}

/// Where the fields of `struct restart_block` are in this kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct RestartLayout {
    sleep_clock: u32,
    sleep_report: u32,
    sleep_remaining: u32,
    sleep_expires: u32,
    futex_address: u32,
    futex_value: u32,
    futex_flags: u32,
    futex_bitset: u32,
    futex_time: u32,
    poll_fds: u32,
    poll_count: u32,
    poll_limited: u32,
    poll_end_s: u32,
    poll_end_ns: u32,
}

impl RestartLayout {
    pub(super) fn of(kernel: &Btf) -> Result<Self, BtfError> {
        let at = |path: &str| kernel.offset("restart_block", path);
        // Newer kernels keep the end of a poll as one structure.
        let either = |one: &str, other: &str| at(one).or_else(|_| at(other));
        Ok(Self {
            sleep_clock: at("nanosleep.clockid")?,
            sleep_report: at("nanosleep.type")?,
            sleep_remaining: at("nanosleep.rmtp")?,
            sleep_expires: at("nanosleep.expires")?,
            futex_address: at("futex.uaddr")?,
            futex_value: at("futex.val")?,
            futex_flags: at("futex.flags")?,
            futex_bitset: at("futex.bitset")?,
            futex_time: at("futex.time")?,
            poll_fds: at("poll.ufds")?,
            poll_count: at("poll.nfds")?,
            poll_limited: at("poll.has_timeout")?,
            poll_end_s: either("poll.tv_sec", "poll.end_time.tv_sec")?,
            poll_end_ns: either("poll.tv_nsec", "poll.end_time.tv_nsec")?,
        })
    }
}

/// The answer of `iter/task`; nothing if it ends within a record.
pub(super) fn tasks(mut bytes: &[u8], restart: RestartLayout) -> Option<Vec<TaskHidden>> {
    let mut tasks = Vec::new();
    while !bytes.is_empty() {
        let record: TaskRecord = take(&mut bytes)?;
        let actions = if record.has_actions == 0 {
            None
        } else {
            let mut actions = Box::new([SignalAction { handler: 0, flags: 0, restorer: 0, mask: 0 }; SIGNALS]);
            for action in actions.iter_mut() {
                *action = take(&mut bytes)?;
            }
            Some(actions)
        };
        tasks.push(TaskHidden { record, actions, restart });
    }
    Some(tasks)
}

/// Reads `iter/task_vma` of one task.
///
/// The kernel (6.18) does not end this iteration: a read after the last mapping starts again within the mappings that the
/// read before handed out. Mappings ascend, so one that does not is the end.
pub(super) fn vmas(mut iter: File) -> io::Result<Vec<VmaRecord>> {
    /// As much as the kernel hands out in one read.
    const CHUNK: usize = 32 * 1024 / size_of::<VmaRecord>() * size_of::<VmaRecord>();
    let mut vmas: Vec<VmaRecord> = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = iter.read(&mut chunk)?;
        let records = records::<VmaRecord>(&chunk[..length]);
        let records = records.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "half a record was read"))?;
        if records.is_empty() {
            return Ok(vmas);
        }
        for record in records {
            if vmas.last().is_some_and(|last| record.start < last.end) {
                return Ok(vmas);
            }
            vmas.push(record);
        }
    }
}

/// An answer of equal records; nothing if it ends within one.
pub(super) fn records<T: AnyBitPattern>(bytes: &[u8]) -> Option<Vec<T>> {
    let chunks = bytes.chunks_exact(size_of::<T>());
    chunks.remainder().is_empty().then(|| chunks.map(bytemuck::pod_read_unaligned).collect())
}

fn take<T: AnyBitPattern>(bytes: &mut &[u8]) -> Option<T> {
    let (record, rest) = bytes.split_at_checked(size_of::<T>())?;
    *bytes = rest;
    Some(bytemuck::pod_read_unaligned(record))
}

/// A field of the restart block; 0 where a kernel keeps it beyond what is read.
fn field<T: AnyBitPattern + Default>(block: &[u8], at: u32) -> T {
    let start = at as usize;
    block.get(start..start + size_of::<T>()).map_or_else(T::default, bytemuck::pod_read_unaligned)
}
