//! `iter/task`: what the kernel keeps about a process's tasks, in binary. The controller opens the iterator for one
//! process, and the kernel finds it by the number that it has in the controller's own pid namespace.

use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_kernel_buf, generated::bpf_seq_write},
    macros::map,
    maps::PerCpuArray,
};
use cr_common::{AUXV, KernelField, LIMITS, RESTART_BLOCK_LEN, RIGHTS_LEN, SIGNALS, SignalAction, TaskRecord};

use crate::{
    description, follow,
    kernel::{offset, read, seen_number, seen_tgid, seen_tid},
};

/// `struct bpf_iter_meta`, as far as it is read.
#[repr(C)]
pub(crate) struct Meta {
    pub(crate) seq: *mut aya_ebpf::bindings::seq_file,
    /// Of this pass, and no other.
    pub(crate) session: u64,
}

/// `struct bpf_iter__task`.
#[repr(C)]
pub struct Context {
    pub(crate) meta: *const Meta,
    pub(crate) task: *const u8,
}

/// A record is too large for the stack of 512 bytes.
#[map]
static TASK_RECORD: PerCpuArray<TaskRecord> = PerCpuArray::with_max_entries(1, 0);

/// Where the handlers stand between the kernel's table and the output.
#[map]
static ACTIONS: PerCpuArray<[SignalAction; SIGNALS]> = PerCpuArray::with_max_entries(1, 0);

/// The last path of each kind: the pass that it was found in, entry, mount, and the path as a number. Processes of one job have few.
#[map]
static PATHS: PerCpuArray<[[u64; 2]; 3]> = PerCpuArray::with_max_entries(1, 0);

/// The active bit of a high-resolution timer's state (`HRTIMER_STATE_ENQUEUED` in `linux/hrtimer.h`).
const ENQUEUED: u8 = 1;

/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn iter_task(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the two loads.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    // The last call, after all tasks, has none.
    if task.is_null() {
        return 0;
    }
    tell(meta, task)
}

/// The same of all tasks that there are, as far as they are of followed processes: a whole job in one pass.
///
/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn iter_job(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the two loads.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() || follow::process(read(task as u64, &offset::TASK_TGID)).is_none() {
        return 0;
    }
    tell(meta, task)
}

#[inline(always)]
fn tell(meta: *const Meta, task: *const u8) -> i32 {
    let (Some(record), Some(actions)) = (TASK_RECORD.get_ptr_mut(0), ACTIONS.get_ptr_mut(0)) else {
        return 0;
    };
    let task = task as u64;
    // SAFETY: the map's value for this CPU, which no other program touches: programs of one kind do not nest.
    let (record, actions) = unsafe { (&mut *record, &mut *actions) };
    // SAFETY: the kernel's; the verifier checks the load.
    fill(record, task, unsafe { (*meta).session });
    if record.has_actions != 0 && !read_actions(task, actions) {
        record.has_actions = 0;
    }
    // SAFETY: `meta` is the kernel's; both buffers are map values of the sizes given. An overflow of the output makes the
    // kernel call again for this task, so that no half of a record can be read.
    unsafe {
        let seq = (*meta).seq;
        bpf_seq_write(seq, (&raw const *record).cast(), size_of::<TaskRecord>() as u32);
        if record.has_actions != 0 {
            bpf_seq_write(seq, (&raw const *actions).cast(), (SIGNALS * size_of::<SignalAction>()) as u32);
        }
    }
    0
}

/// Sets every field of `record`, which still holds the previous task's.
#[inline(always)]
fn fill(record: &mut TaskRecord, task: u64, session: u64) {
    let leader: u64 = read(task, &offset::TASK_GROUP_LEADER);
    let signal: u64 = read(task, &offset::TASK_SIGNAL);
    record.exe_file = read(read(task, &offset::TASK_MM), &offset::MM_EXE_FILE);
    // First, because whatever branches before it would have the verifier follow each path again.
    let fs: u64 = read(task, &offset::TASK_FS);
    record.umask = read(fs, &offset::FS_UMASK);
    if leader == task {
        let exe = record.exe_file;
        record.places = [
            path(0, session, read(exe, &offset::FILE_DENTRY), read(exe, &offset::FILE_MOUNT)),
            path(1, session, read(fs, &offset::FS_PWD_DENTRY), read(fs, &offset::FS_PWD_MOUNT)),
            path(2, session, read(fs, &offset::FS_ROOT_DENTRY), read(fs, &offset::FS_ROOT_MOUNT)),
        ];
        // Of the four kinds of `enum pid_type` in `linux/pid_types.h`.
        let pids: [u64; 4] = read(signal, &offset::SIGNAL_PIDS);
        (record.seen_group, record.seen_session) = (seen_number(pids[2]), seen_number(pids[3]));
    } else {
        record.places = [0; 3];
        (record.seen_group, record.seen_session) = (0, 0);
    }
    record.tgid = read(task, &offset::TASK_TGID);
    record.tid = read(task, &offset::TASK_PID);
    record.seen_tgid = seen_tgid(task);
    record.seen_tid = seen_tid(task);

    let mm: u64 = read(task, &offset::TASK_MM);
    record.mm = mm;
    record.mm_flags = read(mm, &offset::MM_FLAGS);
    record.mm_bounds = [
        read(mm, &offset::MM_START_CODE),
        read(mm, &offset::MM_END_CODE),
        read(mm, &offset::MM_START_DATA),
        read(mm, &offset::MM_END_DATA),
        read(mm, &offset::MM_START_BRK),
        read(mm, &offset::MM_BRK),
        read(mm, &offset::MM_START_STACK),
        read(mm, &offset::MM_ARG_START),
        read(mm, &offset::MM_ARG_END),
        read(mm, &offset::MM_ENV_START),
        read(mm, &offset::MM_ENV_END),
    ];

    record.clear_child_tid = read(task, &offset::TASK_CLEAR_CHILD_TID);
    record.set_child_tid = read(task, &offset::TASK_SET_CHILD_TID);
    record.robust_list = read(task, &offset::TASK_ROBUST_LIST);
    record.sas_ss_sp = read(task, &offset::TASK_SAS_SS_SP);
    record.sas_ss_size = read(task, &offset::TASK_SAS_SS_SIZE);
    record.sas_ss_flags = read(task, &offset::TASK_SAS_SS_FLAGS);
    record.blocked = read(task, &offset::TASK_BLOCKED);
    record.saved_sigmask = read(task, &offset::TASK_SAVED_SIGMASK);
    record.timer_slack_ns = read(task, &offset::TASK_TIMER_SLACK_NS);
    record.pdeath_signal = read(task, &offset::TASK_PDEATH_SIGNAL);
    record.exit_signal = read(task, &offset::TASK_EXIT_SIGNAL);
    record.personality = read(task, &offset::TASK_PERSONALITY);
    let words: [u64; RESTART_BLOCK_LEN / 8] = read(task, &offset::TASK_RESTART_BLOCK);
    for (bytes, word) in record.restart_block.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }

    record.undo_list = read(task, &offset::TASK_UNDO_LIST);
    record.oom_score_adj = i32::from(read::<i16>(signal, &offset::SIGNAL_OOM_SCORE_ADJ));
    record.real_timer_armed = u32::from(read::<u8>(signal, &offset::SIGNAL_REAL_TIMER_STATE) & ENQUEUED);
    record.real_timer_expires_ns = read(signal, &offset::SIGNAL_REAL_TIMER_EXPIRES);
    record.real_timer_interval_ns = read(signal, &offset::SIGNAL_IT_REAL_INCR);
    record.has_actions = u32::from(leader == task);

    record.mm_def_flags = read(mm, &offset::MM_DEF_FLAGS);
    record.mm_sequence = read(mm, &offset::MM_SEQUENCE);
    record.cred = read(task, &offset::TASK_CRED);
    record.securebits = read(record.cred, &offset::CRED_SECUREBITS);
    record.subreaper = u32::from(read::<u8>(signal, &offset::SIGNAL_SUBREAPER));
    record.cpu_timers = read(signal, &offset::SIGNAL_CPU_TIMERS);
    record.posix_timers = read(signal, &offset::SIGNAL_POSIX_TIMERS);
    record.sets = [read(task, &offset::TASK_NSPROXY), read(task, &offset::TASK_CGROUPS)];
    if leader == task {
        copy(signal, &offset::SIGNAL_LIMITS, &mut record.limits);
        copy(mm, &offset::MM_SAVED_AUXV, &mut record.auxv);
    } else {
        record.limits = [0; LIMITS];
        record.auxv = [0; AUXV];
    }
    record.files = read(task, &offset::TASK_FILES);
    record.rights = rights(record.cred);
    record.atomic_flags = read(task, &offset::TASK_ATOMIC_FLAGS);
    record.cpu_features = read(task, &offset::TASK_CPU_FEATURES);
    record.name = read(task, &offset::TASK_NAME);
    record.seccomp = read(task, &offset::TASK_SECCOMP);
    record.xstate_permission = if leader == task { read(task, &offset::TASK_XSTATE_PERMISSION) } else { 0 };
}

#[inline(always)]
fn path(kind: usize, session: u64, dentry: u64, mount: u64) -> u64 {
    let Some(paths) = PATHS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the map's value for this CPU, which no other program touches: programs of one kind do not nest.
    let known = unsafe { &mut (*paths)[kind] };
    // One question, not three: the verifier follows each by itself, and the path behind it.
    let key = description::mix(description::mix(session, dentry), mount);
    if known[0] != key {
        let told = [key, description::path::<12>(dentry, mount)];
        // SAFETY: as above. Volatile, so that what follows is the same to the verifier, whichever way it came.
        unsafe { core::ptr::from_mut(known).write_volatile(told) };
    }
    // SAFETY: as above.
    unsafe { (&raw const known[1]).read_volatile() }
}

/// Who the task is to the system, and what it may do, as one number; 0 if it is in too many groups.
#[inline(always)]
fn rights(cred: u64) -> u64 {
    const GROUPS: usize = 32;
    let words: [u64; RIGHTS_LEN / 8] = read(cred, &offset::CRED_UID);
    let groups: u64 = read(cred, &offset::CRED_GROUPS);
    let count: u32 = read(groups, &offset::GROUPS_COUNT);
    if cred == 0 || count as usize > GROUPS {
        return 0;
    }
    let all: [u32; GROUPS] = read(groups, &offset::GROUPS_ALL);
    let mut hash = u64::from(count) + 1;
    for word in words {
        hash = description::mix(hash, word);
    }
    for (nth, group) in all.iter().enumerate() {
        // What stands behind the last one counts as nothing. Without a branch, each of which the verifier would follow to the end.
        let is_one = ((nth as i64 - i64::from(count)) >> 63).cast_unsigned();
        hash = description::mix(hash, u64::from(*group) & is_one);
    }
    hash | 1
}

/// Copies a field that is too large for the stack; zeroes if the kernel has none.
#[inline(always)]
fn copy<const N: usize>(base: u64, offset: &Global<u32>, to: &mut [u64; N]) {
    let offset = offset.load();
    // SAFETY: the buffer is part of the map's value, of the size given.
    let bytes = unsafe { core::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), N * size_of::<u64>()) };
    // SAFETY: the helper checks the kernel's address.
    let copied = base != 0
        && offset != KernelField::ABSENT
        && unsafe { bpf_probe_read_kernel_buf((base + u64::from(offset)) as *const u8, bytes) }.is_ok();
    if !copied {
        *to = [0; N];
    }
}

#[inline(always)]
fn read_actions(task: u64, actions: &mut [SignalAction; SIGNALS]) -> bool {
    let sighand: u64 = read(task, &offset::TASK_SIGHAND);
    let offset = offset::SIGHAND_ACTION.load();
    if sighand == 0 || offset == KernelField::ABSENT {
        return false;
    }
    // SAFETY: the buffer is the map's value, as large as the kernel's table on x86-64.
    let bytes = unsafe {
        core::slice::from_raw_parts_mut((&raw mut *actions).cast::<u8>(), SIGNALS * size_of::<SignalAction>())
    };
    // SAFETY: the helper checks the kernel's address.
    unsafe { bpf_probe_read_kernel_buf((sighand + u64::from(offset)) as *const u8, bytes) }.is_ok()
}
