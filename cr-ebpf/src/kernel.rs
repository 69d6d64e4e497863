//! Reading the kernel's structures at offsets that the controller found in BTF.

use aya_ebpf::{Global, helpers};
use cr_common::{KernelField, for_each_kernel_field};

macro_rules! globals {
    ($($name:ident, $structure:literal, $path:literal, $optional:literal;)*) => {
        /// Offsets, set by the controller before the programs are loaded.
        pub(crate) mod offset {
            use aya_ebpf::Global;
            $(
                #[unsafe(no_mangle)]
                pub(crate) static $name: Global<u32> = Global::new(cr_common::KernelField::ABSENT);
            )*
        }
    };
}
for_each_kernel_field!(globals);

/// The pid namespace of the controller, by its inode number.
#[unsafe(no_mangle)]
static CONTROLLER_PIDNS: Global<u32> = Global::new(0);

/// Pid namespaces nest at most this deep (`MAX_PID_NS_LEVEL` in `linux/pid_namespace.h`).
const DEEPEST_PIDNS: u32 = 32;

/// Reads the field at `offset` of the structure at `base`; the type's zero if the kernel has no such field or refuses.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, offset: &Global<u32>) -> T {
    let offset = offset.load();
    if offset == KernelField::ABSENT {
        // SAFETY: as in `read_at`: `T` is an integer or an array of them.
        return unsafe { core::mem::zeroed() };
    }
    read_at(base.wrapping_add(u64::from(offset)))
}

/// What stands at a kernel address; the type's zero if the kernel refuses, as it does for the first pages, where nothing is.
///
/// Without any branch: the verifier follows each way of one to the end of the program, and programs that read a hundred fields
/// took it half a second.
#[inline(always)]
pub(crate) fn read_at<T: Copy>(address: u64) -> T {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and fills all of the buffer, with zeroes where it fails (`bpf_probe_read_kernel_common`
    // in `kernel/trace/bpf_trace.c`). `T` is an integer or an array of them, for which all bits are valid. Needed because the
    // programs are not typed against this kernel's structures.
    unsafe {
        helpers::generated::bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        value.assume_init()
    }
}

/// The running task.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: the helper has no requirement; what it returns is only ever read through `read`.
    unsafe { helpers::generated::bpf_get_current_task() }
}

/// The number of `task` in the controller's pid namespace, or 0 if it is not visible there.
#[inline(always)]
pub(crate) fn seen_tid(task: u64) -> u32 {
    seen_number(read(task, &offset::TASK_THREAD_PID))
}

/// What stands for the `struct pid` at an address in the controller's pid namespace, or 0 if it is not visible there.
#[inline(never)]
pub(crate) fn seen_number(pid: u64) -> u32 {
    if pid == 0 {
        return 0;
    }
    let level: u32 = read(pid, &offset::PID_LEVEL);
    let wanted = CONTROLLER_PIDNS.load();
    let mut number = pid + u64::from(offset::PID_NUMBERS.load());
    for depth in 0..DEEPEST_PIDNS {
        if depth > level {
            break;
        }
        let namespace: u64 = read(number, &offset::UPID_NS);
        if read::<u32>(namespace, &offset::PIDNS_INUM) == wanted {
            return read(number, &offset::UPID_NR);
        }
        number += u64::from(offset::UPID_SIZE.load());
    }
    0
}

/// The number of the process of `task` in the controller's pid namespace, or 0 if it is not visible there.
#[inline(always)]
pub(crate) fn seen_tgid(task: u64) -> u32 {
    seen_tid(read(task, &offset::TASK_GROUP_LEADER))
}
