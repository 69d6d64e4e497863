//! What was said of a mapping by `mmap` flags, `madvise` and `mlock`, as `/proc/PID/smaps` shows it.

use crate::procfs::Vma;
use crate::remote::Call;

/// One property: the letters of `VmFlags`, and the bit in the record.
struct Property {
    letters: &'static str,
    bit: u32,
}

/// Grows downwards, as stacks do.
pub const GROWS_DOWN: u32 = 1 << 0;
/// Not counted against overcommit.
pub const NO_RESERVE: u32 = 1 << 1;
/// Locked in memory.
pub const LOCKED: u32 = 1 << 2;
/// Locked as it is touched (`MLOCK_ONFAULT`).
pub const LOCK_ON_FAULT: u32 = 1 << 3;
/// `mseal`ed.
pub const SEALED: u32 = 1 << 4;
/// Made of huge pages (`MAP_HUGETLB`).
pub const HUGETLB: u32 = 1 << 5;
/// A shared mapping of a file open for writing, even where the mapping itself is read-only now.
pub const MAY_WRITE: u32 = 1 << 6;

/// Left out of core dumps (`MADV_DONTDUMP`).
pub const DONT_DUMP: u32 = 1 << 19;
/// Equal pages of it may be merged (`MADV_MERGEABLE`).
pub const MERGEABLE: u32 = 1 << 23;

const PROPERTIES: &[Property] = &[
    Property { letters: "gd", bit: GROWS_DOWN },
    Property { letters: "nr", bit: NO_RESERVE },
    Property { letters: "lo", bit: LOCKED },
    Property { letters: "lf", bit: LOCK_ON_FAULT },
    Property { letters: "sl", bit: SEALED },
    Property { letters: "ht", bit: HUGETLB },
    Property { letters: "mw", bit: MAY_WRITE },
];

/// Advice that `madvise` can give again.
const ADVICE: &[(&str, u32, i32)] = &[
    ("sr", 1 << 16, libc::MADV_SEQUENTIAL),
    ("rr", 1 << 17, libc::MADV_RANDOM),
    ("dc", 1 << 18, libc::MADV_DONTFORK),
    ("dd", DONT_DUMP, libc::MADV_DONTDUMP),
    ("wf", 1 << 20, libc::MADV_WIPEONFORK),
    ("hg", 1 << 21, libc::MADV_HUGEPAGE),
    ("nh", 1 << 22, libc::MADV_NOHUGEPAGE),
    ("mg", MERGEABLE, libc::MADV_MERGEABLE),
];

/// The bits of a mapping.
pub fn of(vma: &Vma) -> u32 {
    let bit = |flag: &[u8; 2]| {
        let fixed = PROPERTIES.iter().find(|p| p.letters.as_bytes() == flag).map(|p| p.bit);
        fixed.or_else(|| ADVICE.iter().find(|(letters, ..)| letters.as_bytes() == flag).map(|(_, bit, _)| *bit))
    };
    // Nearly all mappings have these, and no others.
    let plain = |flag: &&[u8; 2]| !matches!(*flag, b"rd" | b"wr" | b"ex" | b"mr" | b"me" | b"ac" | b"sd");
    vma.flags.iter().filter(plain).filter_map(bit).fold(0, |all, bit| all | bit)
}

/// Calls that give a restored mapping its advice back.
pub fn calls(start: u64, len: u64, bits: u32) -> Vec<Call> {
    let mut calls: Vec<Call> = ADVICE
        .iter()
        .filter(|(_, bit, _)| bits & bit != 0)
        .map(|(_, _, advice)| Call::new(libc::SYS_madvise, &[start, len, *advice as u64]))
        .collect();
    if bits & LOCKED != 0 {
        let on_fault = if bits & LOCK_ON_FAULT != 0 { u64::from(libc::MLOCK_ONFAULT) } else { 0 };
        calls.push(Call::new(libc::SYS_mlock2, &[start, len, on_fault]));
    }
    calls
}
