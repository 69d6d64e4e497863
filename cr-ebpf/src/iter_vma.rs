//! `iter/task_vma`: the mappings of one process, in binary.

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel_str_bytes, generated::bpf_seq_write},
    macros::map,
    maps::PerCpuArray,
};
use cr_common::{ANON_NAME_LEN, KernelField, VmaRecord};

use crate::{
    iter_task::Meta,
    kernel::{offset, read},
};

/// `struct bpf_iter__task_vma`.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: *const u8,
    vma: *const u8,
}

#[map]
static VMA_RECORD: PerCpuArray<VmaRecord> = PerCpuArray::with_max_entries(1, 0);

/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_vma")]
pub unsafe extern "C" fn iter_vma(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the loads.
    let (meta, task, vma) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).vma) };
    // The last call, after all mappings, has none.
    if task.is_null() || vma.is_null() {
        return 0;
    }
    let Some(record) = VMA_RECORD.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the map's value for this CPU, which no other program touches: programs of one kind do not nest.
    let record = unsafe { &mut *record };
    fill(record, vma as u64);
    // SAFETY: `meta` is the kernel's; the buffer is a map value of the size given.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const *record).cast(), size_of::<VmaRecord>() as u32);
    }
    0
}

/// Sets every field of `record`, which still holds the previous mapping's.
#[inline(always)]
fn fill(record: &mut VmaRecord, vma: u64) {
    record.start = read(vma, &offset::VMA_START);
    record.end = read(vma, &offset::VMA_END);
    record.flags = read(vma, &offset::VMA_FLAGS);
    record.pgoff = read(vma, &offset::VMA_PGOFF);
    let file: u64 = read(vma, &offset::VMA_FILE);
    let inode: u64 = read(file, &offset::FILE_INODE);
    record.has_file = u32::from(file != 0);
    record.inode = read(inode, &offset::INODE_INO);
    record.dev = read(read(inode, &offset::INODE_SB), &offset::SUPER_BLOCK_DEV);
    record.anon_name = [0; ANON_NAME_LEN];
    let name: u64 = read(vma, &offset::VMA_ANON_NAME);
    let offset = offset::ANON_NAME_NAME.load();
    // For a file mapping the same word is part of the file's tree of mappings.
    if file == 0 && name != 0 && offset != KernelField::ABSENT {
        // SAFETY: the helper checks the kernel's address. A name that cannot be read is shown as none.
        let _ =
            unsafe { bpf_probe_read_kernel_str_bytes((name + u64::from(offset)) as *const u8, &mut record.anon_name) };
    }
}
