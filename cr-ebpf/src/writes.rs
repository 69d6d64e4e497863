//! Which pages of followed address spaces had a write fault.
//!
//! A fault is seen when the task itself stores, and when the kernel stores for it (`read(2)` into a buffer). Not seen:
//! stores that reach the pages through `get_user_pages` (`process_vm_writev`, ptrace, O_DIRECT, io_uring's registered
//! buffers), stores through another mapping of a shared page, and, of course, stores that raise no fault because the
//! page is writable already. `locks` watches the first of these. The record says what the page tables need be asked about,
//! never instead of them.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{btf_tracepoint, map},
    maps::{HashMap, RingBuf},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use cr_common::{Lost, REGION_WORDS, RegionRecord, TouchedRange, WrittenKey, page_in_region, region_of};

use crate::{
    atomic,
    follow::{self, Count},
    kernel,
    kernel::offset,
    locks,
};

/// The record. The controller sets its size before it loads.
#[map]
static WRITTEN: HashMap<WrittenKey, RegionRecord> = HashMap::with_max_entries(32768, 0);

/// The bit of a page fault's error code that says "by a write" (`X86_PF_WRITE` in `asm/trap_pf.h`).
const WRITE: u64 = 1 << 1;

/// Ranges of more regions than these are noted as such, and not region by region.
const FEW_REGIONS: u64 = 4;

/// Long ranges of which something became without a fault: [`TouchedRange`]s.
#[map]
static TOUCHED: RingBuf = RingBuf::with_byte_size(128 * 1024, 0);

#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_user(ctx: BtfTracePointContext) -> i32 {
    fault(&ctx, false);
    0
}

#[btf_tracepoint(function = "page_fault_kernel")]
pub fn page_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    fault(&ctx, true);
    0
}

/// The arguments of both tracepoints: `unsigned long address, struct pt_regs *regs, unsigned long error_code`.
#[inline(always)]
fn fault(ctx: &BtfTracePointContext, in_kernel: bool) {
    let (address, error_code): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    // The upper half of the addresses is the kernel's.
    if !in_kernel && error_code & WRITE == 0 || address.cast_signed() < 0 {
        return;
    }
    let task = kernel::current();
    let mm: u64 = kernel::read(task, &offset::TASK_MM);
    if mm == 0 || !follow::is_followed(mm) {
        return;
    }
    if in_kernel {
        locks::faults_in_kernel(task);
        if error_code & WRITE == 0 {
            return;
        }
    }
    follow::count(mm, Count::Faults);
    let page = page_in_region(address);
    let noted = set(mm, region_of(address), page / 64, 1 << (page % 64));
    if !noted && follow::lose(Lost::Page) {
        warn!(ctx, "the record of written pages is full; this checkpoint must ask the page tables about everything");
    }
}

/// Records that something became of a range without a fault: bits of [`cr_common::touched`]. Says whether it could.
#[inline(never)]
pub(crate) fn touch(mm: u64, start: u64, len: u64, what: u64) -> bool {
    if len == 0 || start.cast_signed() < 0 {
        return true;
    }
    let first = region_of(start);
    let count = region_of(start.wrapping_add(len - 1)).wrapping_sub(first).wrapping_add(1);
    if count > FEW_REGIONS {
        return TOUCHED.output::<TouchedRange>(&TouchedRange { mm, start, len, what }, 0).is_ok();
    }
    let mut all = true;
    for at in 0..FEW_REGIONS {
        if at < count {
            all &= set(mm, first + at, REGION_WORDS, what);
        }
    }
    all
}

/// Removes the entry of a region.
#[inline(always)]
pub(crate) fn forget(key: &WrittenKey) {
    // One that is gone already is what was wanted.
    let _ = WRITTEN.remove(key);
}

/// Sets bits in a word of a region's record.
#[inline(always)]
fn set(mm: u64, region: u64, word: usize, mask: u64) -> bool {
    let key = WrittenKey { mm, region };
    let record = match WRITTEN.get_ptr_mut(&key) {
        Some(record) => record,
        None => {
            // Another CPU may be first; then its entry is found below.
            let empty = RegionRecord { written: [0; REGION_WORDS], touched: 0 };
            let _ = WRITTEN.insert(&key, &empty, u64::from(BPF_NOEXIST));
            match WRITTEN.get_ptr_mut(&key) {
                Some(record) => record,
                None => return false,
            }
        }
    };
    // SAFETY: `word` is at most `REGION_WORDS`, the last one of the map's value, which is aligned and stays valid until the
    // program ends. Shared with other CPUs, hence atomic.
    unsafe { atomic::or(record.cast::<u64>().add(word), mask) };
    true
}
