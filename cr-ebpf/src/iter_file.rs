//! `iter/task_file`: the open descriptors of one process, in binary.

use aya_ebpf::{helpers::generated::bpf_seq_write, macros::map, maps::PerCpuArray};
use cr_common::FileRecord;

use crate::{description, iter_task::Meta};

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: *const u8,
    fd: u64,
    file: *const u8,
}

#[map]
static FILE_RECORD: PerCpuArray<FileRecord> = PerCpuArray::with_max_entries(1, 0);

/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn iter_file(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the loads.
    let (meta, task, fd, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).fd as u32, (*ctx).file) };
    // The last call, after all descriptors, has none.
    if task.is_null() || file.is_null() {
        return 0;
    }
    let Some(record) = FILE_RECORD.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the map's value for this CPU, which no other program touches: programs of one kind do not nest.
    let record = unsafe { &mut *record };
    // SAFETY: the kernel's; the verifier checks the load.
    let session = unsafe { (*meta).session };
    description::describe(record, task as u64, fd, file as u64, session);
    // SAFETY: `meta` is the kernel's; the buffer is a map value of the size given.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const *record).cast(), size_of::<FileRecord>() as u32);
    }
    0
}
