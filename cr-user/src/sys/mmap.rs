//! Read-only file mappings, and rkyv archives that are used in place inside them.
//!
//! Both lean on one rule: nobody changes a published image in place. Images are written under another name, renamed
//! once, and from then on only read or removed (removal leaves the mapped bytes alone). Somebody who writes into an
//! image while it is mapped can make readers see changed bytes, and somebody who truncates it makes them die of
//! SIGBUS; image files are 0600 in a directory of mode 0700, so that is the owner or root.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;

use memmap2::Mmap;
use rkyv::Portable;
use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;

/// Maps the whole of `file` for reading, shared, as `mmap(2)` does. An empty file gives an empty mapping.
pub fn map_readonly(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is only ever read, as bytes, and the file is not changed or truncated in place while it is
    // mapped (the rule above). Needed because no safe interface maps a file.
    unsafe { Mmap::map(file) }
}

/// A mapped file with one rkyv archive of root type `T` in it, validated once, then used in place.
pub struct MappedArchive<T> {
    map: Mmap,
    range: Range<usize>,
    root: PhantomData<T>,
}

impl<T> MappedArchive<T>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    /// Validates the archive that fills `range` (bytes of `map`; the root object is at its end).
    ///
    /// Fails if the range is not inside the mapping, is not aligned as `T` needs, or does not hold a valid `T`.
    pub fn new(map: Mmap, range: Range<usize>) -> Result<Self, rancor::Error> {
        let bytes = map.get(range.clone()).unwrap_or_default();
        rkyv::access::<T, rancor::Error>(bytes)?;
        Ok(Self { map, range, root: PhantomData })
    }

    /// The archive's root.
    pub fn get(&self) -> &T {
        let bytes = &self.map[self.range.clone()];
        // SAFETY: `new` has validated exactly these bytes as an archive of `T`; the mapping is private to this value,
        // is never written, and lives as long as the reference. Needed because validation walks the whole archive,
        // which each access cannot afford.
        unsafe { rkyv::access_unchecked::<T>(bytes) }
    }

    /// The whole mapped file.
    pub fn file_bytes(&self) -> &[u8] {
        &self.map
    }
}

impl<T> fmt::Debug for MappedArchive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedArchive").field("map", &self.map).field("range", &self.range).finish()
    }
}

/// An object of `MAP_SHARED | MAP_ANONYMOUS` memory of `len` bytes, as a file: other processes can map it too.
///
/// # Errors
/// What `mmap(2)` says, or that `/proc/self/map_files` cannot be read (it takes privilege).
pub fn shared_anonymous(len: u64) -> io::Result<File> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice; nothing refers to it but the two lines below, and it is
    // unmapped as it was mapped. Needed because the object can only be made by mapping it.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), len as usize, prot, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let end = at as u64 + len.next_multiple_of(4096);
        let file = File::options().read(true).write(true).open(format!("/proc/self/map_files/{:x}-{end:x}", at as u64));
        libc::munmap(at, len as usize);
        file
    }
}
