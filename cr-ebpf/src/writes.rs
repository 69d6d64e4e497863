//! Which pages of followed address spaces had a write fault.
//!
//! A fault is seen when the task itself stores, and when the kernel stores for it (`read(2)` into a buffer). Not seen:
//! stores that reach the pages through `get_user_pages` (`process_vm_writev`, ptrace, O_DIRECT, io_uring's registered
//! buffers), stores through another mapping of a shared page, and, of course, stores that raise no fault because the
//! page is writable already. The record is a hint beside the page tables' written-bit, never a replacement.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use cr_common::{Lost, REGION_WORDS, WrittenBits, WrittenKey, page_in_region, region_of};

use crate::{atomic, follow, kernel, kernel::offset};

/// The record. The controller sets its size before it loads.
#[map]
static WRITTEN: HashMap<WrittenKey, WrittenBits> = HashMap::with_max_entries(32768, 0);

/// How many write faults there were in followed address spaces.
#[map]
static WRITE_FAULTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The bit of a page fault's error code that says "by a write" (`X86_PF_WRITE` in `asm/trap_pf.h`).
const WRITE: u64 = 1 << 1;

#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_user(ctx: BtfTracePointContext) -> i32 {
    fault(&ctx);
    0
}

#[btf_tracepoint(function = "page_fault_kernel")]
pub fn page_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    fault(&ctx);
    0
}

/// The arguments of both tracepoints: `unsigned long address, struct pt_regs *regs, unsigned long error_code`.
#[inline(always)]
fn fault(ctx: &BtfTracePointContext) {
    let (address, error_code): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    // The upper half of the addresses is the kernel's.
    if error_code & WRITE == 0 || address.cast_signed() < 0 {
        return;
    }
    let mm: u64 = kernel::read(kernel::current(), &offset::TASK_MM);
    if mm == 0 || !follow::is_followed(mm) {
        return;
    }
    if let Some(count) = WRITE_FAULTS.get_ptr_mut(0) {
        // SAFETY: the map's value for this CPU, aligned. A fault that interrupts this one counts too, hence atomic.
        unsafe { atomic::fetch_add(count, 1) };
    }
    if record(mm, address).is_none() && follow::lose(Lost::Page) {
        warn!(ctx, "the record of written pages is full; this checkpoint must ask the page tables about everything");
    }
}

#[inline(always)]
fn record(mm: u64, address: u64) -> Option<()> {
    let key = WrittenKey { mm, region: region_of(address) };
    let page = page_in_region(address);
    let bits = match WRITTEN.get_ptr_mut(&key) {
        Some(bits) => bits,
        None => {
            // Another CPU may be first; then its entry is found below.
            let _ = WRITTEN.insert(&key, &[0; REGION_WORDS], u64::from(BPF_NOEXIST));
            WRITTEN.get_ptr_mut(&key)?
        }
    };
    // SAFETY: `page` is less than 512, so the word lies within the map's value, which is aligned and stays valid until the
    // program ends. Shared with other CPUs, hence atomic.
    unsafe { atomic::or(bits.cast::<u64>().add(page / 64), 1 << (page % 64)) };
    Some(())
}
