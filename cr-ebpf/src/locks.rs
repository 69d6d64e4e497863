//! Who takes the lock of a followed address space for reading.
//!
//! What raises no page fault and still writes to protected pages, or takes pages away, goes through the kernel's
//! `get_user_pages`, `fixup_user_fault` or `madvise`, and all of these hold that lock: `process_vm_writev`, ptrace and
//! `/proc/PID/mem` of other processes, O_DIRECT, `io_uring`, RDMA, the repair of futexes. So a lock that nobody took says that
//! nothing was written but by faults. Of the calls that are known to write where their arguments say, the place is recorded
//! instead; those that never write are left out; all others are counted, and the page tables are asked about everything then.
//!
//! Mappings are changed under the lock for writing, which the kernel counts itself. On Linux 6.17 and later `madvise` takes a
//! lock of one mapping only, but not of those that a userfaultfd watches (`is_vma_lock_sufficient` in `mm/madvise.c`).

use aya_ebpf::{
    Global,
    helpers::bpf_probe_read_user,
    helpers::generated::{bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs},
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray},
    programs::BtfTracePointContext,
};
use cr_common::touched;

use crate::{
    follow::{self, Count},
    kernel::{current, offset, read},
    writes,
};

/// The controller's process, as the first pid namespace numbers it.
#[map]
static CONTROLLER: Array<u32> = Array::with_max_entries(1, 0);

/// The task that has a page fault in the kernel's own code on this CPU, and since when: it takes the lock next.
#[map]
static FAULTING: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// A fault that waits longer for the lock counts as somebody unknown.
const FAULT_LASTS_NS: u64 = 10_000_000;

/// Kinds of tasks (`PF_*` in `linux/sched.h`): kernel threads, and workers that do their work in a job's address space.
const KTHREAD: u32 = 0x0020_0000;
const WORKERS: u32 = 0x0000_0010 | 0x0000_4000;

/// Arguments: `struct mm_struct *mm, bool write, bool success`.
#[btf_tracepoint(function = "mmap_lock_acquire_returned")]
pub fn mmap_lock_acquire_returned(ctx: BtfTracePointContext) -> i32 {
    let (mm, write, success): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if success & 1 == 0 || !follow::is_followed(mm) {
        return 0;
    }
    let is_known = match whose(mm) {
        // mremap with MREMAP_DONTUNMAP takes the pages away and leaves the mapping as it is.
        who if write & 1 != 0 => {
            !matches!(who, Who::Own)
                || call() != 25
                || writes::touch(mm, argument(&offset::REGS_FIRST), argument(&offset::REGS_SECOND), touched::ASK)
        }
        Who::Other => {
            follow::count_call(mm, Count::Taken, call());
            true
        }
        Who::Own => is_for_a_fault() || touches_what_it_says(mm),
        Who::Writer => writes_where_it_says(mm),
        Who::Harmless => true,
    };
    if !is_known {
        follow::count_call(mm, Count::Local, call());
    }
    0
}

/// Arguments: `struct mm_struct *mm, bool write`.
#[btf_tracepoint(function = "mmap_lock_released")]
pub fn mmap_lock_released(ctx: BtfTracePointContext) -> i32 {
    let (mm, write): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    if write & 1 == 0 && follow::is_followed(mm) && matches!(whose(mm), Who::Other) {
        follow::count(mm, Count::Given);
    }
    0
}

/// Notes that the running task has a fault in the kernel's code, for which it will take the lock. Where faults are turned off
/// it takes none.
#[inline(always)]
pub(crate) fn faults_in_kernel(task: u64) {
    let Some(slot) = FAULTING.get_ptr_mut(0) else { return };
    // Reading the count raises it by one meanwhile (`copy_from_kernel_nofault` in `mm/maccess.c`).
    let off = read::<i32>(task, &offset::TASK_FAULTS_OFF) - 1;
    // SAFETY: the map's value for this CPU; should another program of ours interrupt us, the lock is counted as unknown.
    unsafe { *slot = if off == 0 { [task, bpf_ktime_get_ns()] } else { [0; 2] } };
}

enum Who {
    /// A task of the address space itself.
    Own,
    /// Another process, or the kernel on behalf of somebody.
    Other,
    /// Another process, by a call that says where it writes.
    Writer,
    /// Somebody who writes nothing.
    Harmless,
}

#[inline(always)]
fn whose(mm: u64) -> Who {
    let task = current();
    let kind: u32 = read(task, &offset::TASK_KIND);
    if kind & KTHREAD != 0 {
        return if is_housekeeper(task) { Who::Harmless } else { Who::Other };
    }
    if kind & WORKERS != 0 {
        return Who::Other;
    }
    if read::<u64>(task, &offset::TASK_MM) == mm {
        return Who::Own;
    }
    // SAFETY: the helper has no requirement.
    let tgid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let is_ours = CONTROLLER.get(0).is_some_and(|controller| *controller == tgid);
    match call() {
        // read, pread64, process_vm_readv: of `/proc/PID`, and of its memory.
        0 | 17 | 310 => Who::Harmless,
        // open, openat, readlink, readlinkat, newfstatat, getdents64, statx: in `/proc/PID/map_files`.
        2 | 257 | 89 | 267 | 262 | 217 | 332 => Who::Harmless,
        // ioctl: our own questions about written pages. Another's could fill pages.
        16 if is_ours => Who::Harmless,
        // process_vm_writev; pwrite64: what we write to `/proc/PID/mem`. Others than the job's own may do so while the job stands still, when
        // what they note could be lost.
        311 if is_ours || follow::process(tgid).is_some() => Who::Writer,
        18 if is_ours => Who::Writer,
        _ => Who::Other,
    }
}

/// Whether a kernel thread is one that only tidies up: `khugepaged`, which leaves protected pages alone, and `kdamond`, which
/// looks at what is used.
#[inline(always)]
fn is_housekeeper(task: u64) -> bool {
    let comm: u64 = read(task, &offset::TASK_COMM);
    comm == u64::from_le_bytes(*b"khugepag") || comm == u64::from_le_bytes(*b"kdamond.")
}

/// Notes what a task of the address space itself has taken the lock for, if its call says so.
#[inline(always)]
fn touches_what_it_says(mm: u64) -> bool {
    let (first, second, third) =
        (argument(&offset::REGS_FIRST), argument(&offset::REGS_SECOND), argument(&offset::REGS_THIRD));
    match call() {
        // A fault in the program's own code, which is recorded as such.
        call if call < 0 => true,
        // mmap, munmap, brk, mremap: they change mappings, which is seen by itself. msync, mincore, process_vm_readv: nothing.
        // exit: what it writes, it writes by faults. futex: it tries first, which is a fault.
        9 | 11 | 12 | 25 | 26 | 27 | 60 | 202 | 310 => true,
        // read, pread64: into the buffer, past the caches.
        0 | 17 => writes::touch(mm, second, third, touched::ASK),
        // madvise
        28 if third == MADV_FREE => writes::touch(mm, first, second, touched::ASK | touched::VOLATILE),
        // madvise, mlock, mlock2
        28 | 149 | 325 => writes::touch(mm, first, second, touched::ASK),
        _ => false,
    }
}

const MADV_FREE: u64 = 8;

/// Notes where another process writes.
#[inline(always)]
fn writes_where_it_says(mm: u64) -> bool {
    /// Pieces that one call may have before the page tables are asked about everything.
    const MOST_PIECES: u64 = 4;
    let fourth = argument(&offset::REGS_FOURTH);
    if call() == 18 {
        return writes::touch(mm, fourth, argument(&offset::REGS_THIRD), touched::ASK);
    }
    let count = argument(&offset::REGS_FIFTH);
    if count > MOST_PIECES {
        return false;
    }
    for at in 0..MOST_PIECES {
        if at >= count {
            break;
        }
        // SAFETY: the helper checks the address. `struct iovec` is two words.
        match unsafe { bpf_probe_read_user((fourth + at * 16) as *const [u64; 2]) } {
            Ok([start, len]) if writes::touch(mm, start, len, touched::ASK) => {}
            _ => return false,
        }
    }
    true
}

/// Whether the running task has just had a fault in the kernel's code, for which this is the lock.
#[inline(always)]
fn is_for_a_fault() -> bool {
    let Some(slot) = FAULTING.get_ptr_mut(0) else { return false };
    // SAFETY: the map's value for this CPU.
    let [task, since] = unsafe { *slot };
    if task == 0 || task != current() {
        return false;
    }
    // SAFETY: as above.
    unsafe { (*slot)[0] = 0 };
    // SAFETY: the helper has no requirement.
    unsafe { bpf_ktime_get_ns() }.wrapping_sub(since) < FAULT_LASTS_NS
}

/// The number of the system call that the running task is in; negative if it is in none.
#[inline(always)]
fn call() -> i64 {
    read::<i64>(registers(), &offset::REGS_CALL)
}

#[inline(always)]
fn argument(register: &Global<u32>) -> u64 {
    read(registers(), register)
}

/// Where the running task's registers were saved when it entered the kernel.
#[inline(always)]
fn registers() -> u64 {
    // SAFETY: the helpers have no requirement beyond that a task runs.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 }
}
