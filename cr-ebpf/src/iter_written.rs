//! `iter/bpf_map_elem` over the record of written pages: hands out and clears, word by word and atomically, what was
//! recorded. A fault at the same time lands either in what is handed out or in what the next reading will find. The
//! entries stay, so that the next write to the same region need not make one.

use aya_ebpf::helpers::generated::bpf_seq_write;
use cr_common::{REGION_WORDS, WrittenKey, WrittenRegion};

use crate::{atomic, iter_task::Meta};

/// `struct bpf_iter__bpf_map_elem`.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    map: *const u8,
    key: *const WrittenKey,
    value: *mut u64,
}

/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub unsafe extern "C" fn iter_written(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the loads.
    let (meta, key, value) = unsafe { ((*ctx).meta, (*ctx).key, (*ctx).value) };
    // The last call, after all entries, has none.
    if key.is_null() || value.is_null() {
        return 0;
    }
    // SAFETY: the entry's key, which does not change; the verifier checks the size against the map's.
    let mut region = WrittenRegion { key: unsafe { *key }, bits: [0; REGION_WORDS] };
    let mut any = 0;
    for (index, bits) in region.bits.iter_mut().enumerate() {
        // SAFETY: word `index` of the entry's value, aligned; shared with the programs that record, hence atomic.
        *bits = unsafe { atomic::take(value.add(index)) };
        any |= *bits;
    }
    if any == 0 {
        return 0;
    }
    // SAFETY: `meta` is the kernel's; the buffer has the size given.
    let written = unsafe { bpf_seq_write((*meta).seq, (&raw const region).cast(), size_of::<WrittenRegion>() as u32) };
    if written != 0 {
        // The output is full. The kernel drops what was written for this entry and calls again for it.
        for (index, bits) in region.bits.iter().enumerate() {
            // SAFETY: as above.
            unsafe { atomic::or(value.add(index), *bits) };
        }
    }
    0
}
