//! How each thread is scheduled: policy, nice value, CPUs, I/O priority, timer slack.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::remote::{Answers, Call, Questions};
use crate::sys::task::{self, SchedAttr};

/// The record of how a process's threads are scheduled.
pub const KIND: RecordKind = RecordKind { id: 8, version: 1, name: "scheduling" };

const SCHED_DEADLINE: u32 = 6;

/// Scheduling of every thread of one process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Scheduling {
    /// The process.
    pub pid: i32,
    /// By thread.
    pub threads: Vec<ThreadScheduling>,
}

/// Scheduling of one thread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ThreadScheduling {
    /// The thread.
    pub tid: i32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Run time, deadline and period in nanoseconds.
    pub deadline: (u64, u64, u64),
    /// CPUs that it may run on, as the kernel's words; empty when it may run on all that were there.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub affinity: Vec<u8>,
    /// `ioprio_get(2)`.
    pub ioprio: i32,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
}

/// Where the answers to [`ask`] are.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    timer_slack: usize,
}

/// Adds this file's questions for one thread.
pub fn ask(questions: &mut Questions) -> Asked {
    Asked { timer_slack: questions.ask(libc::SYS_prctl, &[libc::PR_GET_TIMERSLACK as u64]) }
}

/// Captures how a thread is scheduled.
///
/// # Errors
/// When the thread is gone.
pub fn capture(tid: i32, asked: Asked, answers: &Answers) -> Result<ThreadScheduling> {
    let failed = |e| Error::system(format!("reading the scheduling of thread {tid}"), e);
    let attr = task::sched_getattr(tid).map_err(failed)?;
    let affinity = task::affinity(tid).map_err(failed)?;
    Ok(ThreadScheduling {
        tid,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        // The fair policies show their time slice here, which is not for setting.
        deadline: if attr.policy == SCHED_DEADLINE { (attr.runtime, attr.deadline, attr.period) } else { (0, 0, 0) },
        affinity: if allows_every_cpu(&affinity) { Vec::new() } else { affinity },
        ioprio: task::ioprio(tid).map_err(failed)?,
        timer_slack: answers.outcome(asked.timer_slack).unwrap_or(50_000),
    })
}

fn allows_every_cpu(mask: &[u8]) -> bool {
    let allowed: u32 = mask.iter().map(|b| b.count_ones()).sum();
    allowed as usize >= cpus()
}

/// CPUs that are online.
fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        text.trim()
            .split(',')
            .filter_map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                Some(last.parse::<usize>().ok()? - first.parse::<usize>().ok()? + 1)
            })
            .sum::<usize>()
            .max(1)
    })
}

/// Sets from outside what can be set from outside.
///
/// # Errors
/// When the thread is gone, or the policy is refused.
pub fn restore(s: &ThreadScheduling) -> Result<()> {
    let failed = |e| Error::system(format!("setting the scheduling of thread {}", s.tid), e);
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: s.deadline.0,
        deadline: s.deadline.1,
        period: s.deadline.2,
        util_min: 0,
        util_max: 0,
    };
    task::sched_setattr(s.tid, &attr).map_err(failed)?;
    if !s.affinity.is_empty()
        && let Err(e) = task::set_affinity(s.tid, &s.affinity)
    {
        log::warn!("thread {}: none of the CPUs that it was bound to is here ({e}); it may run on all", s.tid);
    }
    task::set_ioprio(s.tid, s.ioprio).map_err(failed)
}

/// Calls that a restored thread makes for itself.
pub fn restore_calls(s: &ThreadScheduling) -> Vec<Call> {
    vec![Call::new(libc::SYS_prctl, &[libc::PR_SET_TIMERSLACK as u64, s.timer_slack])]
}

impl Sound for Scheduling {}
