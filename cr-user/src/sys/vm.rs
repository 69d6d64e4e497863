//! Memory of another process.

use std::io;

use crate::sys::check;

/// One contiguous range of remote memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// The kernel's limit of pieces per call (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// Reads remote ranges one after the other into `buf`, as `process_vm_readv(2)` does: returns how many bytes came before
/// the first unreadable page.
///
/// # Errors
/// What `process_vm_readv(2)` says; `EFAULT` when the very first page cannot be read.
pub fn read(pid: i32, ranges: &[Range], buf: &mut [u8]) -> io::Result<usize> {
    debug_assert!(ranges.len() <= MAX_PIECES);
    let remote: Vec<libc::iovec> =
        ranges.iter().map(|r| libc::iovec { iov_base: r.start as *mut _, iov_len: r.len as usize }).collect();
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: the local piece is exactly `buf`, borrowed mutably for the call; remote addresses are checked by the kernel.
    let n = unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    Ok(check(n as libc::c_long)? as usize)
}

/// Writes `buf` at `addr` of the process.
///
/// # Errors
/// What `process_vm_writev(2)` says; a short write is `EFAULT`.
pub fn write(pid: i32, addr: u64, buf: &[u8]) -> io::Result<()> {
    let remote = libc::iovec { iov_base: addr as *mut _, iov_len: buf.len() };
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: the kernel only reads the local piece, which is exactly `buf`; the remote address is checked by the kernel.
    let n = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if check(n as libc::c_long)? as usize == buf.len() { Ok(()) } else { Err(nix::errno::Errno::EFAULT.into()) }
}
