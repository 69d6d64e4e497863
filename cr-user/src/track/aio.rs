//! Linux AIO contexts, as the kernel keeps them: how many operations are under way is told by nothing else.
//!
//! A context has a fixed number of places for operations. A place is free, in one of the two counts of free places, or
//! belongs to an operation that has completed, in the count of those; or its operation is under way. See `fs/aio.c`.

use super::btf::{Btf, BtfError};
use super::hints::HintsError;

/// One context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AioContext {
    /// Its number for the process (`aio_context_t`): the address of its ring.
    pub id: u64,
    /// Operations under way.
    pub in_flight: u64,
}

/// Where the fields are in this kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct AioLayout {
    mm_table: u64,
    table_len: u64,
    table_contexts: u64,
    id: u64,
    cpu: u64,
    events: u64,
    free: u64,
    completed: u64,
    cpu_free: u64,
    map_copies: u64,
}

impl AioLayout {
    pub(super) fn of(kernel: &Btf) -> Result<Self, BtfError> {
        let at = |structure: &str, path: &str| kernel.offset(structure, path).map(u64::from);
        Ok(Self {
            mm_table: at("mm_struct", "ioctx_table")?,
            table_len: at("kioctx_table", "nr")?,
            table_contexts: at("kioctx_table", "table")?,
            id: at("kioctx", "user_id")?,
            cpu: at("kioctx", "cpu")?,
            events: at("kioctx", "nr_events")?,
            free: at("kioctx", "reqs_available.counter")?,
            completed: at("kioctx", "completed_events")?,
            cpu_free: at("kioctx_cpu", "reqs_available")?,
            map_copies: at("bpf_array", "pptrs")?,
        })
    }

    /// Where a per-CPU array of one value has the address of that value, which each CPU's offset is added to.
    pub(super) fn copies_of(self, map: u64) -> u64 {
        map + self.map_copies
    }
}

/// The contexts of the address space whose `mm_struct` is at `mm`.
pub(super) fn contexts(
    mm: u64,
    layout: AioLayout,
    cpus: &[u64],
    mut peek: impl FnMut(&[u64]) -> Result<Vec<u64>, HintsError>,
) -> Result<Vec<AioContext>, HintsError> {
    let table = peek(&[mm + layout.mm_table])?[0];
    if table == 0 {
        return Ok(Vec::new());
    }
    let len = u64::from(peek(&[table + layout.table_len])?[0] as u32);
    let slots: Vec<u64> = (0..len).map(|n| table + layout.table_contexts + 8 * n).collect();
    let found: Vec<u64> = peek(&slots)?.into_iter().filter(|context| *context != 0).collect();
    let mut contexts = Vec::new();
    for context in found {
        let fields = [layout.id, layout.cpu, layout.events, layout.free, layout.completed].map(|field| context + field);
        let told = peek(&fields)?;
        let (id, cpu) = (told[0], told[1]);
        let [events, free, completed] = [told[2], told[3], told[4]].map(|word| u64::from(word as u32));
        let per_cpu: Vec<u64> = cpus.iter().map(|offset| offset.wrapping_add(cpu) + layout.cpu_free).collect();
        let held: u64 = peek(&per_cpu)?.into_iter().map(|word| u64::from(word as u32)).sum();
        contexts.push(AioContext { id, in_flight: events.saturating_sub(1 + free + held + completed) });
    }
    Ok(contexts)
}

/// The number of the last possible CPU, and one.
pub(super) fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok()).map_or(1, |last| last + 1)
}
