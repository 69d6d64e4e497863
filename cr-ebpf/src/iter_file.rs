//! `iter/task_file`: the open descriptors of one process, in binary.

use aya_ebpf::{helpers::generated::bpf_seq_write, macros::map, maps::PerCpuArray};
use cr_common::{FileRecord, covered};

use crate::{
    description,
    iter_task::Meta,
    kernel::{offset, read},
};

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
    fill(record, task as u64, fd, file as u64);
    // SAFETY: the kernel's; the verifier checks the load.
    let session = unsafe { (*meta).session };
    (record.covered, record.evidence) = description::evidence(file as u64, record.locks, session);
    record.watched = description::watches(file as u64);
    record.references = if record.covered == covered::EPOLL { description::references(file as u64) } else { 0 };
    // SAFETY: `meta` is the kernel's; the buffer is a map value of the size given.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const *record).cast(), size_of::<FileRecord>() as u32);
    }
    0
}

/// Sets every field of `record`, which still holds the previous descriptor's.
#[inline(always)]
fn fill(record: &mut FileRecord, task: u64, fd: u32, file: u64) {
    let files: u64 = read(task, &offset::TASK_FILES);
    let table: u64 = read(files, &offset::FILES_TABLE);
    let bits: u64 = read(table, &offset::TABLE_CLOEXEC);
    // SAFETY: the helper checks the address and fails on a bad one.
    let word = unsafe {
        aya_ebpf::helpers::bpf_probe_read_kernel((bits + u64::from(fd / 64) * 8) as *const u64).unwrap_or_default()
    };
    record.file = file;
    record.fd = fd;
    record.cloexec = (word >> (fd % 64) & 1) as u32;
    let inode: u64 = read(file, &offset::FILE_INODE);
    record.locks = read(inode, &offset::INODE_LOCKS);
}
