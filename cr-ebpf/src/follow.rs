//! Which processes and address spaces are followed. The controller puts the first one in; forks and execs of followed
//! processes add theirs, exits take theirs out.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use cr_common::{Followed, Lost};

use crate::atomic;

/// Followed address spaces, by `mm_struct` address.
#[map]
static FOLLOWED: HashMap<u64, Followed> = HashMap::with_max_entries(4096, 0);

/// Followed processes: number in the first pid namespace → address space.
#[map]
static PROCESSES: HashMap<u32, u64> = HashMap::with_max_entries(4096, 0);

/// What could not be recorded: see [`Lost`].
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(Lost::COUNT, 0);

/// The words of [`Followed`] that are counts of what happened.
#[derive(Clone, Copy)]
pub(crate) enum Count {
    Local = 1,
    Taken = 2,
    Given = 3,
    Faults = 4,
}

/// Whether writes to this address space are recorded.
#[inline(always)]
pub(crate) fn is_followed(mm: u64) -> bool {
    FOLLOWED.get_ptr(&mm).is_some()
}

/// Counts one more.
#[inline(always)]
pub(crate) fn count(mm: u64, what: Count) {
    if let Some(followed) = FOLLOWED.get_ptr_mut(&mm) {
        // SAFETY: a word of the map's value, aligned and valid until the program ends; shared with other CPUs, hence atomic.
        unsafe { atomic::fetch_add(followed.cast::<u64>().add(what as usize), 1) };
    }
}

/// Counts one more of a system call's.
#[inline(always)]
pub(crate) fn count_call(mm: u64, what: Count, call: i64) {
    count(mm, what);
    if let Some(followed) = FOLLOWED.get_ptr_mut(&mm) {
        // SAFETY: a word of the map's value, aligned and valid until the program ends. Of several, whichever is last.
        unsafe { followed.cast::<u64>().add(5).write_volatile(call as u64) };
    }
}

/// The address space of a followed process; nothing if the process is not followed.
#[inline(always)]
pub(crate) fn process(tgid: u32) -> Option<u64> {
    // SAFETY: the value is a plain word, copied at once. The map is preallocated, so a concurrent removal could hand the
    // slot to another process; processes are removed by their own last thread only, which cannot run beside itself.
    unsafe { PROCESSES.get(&tgid) }.copied()
}

/// Follows a process and its address space from now on.
#[inline(always)]
pub(crate) fn add(tgid: u32, mm: u64) -> bool {
    if PROCESSES.insert(&tgid, &mm, 0).is_err() {
        return false;
    }
    let first = Followed { users: 1, local: 0, taken: 0, given: 0, faults: 0, call: 0 };
    if FOLLOWED.insert(&mm, &first, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    let Some(users) = FOLLOWED.get_ptr_mut(&mm).map(|followed| followed.cast::<u64>()) else {
        return false;
    };
    // SAFETY: the first word of the map's value, aligned and valid until the program ends; shared with other CPUs, hence atomic.
    unsafe { atomic::fetch_add(users, 1) };
    true
}

/// Ends following a process; its address space goes on being followed while another followed process uses it.
#[inline(always)]
pub(crate) fn remove(tgid: u32, mm: u64) {
    // An entry that is gone already is what was wanted.
    let _ = PROCESSES.remove(&tgid);
    let Some(users) = FOLLOWED.get_ptr_mut(&mm).map(|followed| followed.cast::<u64>()) else {
        return;
    };
    // SAFETY: as in `add`.
    if unsafe { atomic::fetch_add(users, u64::MAX) } == 1 {
        let _ = FOLLOWED.remove(&mm);
    }
}

/// Counts something that could not be recorded, and says whether it was the first on this CPU.
#[inline(always)]
pub(crate) fn lose(what: Lost) -> bool {
    let Some(count) = LOST.get_ptr_mut(what as u32) else {
        return false;
    };
    // SAFETY: the map's value for this CPU. A program that interrupts this one could count at the same time, hence atomic.
    let before = unsafe { atomic::fetch_add(count, 1) };
    before == 0
}
