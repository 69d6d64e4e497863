//! Atomic read-modify-write of 64-bit words in maps. The BPF target has the instructions (version 3 of the instruction
//! set, Linux 5.12), but Rust's `AtomicU64` offers only loads and stores there.

use core::arch::asm;

/// Adds `value` to the word and returns what it was.
///
/// # Safety
///
/// `word` must be an aligned word of a map's value.
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the caller's promise; nothing but the word is touched. Needed as there is no stable way to say it.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word, value = inout(reg) value);
    }
    value
}

/// Sets the bits of `mask` in the word.
///
/// # Safety
///
/// `word` must be an aligned word of a map's value.
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, mask: u64) {
    // SAFETY: as in `fetch_add`.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) |= {mask}", word = in(reg) word, mask = in(reg) mask);
    }
}

/// Puts 0 into the word and returns what it was.
///
/// # Safety
///
/// `word` must be an aligned word of a map's value.
#[inline(always)]
pub(crate) unsafe fn take(word: *mut u64) -> u64 {
    let mut value = 0;
    // SAFETY: as in `fetch_add`.
    unsafe {
        asm!("{value} = xchg_64({word} + 0, {value})", word = in(reg) word, value = inout(reg) value);
    }
    value
}
