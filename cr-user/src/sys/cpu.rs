//! What the CPU says of its extended state.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// CPUID leaf of the extended state.
const XSTATE_LEAF: u32 = 0xd;

/// Bytes of the standard-format extended state that holds every enabled user feature but those in `without`.
pub fn xstate_len_without(without: u64) -> usize {
    /// Where the area of each feature ends. A virtual machine takes long to answer CPUID: it is asked once.
    static ENDS: OnceLock<[usize; 63]> = OnceLock::new();
    let enabled = enabled_features();
    let ends = ENDS.get_or_init(|| {
        std::array::from_fn(|feature| {
            if feature < 2 || enabled >> feature & 1 == 0 {
                return 0;
            }
            let leaf = __cpuid_count(XSTATE_LEAF, feature as u32);
            (leaf.ebx + leaf.eax) as usize
        })
    });
    let kept = (2..63).filter(|feature| (enabled & !without) >> feature & 1 == 1);
    kept.map(|feature| ends[feature]).fold(512 + 64, usize::max)
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
