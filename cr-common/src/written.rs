//! The record of written pages: one bitmap for each 2 MiB of an address space that had a write fault.

/// Pages are 4 KiB on x86-64, also where huge pages map them: a fault address is recorded at this granularity.
pub const PAGE_SHIFT: u32 = 12;
/// A region is what one page-table page maps: 2 MiB.
pub const REGION_SHIFT: u32 = 21;
/// Pages in a region, and bits in a [`WrittenBits`].
pub const PAGES_PER_REGION: usize = 1 << (REGION_SHIFT - PAGE_SHIFT);

/// Which region of which address space, in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct WrittenKey {
    /// The address space: the kernel's address of its `mm_struct`, used as a name only.
    pub mm: u64,
    /// The address of the region, shifted right by [`REGION_SHIFT`].
    pub region: u64,
    /// The epoch in which the write was recorded. The controller begins a new epoch before it reads the
    /// old one, so that no program writes to an entry that is being read and removed.
    pub epoch: u64,
}

/// One bit for each page of a region: bit `i % 64` of word `i / 64` is page `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WrittenBits {
    /// The bitmap.
    pub words: [u64; PAGES_PER_REGION / 64],
}

/// The region that holds `address`.
pub const fn region_of(address: u64) -> u64 {
    address >> REGION_SHIFT
}

/// The page's number within its region.
pub const fn page_in_region(address: u64) -> usize {
    (address >> PAGE_SHIFT) as usize % PAGES_PER_REGION
}

const _: () = assert!(size_of::<WrittenKey>() == 24);
const _: () = assert!(size_of::<WrittenBits>() == 64);
