//! Sockets of networks: names as bytes, filters, and options that are asked about with a question.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::check;

/// Bytes of one instruction of a filter (`struct sock_filter` of `linux/filter.h`).
pub const INSTRUCTION: usize = 8;
/// Most instructions of a filter (`BPF_MAXINSNS`).
const INSTRUCTIONS: usize = 4096;
/// Room for every kind of address (`struct sockaddr_storage`).
const NAME: usize = 128;

/// The socket's own address: a `struct sockaddr` of its family.
///
/// # Errors
/// What the kernel says.
pub fn name(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0u8; NAME];
    let mut len = NAME as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, all of them in the vector.
    unsafe { check(libc::getsockname(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len).into())? };
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// The address of the other end.
///
/// # Errors
/// `ENOTCONN` when there is none.
pub fn peer(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0u8; NAME];
    let mut len = NAME as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, all of them in the vector.
    unsafe { check(libc::getpeername(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len).into())? };
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// Gives a socket an address.
///
/// # Errors
/// `EADDRINUSE`, `EADDRNOTAVAIL`, and what else the kernel says.
pub fn bind(fd: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    // SAFETY: the kernel reads exactly the slice.
    unsafe { check(libc::bind(fd.as_raw_fd(), name.as_ptr().cast(), name.len() as libc::socklen_t).into()).map(drop) }
}

/// Connects a socket; to an address of family `AF_UNSPEC`, parts it from the other end.
///
/// # Errors
/// What the kernel says.
pub fn connect(fd: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    // SAFETY: the kernel reads exactly the slice.
    unsafe {
        check(libc::connect(fd.as_raw_fd(), name.as_ptr().cast(), name.len() as libc::socklen_t).into()).map(drop)
    }
}

/// Sends bytes to an address, without waiting.
///
/// # Errors
/// What the kernel says.
pub fn send_to(fd: BorrowedFd<'_>, bytes: &[u8], to: &[u8]) -> nix::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads exactly the two slices.
    let n = unsafe {
        let (at, len) = (to.as_ptr().cast(), to.len() as libc::socklen_t);
        libc::sendto(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags, at, len)
    };
    check(n as libc::c_long).map(|n| n as usize)
}

/// An option whose value says first what is asked: `value` is the question, and room for the answer, which replaces it.
///
/// # Errors
/// What the kernel says.
pub fn ask_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut Vec<u8>) -> nix::Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `len` bytes, all of them in the vector.
    unsafe {
        let at = value.as_mut_ptr().cast();
        check(libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len).into())?;
    }
    value.truncate(len as usize);
    Ok(())
}

/// The instructions of the socket's filter (`SO_GET_FILTER`), of [`INSTRUCTION`] bytes each; empty if it has none.
///
/// # Errors
/// `EACCES` for an eBPF program, of which there are no such instructions.
pub fn filter(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0u8; INSTRUCTIONS * INSTRUCTION];
    // For this option the kernel counts instructions.
    let mut len = INSTRUCTIONS as libc::socklen_t;
    // SAFETY: the kernel writes at most as many instructions, for which the vector has room.
    unsafe {
        let at = bytes.as_mut_ptr().cast();
        check(libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_GET_FILTER, at, &raw mut len).into())?;
    }
    bytes.truncate(len as usize * INSTRUCTION);
    Ok(bytes)
}

/// Attaches a filter of these instructions (`SO_ATTACH_FILTER`).
///
/// # Errors
/// `EINVAL` when they are no program, `EPERM` when the filter that there is was locked.
pub fn attach_filter(fd: BorrowedFd<'_>, instructions: &[u8]) -> nix::Result<()> {
    attach_program(fd, libc::SO_ATTACH_FILTER, instructions)
}

/// Attaches a program of these instructions by an option that takes one.
///
/// # Errors
/// As [`attach_filter`].
pub fn attach_program(fd: BorrowedFd<'_>, name: i32, instructions: &[u8]) -> nix::Result<()> {
    // `struct sock_filter` is aligned to four bytes.
    let words: Vec<u32> =
        instructions.chunks_exact(4).map(|c| u32::from_ne_bytes(c.try_into().expect("four bytes"))).collect();
    let len = u16::try_from(instructions.len() / INSTRUCTION).map_err(|_| nix::errno::Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: words.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads the structure, and as many instructions as it says, all of them in the vector.
    unsafe {
        let (at, len) = ((&raw const program).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
        check(libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, len).into()).map(drop)
    }
}

/// The network namespace that a socket is in (`SIOCGSKNS` of `linux/sockios.h`).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` there.
pub fn namespace(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), SIOCGSKNS)))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}
