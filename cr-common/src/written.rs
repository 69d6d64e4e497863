//! The record of written pages: one bitmap for each 2 MiB of an address space that had a write fault, or was written or
//! changed in a way that raises none.

/// Pages are 4 KiB on x86-64, also where huge pages map them: a fault address is recorded at this granularity.
pub const PAGE_SHIFT: u32 = 12;
/// A region is what one page-table page maps: 2 MiB.
pub const REGION_SHIFT: u32 = 21;
/// Pages in a region, and bits in a [`WrittenRegion`].
pub const PAGES_PER_REGION: usize = 1 << (REGION_SHIFT - PAGE_SHIFT);
/// Words in a region's bitmap.
pub const REGION_WORDS: usize = PAGES_PER_REGION / 64;

/// Which region of which address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct WrittenKey {
    /// The address space: the kernel's address of its `mm_struct`, used as a name only.
    pub mm: u64,
    /// The address of the region, shifted right by [`REGION_SHIFT`].
    pub region: u64,
}

/// One bit for each page of a region: bit `i % 64` of word `i / 64` is page `i`.
pub type WrittenBits = [u64; REGION_WORDS];

/// What is recorded of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RegionRecord {
    /// Its pages that had a write fault.
    pub written: WrittenBits,
    /// Bits of [`touched`]: what became of it without a fault.
    pub touched: u64,
}

/// Bits of [`RegionRecord::touched`].
pub mod touched {
    /// A system call may have written to it, or changed which pages it has: the page tables know.
    pub const ASK: u64 = 1 << 0;
    /// Pages of it were given up by `MADV_FREE`: the kernel may take them at any time.
    pub const VOLATILE: u64 = 1 << 1;
}

/// What the iterator over the record writes for each region of which there is something, and takes out of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WrittenRegion {
    /// Which region.
    pub key: WrittenKey,
    /// What became of it.
    pub record: RegionRecord,
}

/// A long range of which something became without a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TouchedRange {
    /// The address space.
    pub mm: u64,
    /// Its first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Bits of [`touched`].
    pub what: u64,
}

/// What is kept of a followed address space.
///
/// Whoever writes to protected pages without a fault takes the address space's lock for reading (`get_user_pages`, and the
/// repair of futexes): where nobody did, nothing was written but by faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Followed {
    /// How many followed processes share it.
    pub users: u64,
    /// How often its own tasks took the lock for what is not known to leave the pages alone.
    pub local: u64,
    /// How often others did.
    pub taken: u64,
    /// How often others let it go again.
    pub given: u64,
    /// Write faults so far.
    pub faults: u64,
    /// The number of the last system call that was counted as one of its own, or as another's.
    pub call: u64,
}

/// The region that holds `address`.
pub const fn region_of(address: u64) -> u64 {
    address >> REGION_SHIFT
}

/// The page's number within its region.
pub const fn page_in_region(address: u64) -> usize {
    (address >> PAGE_SHIFT) as usize % PAGES_PER_REGION
}

const _: () = assert!(size_of::<WrittenKey>() == 2 * 8);
const _: () = assert!(size_of::<RegionRecord>() == 8 * REGION_WORDS + 8);
const _: () = assert!(size_of::<WrittenRegion>() == 2 * 8 + size_of::<RegionRecord>());
const _: () = assert!(size_of::<TouchedRange>() == 4 * 8);
const _: () = assert!(size_of::<Followed>() == 6 * 8);
