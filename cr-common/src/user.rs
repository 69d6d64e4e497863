//! Traits that only userspace needs. Here, and not where the program keeps all else that is unsafe: other crates' traits can be implemented
//! for a type only where it is defined.
#![expect(unsafe_code, reason = "the traits are promises about the layout, which the types' own files assert")]

use crate::{
    FileRecord, Followed, RegionRecord, SignalAction, TaskEvent, TaskRecord, TouchedRange, VmaRecord, WrittenKey,
    WrittenRegion,
};

macro_rules! plain {
    ($($type:ty),*) => {$(
        // SAFETY: `repr(C)`, made of integers and arrays of integers only, with no padding: the sum of the fields' sizes is
        // asserted to be the type's size. Needed because aya reads map entries and events as bytes.
        unsafe impl aya::Pod for $type {}
        // SAFETY: as above; any bit pattern is a value of it.
        unsafe impl bytemuck::Zeroable for $type {}
        // SAFETY: as above.
        unsafe impl bytemuck::Pod for $type {}
    )*};
}

plain!(
    Followed,
    RegionRecord,
    TouchedRange,
    WrittenKey,
    WrittenRegion,
    TaskEvent,
    TaskRecord,
    VmaRecord,
    SignalAction,
    FileRecord
);
