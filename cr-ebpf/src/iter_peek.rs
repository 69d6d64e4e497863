//! `iter/task` over one task, whichever: words of kernel memory at addresses that the controller asks for. The controller
//! follows pointers through structures that have no iterator of their own; which fields these are it knows from BTF.
//!
//! Per-CPU memory is named by an address to which each CPU's own offset is added. No symbol tells these offsets everywhere:
//! [`iter_cpus`] shows where a map of ours has its copy for each CPU, and where the kernel keeps the map itself.

use aya_ebpf::{
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_map_lookup_percpu_elem, bpf_seq_write},
    },
    macros::map,
    maps::{Array, PerCpuArray},
};
use cr_common::{CPUS, PEEKS};

use crate::iter_task::Context;

/// The addresses; 0 for none.
#[map]
static PEEK: Array<[u64; PEEKS]> = Array::with_max_entries(1, 0);

/// What stands there.
#[map]
static PEEKED: PerCpuArray<[u64; PEEKS]> = PerCpuArray::with_max_entries(1, 0);

/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn iter_peek(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the two loads.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    // The last call, after all tasks, has none.
    if task.is_null() {
        return 0;
    }
    let (Some(addresses), Some(words)) = (PEEK.get(0), PEEKED.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: the map's value for this CPU, which no other program touches: programs of one kind do not nest.
    let words = unsafe { &mut *words };
    for (word, address) in words.iter_mut().zip(addresses) {
        // SAFETY: the helper checks the address and fails on a bad one. Needed because the structures have no types here.
        *word = unsafe { bpf_probe_read_kernel(*address as *const u64) }.unwrap_or(0);
    }
    // SAFETY: `meta` is the kernel's; the buffer is a map value of the size given.
    unsafe {
        bpf_seq_write((*meta).seq, words.as_ptr().cast(), size_of::<[u64; PEEKS]>() as u32);
    }
    0
}

/// Where [`PEEKED`] is: its copies by CPU, and then the map.
#[map]
static PLACES: Array<[u64; CPUS + 1]> = Array::with_max_entries(1, 0);

/// # Safety
///
/// The kernel calls it with its own context.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn iter_cpus(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's context; the verifier checks the two loads.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    // The last call, after all tasks, has none.
    if task.is_null() {
        return 0;
    }
    let Some(places) = PLACES.get_ptr_mut(0) else {
        return 0;
    };
    let map = (&raw const PEEKED).cast_mut().cast::<core::ffi::c_void>();
    let key = 0u32;
    for cpu in 0..CPUS {
        // SAFETY: the map and a key on the stack; the helper answers with nothing for a CPU that cannot be. The map's one value
        // is written by whoever asked for this alone.
        unsafe {
            let copy = bpf_map_lookup_percpu_elem(map, (&raw const key).cast(), cpu as u32);
            (*places)[cpu] = copy as u64;
        }
    }
    // SAFETY: as above, and `meta` is the kernel's; the buffer is a map value of the size given.
    unsafe {
        (*places)[CPUS] = map as u64;
        bpf_seq_write((*meta).seq, places.cast(), size_of::<[u64; CPUS + 1]>() as u32);
    }
    0
}
