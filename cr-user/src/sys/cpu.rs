//! What the CPU says of its extended state.

use std::arch::x86_64::__cpuid_count;

/// CPUID leaf of the extended state.
const XSTATE_LEAF: u32 = 0xd;

/// Bytes of the standard-format extended state that holds every enabled user feature but those in `without`.
pub fn xstate_len_without(without: u64) -> usize {
    let enabled = enabled_features() & !without;
    let mut len = 512 + 64;
    for feature in 2..63 {
        if enabled >> feature & 1 == 1 {
            let leaf = __cpuid_count(XSTATE_LEAF, feature);
            len = len.max((leaf.ebx + leaf.eax) as usize);
        }
    }
    len
}

/// The mask of extended-state features that the kernel has enabled for programs (XCR0).
pub fn enabled_features() -> u64 {
    // SAFETY: XGETBV is there wherever the kernel uses XSAVE, which every x86-64 machine with ptrace xstate does; the
    // feature attribute only tells the compiler so.
    unsafe { xcr0() }
}

#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 is always valid.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}
