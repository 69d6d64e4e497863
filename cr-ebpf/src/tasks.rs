//! Forks, execs and exits of followed processes: they say so, and what is followed changes with them.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map},
    maps::RingBuf,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::{debug, warn};
use cr_common::{Lost, TaskEvent, TaskEventKind};

use crate::{
    follow,
    kernel::{offset, read, seen_tgid, seen_tid},
};

/// [`TaskEvent`]s for the controller.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Arguments: `struct task_struct *parent, struct task_struct *child`. The child has not run yet.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let parent = ctx.arg::<*const u8>(0) as u64;
    let Some((tgid, mm)) = followed(parent) else {
        return 0;
    };
    let child = ctx.arg::<*const u8>(1) as u64;
    let child_mm: u64 = read(child, &offset::TASK_MM);
    let child_tgid: u32 = read(child, &offset::TASK_TGID);
    if child_tgid != tgid && !follow::add(child_tgid, child_mm) {
        lost_task(&ctx, child_tgid);
    }
    let mut event = event(TaskEventKind::Fork, parent, tgid, mm);
    event.child_seen_tgid = seen_tgid(child);
    event.child_seen_tid = seen_tid(child);
    event.new_mm = child_mm;
    debug!(&ctx, "pid {} forked pid {} (as the controller sees them)", event.seen_tgid, event.child_seen_tgid);
    send(&event);
    0
}

/// Arguments: `struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm`. The task has its new address space.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task = ctx.arg::<*const u8>(0) as u64;
    let Some((tgid, old_mm)) = followed(task) else {
        return 0;
    };
    let new_mm: u64 = read(task, &offset::TASK_MM);
    follow::remove(tgid, old_mm);
    if !follow::add(tgid, new_mm) {
        lost_task(&ctx, tgid);
    }
    let mut event = event(TaskEventKind::Exec, task, tgid, old_mm);
    event.new_mm = new_mm;
    debug!(&ctx, "pid {} runs a new image", event.seen_tgid);
    send(&event);
    0
}

/// First argument: `struct task_struct *task`. Whether its address space is gone already differs between kernels, so
/// the map of processes is asked instead.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = ctx.arg::<*const u8>(0) as u64;
    let Some((tgid, mm)) = followed(task) else {
        return 0;
    };
    // The kernel has already counted this thread out.
    let live: i32 = read(read(task, &offset::TASK_SIGNAL), &offset::SIGNAL_LIVE);
    let mut event = event(TaskEventKind::Exit, task, tgid, mm);
    if live == 0 {
        follow::remove(tgid, mm);
        event.last_thread = 1;
        debug!(&ctx, "pid {} ended", event.seen_tgid);
    }
    send(&event);
    0
}

/// The process of a task and its address space, if it is followed.
#[inline(always)]
fn followed(task: u64) -> Option<(u32, u64)> {
    let tgid: u32 = read(task, &offset::TASK_TGID);
    follow::process(tgid).map(|mm| (tgid, mm))
}

#[inline(always)]
fn event(kind: TaskEventKind, task: u64, tgid: u32, mm: u64) -> TaskEvent {
    TaskEvent {
        kind: kind as u32,
        last_thread: 0,
        tgid,
        tid: read(task, &offset::TASK_PID),
        seen_tgid: seen_tgid(task),
        seen_tid: seen_tid(task),
        child_seen_tgid: 0,
        child_seen_tid: 0,
        mm,
        new_mm: 0,
        // SAFETY: the helper has no requirement.
        time_ns: unsafe { bpf_ktime_get_ns() },
    }
}

#[inline(always)]
fn send(event: &TaskEvent) {
    if EVENTS.output::<TaskEvent>(event, 0).is_err() {
        follow::lose(Lost::Event);
    }
}

#[inline(always)]
fn lost_task(ctx: &BtfTracePointContext, tgid: u32) {
    if follow::lose(Lost::Task) {
        warn!(ctx, "too many processes are followed; process {} (first pid namespace) is not", tgid);
    }
}
