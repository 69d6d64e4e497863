//! `PROCMAP_QUERY` on `/proc/PID/maps` (Linux 6.11): the mapping at an address, at one instant.
//!
//! Numbers and layouts are those of `include/uapi/linux/fs.h` (`struct procmap_query`).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::sys::check;

/// `struct procmap_query`. Names and build ids are not asked for.
#[repr(C)]
#[derive(Default)]
struct Arg {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<Arg>() == 104);

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: u64 = (3 << 30) | ((size_of::<Arg>() as u64) << 16) | ((b'f' as u64) << 8) | 0x11;
const _: () = assert!(PROCMAP_QUERY == 0xc068_6611);

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First byte.
    pub start: u64,
    /// Past the last byte.
    pub end: u64,
    /// Protection, whether it is shared, and the size of its pages.
    kind: (u64, u64),
    /// Device and inode of its file; zeroes if it has none.
    file: (u32, u32, u64),
    /// Where in the file it begins.
    offset: u64,
}

impl Mapped {
    /// Whether `next` could be the same mapping, cut in two.
    pub fn goes_on_in(&self, next: &Self) -> bool {
        let offset = if self.file.2 == 0 { next.offset } else { self.offset + (self.end - self.start) };
        self.end == next.start && (self.kind, self.file) == (next.kind, next.file) && next.offset == offset
    }
}

/// The mapping that an address is in; none if it is in none. `maps`: `/proc/PID/maps`.
///
/// # Errors
/// `ENOTTY` before Linux 6.11, `ESRCH` when the process is gone.
pub fn at(maps: BorrowedFd<'_>, address: u64) -> nix::Result<Option<Mapped>> {
    let mut arg = Arg { size: size_of::<Arg>() as u64, query_addr: address, ..Arg::default() };
    // SAFETY: PROCMAP_QUERY reads and writes one `struct procmap_query`, which `Arg` mirrors; without sizes it writes nowhere else.
    let done = unsafe { check(libc::c_long::from(libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut arg))) };
    match done {
        Ok(_) => Ok(Some(Mapped {
            start: arg.vma_start,
            end: arg.vma_end,
            kind: (arg.vma_flags, arg.vma_page_size),
            file: (arg.dev_major, arg.dev_minor, arg.inode),
            offset: arg.vma_offset,
        })),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::PAGE;

    #[test]
    fn a_mapping_and_what_follows_it() {
        let maps = File::open("/proc/self/maps").unwrap();
        let memory = memmap2::MmapMut::map_anon(4 * PAGE as usize).unwrap();
        let start = memory.as_ptr() as u64;
        let whole = at(maps.as_fd(), start + PAGE).unwrap().expect("it is there");
        assert!(whole.start <= start && whole.end >= start + 4 * PAGE, "{whole:x?}");
        assert_eq!(at(maps.as_fd(), PAGE), Ok(None));
        let (first, second) = (Mapped { end: start + PAGE, ..whole }, Mapped { start: start + PAGE, ..whole });
        assert!(first.goes_on_in(&second) && !second.goes_on_in(&first) && !whole.goes_on_in(&second));
        assert!(!first.goes_on_in(&Mapped { kind: (7, PAGE), ..second }));
    }

    #[test]
    fn of_a_file_what_follows_is_what_follows_in_the_file() {
        let part = |start, offset| Mapped { start, end: start + PAGE, kind: (1, PAGE), file: (8, 1, 7), offset };
        assert!(part(PAGE, 0).goes_on_in(&part(2 * PAGE, PAGE)));
        assert!(!part(PAGE, 0).goes_on_in(&part(2 * PAGE, 0)));
    }
}
