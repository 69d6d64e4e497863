//! What the eBPF programs and the controller share: map keys, event records, iterator records, and the list of kernel
//! fields whose offsets the controller hands over at load time.
//!
//! Everything here is plain data in `repr(C)` without implicit padding: the kernel copies it bytewise between the two
//! sides, and padding would be uninitialised memory that the verifier refuses.
#![no_std]

mod event;
mod fields;
mod record;
#[cfg(feature = "user")]
mod user;
mod written;

pub use event::{TaskEvent, TaskEventKind};
pub use fields::{FIELDS, KernelField};
pub use record::{
    ANON_NAME_LEN, AUXV, CPUS, FileRecord, LIMITS, PEEKS, RESTART_BLOCK_LEN, SIGNALS, SignalAction, TaskRecord,
    VmaRecord, covered,
};
pub use written::{
    Followed, PAGE_SHIFT, PAGES_PER_REGION, REGION_SHIFT, REGION_WORDS, RegionRecord, TouchedRange, WrittenBits,
    WrittenKey, WrittenRegion, page_in_region, region_of, touched,
};

/// What the programs could not record, in the per-CPU array `LOST`: index 0 for written pages (the map of regions was
/// full), index 1 for task events (the ring buffer was full), index 2 for tasks that could not be followed (the map of
/// followed address spaces or processes was full).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lost {
    /// A written page.
    Page = 0,
    /// A task event.
    Event = 1,
    /// A task of the job that is not followed.
    Task = 2,
}

impl Lost {
    /// How many counters there are.
    pub const COUNT: u32 = 3;
}
