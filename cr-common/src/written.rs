//! The record of written pages: one bitmap for each 2 MiB of an address space that had a write fault.

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

/// What the iterator over the record writes for each region with a written page, and takes out of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WrittenRegion {
    /// Which region.
    pub key: WrittenKey,
    /// Its written pages.
    pub bits: WrittenBits,
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
const _: () = assert!(size_of::<WrittenRegion>() == 2 * 8 + 8 * REGION_WORDS);
