//! Read-only file mappings.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps the whole of `file` for reading.
///
/// # Errors
/// What `mmap(2)` says.
pub fn map_readonly(file: &File) -> io::Result<Mmap> {
    // SAFETY: an image is written once, under a temporary name, and never changed after it was renamed into place; the
    // store directory is ours alone (0700). Whoever truncates an image under a reader gets SIGBUS, as documented.
    unsafe { Mmap::map(file) }
}
