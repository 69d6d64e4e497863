//! Files that share what they have in common on the disk.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct FileCloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

const _: () = assert!(size_of::<FileCloneRange>() == 32);

/// `FICLONERANGE`, `_IOW(0x94, 13, struct file_clone_range)`.
const FICLONERANGE: libc::c_ulong = 0x4020_940d;

/// Makes a range of `to` share the blocks of a range of `from` (`ioctl_ficlonerange(2)`). All three numbers are bytes, and multiples
/// of the file system's block size.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOTTY`, `EXDEV` or `EINVAL` where the file system cannot do that, with these files or at these offsets.
pub fn share_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    len: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
) -> nix::Result<()> {
    let range = FileCloneRange {
        src_fd: from.as_raw_fd().into(),
        src_offset: from_offset,
        src_length: len,
        dest_offset: to_offset,
    };
    // SAFETY: the kernel reads one structure of this layout, which outlives the call, and writes no memory of ours. Needed because
    // no kept crate has this call for ranges.
    Errno::result(unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE as _, &raw const range) }).map(drop)
}
