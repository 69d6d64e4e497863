//! What is done to single pages: recognise zero, checksum.

use super::PAGE_SIZE;

static ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Whether all bytes are zero. `page` is one page or less.
///
/// This is one `memcmp` with a page that stays in the first-level cache: it ends at the first byte that differs, and
/// runs at vector speed in unoptimised builds too.
pub fn is_zero_page(page: &[u8]) -> bool {
    *page == ZERO_PAGE[..page.len()]
}

/// XXH3-64 (seed 0) of one page: finds damage, does not stop a forger.
pub fn page_checksum(page: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(page)
}

/// The checksum of a page that was allocated and never written: the file has a hole there, which reads as zeros.
pub(super) fn zero_page_checksum() -> u64 {
    page_checksum(&ZERO_PAGE)
}

/// The checksums of whole pages, in their order. Panics if `pages` is not whole pages.
pub fn page_checksums(pages: &[u8]) -> Vec<u64> {
    assert!(pages.len().is_multiple_of(PAGE_SIZE), "{} bytes are not whole pages", pages.len());
    pages.chunks_exact(PAGE_SIZE).map(page_checksum).collect()
}

/// XXH3-128 (seed 0) of whole pages, in their order: enough to tell which pages of a job are the same. Their lower halves are the
/// pages' checksums. Panics if `pages` is not whole pages.
pub fn page_digests(pages: &[u8]) -> Vec<u128> {
    assert!(pages.len().is_multiple_of(PAGE_SIZE), "{} bytes are not whole pages", pages.len());
    pages.chunks_exact(PAGE_SIZE).map(xxhash_rust::xxh3::xxh3_128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_lower_halves_of_digests() {
        let bytes: Vec<u8> = (0..3 * PAGE_SIZE).map(|n| ((n * n) >> 3) as u8).collect();
        let digests = page_digests(&bytes);
        assert_eq!(digests.iter().map(|digest| *digest as u64).collect::<Vec<_>>(), page_checksums(&bytes));
        assert_eq!(page_digests(&ZERO_PAGE)[0] as u64, zero_page_checksum());
    }
}
