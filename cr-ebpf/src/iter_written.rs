//! `iter/bpf_map_elem` over the record of written pages: hands out and clears, word by word and atomically, what was
//! recorded. A fault at the same time lands either in what is handed out or in what the next reading will find. The
//! entries stay, so that the next write to the same region need not make one.

use aya_ebpf::helpers::generated::bpf_seq_write;
use cr_common::{REGION_WORDS, RegionRecord, WrittenKey, WrittenRegion};

use crate::{atomic, iter_task::Meta, writes};

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
    tell(ctx, false)
}

/// The same while the followed processes stand still. Nobody makes an entry or writes to one then: those in which there was nothing
/// are removed, so that the record is no longer than what was written lately.
///
/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub unsafe extern "C" fn iter_written_at_rest(ctx: *const Context) -> i32 {
    tell(ctx, true)
}

#[inline(always)]
fn tell(ctx: *const Context, at_rest: bool) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the loads.
    let (meta, key, value) = unsafe { ((*ctx).meta, (*ctx).key, (*ctx).value) };
    // The last call, after all entries, has none.
    if key.is_null() || value.is_null() {
        return 0;
    }
    // SAFETY: the entry's key, which does not change; the verifier checks the size against the map's.
    let key = unsafe { *key };
    let mut region = WrittenRegion { key, record: RegionRecord { written: [0; REGION_WORDS], touched: 0 } };
    let mut any = 0;
    for (index, word) in words(&mut region.record).iter_mut().enumerate() {
        // SAFETY: word `index` of the entry's value, aligned; shared with the programs that record, hence atomic. Most are empty,
        // and looking is cheaper than taking.
        *word = unsafe { if value.add(index).read_volatile() == 0 { 0 } else { atomic::take(value.add(index)) } };
        any |= *word;
    }
    if any == 0 {
        if at_rest {
            writes::forget(&region.key);
        }
        return 0;
    }
    // SAFETY: `meta` is the kernel's; the buffer has the size given.
    let written = unsafe { bpf_seq_write((*meta).seq, (&raw const region).cast(), size_of::<WrittenRegion>() as u32) };
    if written != 0 {
        // The output is full. The kernel drops what was written for this entry and calls again for it.
        for (index, word) in words(&mut region.record).iter().enumerate() {
            // SAFETY: as above.
            unsafe { atomic::or(value.add(index), *word) };
        }
    }
    0
}

/// The record as the words that it consists of.
#[inline(always)]
fn words(record: &mut RegionRecord) -> &mut [u64; REGION_WORDS + 1] {
    // SAFETY: the record is these words, as its size says.
    unsafe { &mut *(&raw mut *record).cast() }
}
