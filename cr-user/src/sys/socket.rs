//! Sockets: names as bytes, options as bytes, and messages that carry descriptors and credentials.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::check;

/// Most bytes of a name (`sun_path` of `linux/un.h`).
pub const NAME_MAX: usize = 108;
/// Since 6.5 (`linux/socket.h`).
const SCM_PIDFD: i32 = 4;
/// Room for the control messages of one message: `SCM_MAX_FD` (253) descriptors, credentials, a label, a pidfd.
const CONTROL: usize = 4096;

/// `socket(2)`, close-on-exec.
///
/// # Errors
/// What the kernel says.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// An option of a socket, as the kernel shows it.
///
/// # Errors
/// `ENOPROTOOPT` when the kernel does not know it.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> nix::Result<Vec<u8>> {
    option_of_size(fd, level, name, 1024)
}

/// The same with room for so many bytes: of some options the kernel wants the very size.
///
/// # Errors
/// As of [`option`], and `EINVAL`.
pub fn option_of_size(fd: BorrowedFd<'_>, level: i32, name: i32, size: usize) -> nix::Result<Vec<u8>> {
    let mut value = vec![0u8; size];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, all of them in the vector.
    unsafe {
        let at = value.as_mut_ptr().cast();
        check(libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len).into())?;
    }
    value.truncate(len as usize);
    Ok(value)
}

/// How many instructions the socket's filter has (`SO_GET_FILTER`); 0 for none.
pub fn filter_length(fd: BorrowedFd<'_>) -> usize {
    let mut len: libc::socklen_t = 0;
    // SAFETY: with no room given, the kernel only says how much there would be.
    let asked = unsafe {
        let none = std::ptr::null_mut();
        check(libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_GET_FILTER, none, &raw mut len).into())
    };
    asked.map_or(0, |_| len as usize)
}

/// Which of these events (`POLL*`) there are now; errors and the end of a connection are always told.
pub fn polled(fd: BorrowedFd<'_>, events: i16) -> i16 {
    let mut one = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: the kernel writes to the one structure.
    let n = unsafe { libc::poll(&raw mut one, 1, 0) };
    if n == 1 { one.revents } else { 0 }
}

/// Sets an option of a socket.
///
/// # Errors
/// What the kernel says.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> nix::Result<()> {
    // SAFETY: the kernel reads exactly the slice.
    unsafe {
        let len = value.len() as libc::socklen_t;
        check(libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len).into()).map(drop)
    }
}

/// The bytes of a Unix address: the family, and the name.
pub fn address(name: &[u8]) -> Vec<u8> {
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(name);
    bytes
}

/// Gives a Unix socket a name: a path, or bytes of which the first is zero.
///
/// # Errors
/// `EADDRINUSE` when the name is taken.
pub fn bind(fd: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    let address = address(name);
    // SAFETY: the kernel reads exactly the vector.
    unsafe {
        let len = address.len() as libc::socklen_t;
        check(libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), len).into()).map(drop)
    }
}

/// Connects a Unix socket to a name.
///
/// # Errors
/// What the kernel says.
pub fn connect(fd: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    let address = address(name);
    // SAFETY: the kernel reads exactly the vector.
    unsafe {
        let len = address.len() as libc::socklen_t;
        check(libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), len).into()).map(drop)
    }
}

/// The name of the socket at the other end of a Unix socket; empty if it has none.
///
/// # Errors
/// `ENOTCONN`.
pub fn peer_name(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    let mut bytes = [0u8; NAME_MAX + 3];
    let mut len = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, all of them in the array.
    unsafe { check(libc::getpeername(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len).into())? };
    Ok(name_in(&bytes, len))
}

/// Takes the next connection, close-on-exec.
///
/// # Errors
/// `EAGAIN` and what else the kernel says.
pub fn accept(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let none = std::ptr::null_mut();
        let new = check(libc::accept4(fd.as_raw_fd(), none, std::ptr::null_mut(), libc::SOCK_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(new as RawFd))
    }
}

/// Whether an error waits on the socket to be told. It is left there.
pub fn has_error(fd: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).is_ok() && polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR))
}

/// A process as messages and sockets name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ucred {
    /// Its pid.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// What was at the head of a queue, and stays there.
#[derive(Debug, Default)]
pub struct Peeked {
    /// Its bytes, as far as there was room.
    pub bytes: Vec<u8>,
    /// How many bytes the message has: more than were given, if there was too little room. Of a stream: as many.
    pub len: usize,
    /// Duplicates of the descriptors in it.
    pub rights: Vec<OwnedFd>,
    /// Who sent it; none if the socket does not ask for that.
    pub sender: Option<Ucred>,
    /// The name of the socket that it came from; empty if it had none.
    pub from: Vec<u8>,
    /// Whether something that came with it did not fit.
    pub cut: bool,
}

/// Looks at the head of a socket's queue without taking anything out, and without waiting.
///
/// # Errors
/// `EAGAIN` when it is empty.
pub fn peek(fd: BorrowedFd<'_>, room: usize) -> nix::Result<Peeked> {
    look(fd, room, 0)
}

/// How many of the `len` bytes at the head of a stream came before those that came together with the last of them. The kernel
/// copies what came together in one go, and counts none of it when the copy fails: here the last byte has no place.
///
/// # Errors
/// What the kernel says.
pub fn before_last_piece(fd: BorrowedFd<'_>, len: usize) -> nix::Result<usize> {
    match look(fd, len - 1, 1) {
        Ok(peeked) => Ok(peeked.len),
        Err(nix::errno::Errno::EFAULT) => Ok(0),
        Err(e) => Err(e),
    }
}

/// Looks with room for so many bytes, and then so many that cannot be written.
fn look(fd: BorrowedFd<'_>, room: usize, nowhere: usize) -> nix::Result<Peeked> {
    /// In the first page, which nobody maps.
    const NOWHERE: usize = 8;
    let mut peeked = Peeked { bytes: vec![0; room.max(1)], ..Peeked::default() };
    let mut name = [0u8; NAME_MAX + 3];
    // Eight-byte words, for the alignment of `struct cmsghdr`.
    let mut control = [0u64; CONTROL / 8];
    let mut pieces = [
        libc::iovec { iov_base: peeked.bytes.as_mut_ptr().cast(), iov_len: room },
        libc::iovec { iov_base: std::ptr::without_provenance_mut(NOWHERE), iov_len: nowhere },
    ];
    // SAFETY: all zeroes is a valid value of this structure of integers and pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as libc::socklen_t;
    header.msg_iov = pieces.as_mut_ptr();
    header.msg_iovlen = pieces.len();
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header describes live buffers of the lengths given, and perhaps one that the kernel finds it cannot write to.
    let n = unsafe { check(libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) as libc::c_long)? } as usize;
    peeked.len = n;
    peeked.bytes.truncate(n.min(room));
    peeked.from = name_in(&name, header.msg_namelen);
    peeked.cut = header.msg_flags & libc::MSG_CTRUNC != 0;
    // SAFETY: the header is as the kernel left it, and its control buffer lives.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !at.is_null() {
        // SAFETY: `at` is a header that the kernel wrote, and the macros stay within the control buffer.
        let (level, kind, data, len) = unsafe {
            let data = libc::CMSG_DATA(at);
            let len = (*at).cmsg_len.saturating_sub(data.offset_from(at.cast()) as usize);
            ((*at).cmsg_level, (*at).cmsg_type, data, len)
        };
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS | SCM_PIDFD) => {
                // SAFETY: the kernel wrote so many bytes.
                let numbers = unsafe { std::slice::from_raw_parts(data, len) };
                for number in numbers.chunks_exact(4) {
                    let number = i32::from_ne_bytes(number.try_into().expect("four bytes"));
                    // SAFETY: each is new and ours.
                    let fd = unsafe { OwnedFd::from_raw_fd(number) };
                    // The sender's pidfd is made for each who asks: it is not in the queue.
                    if kind == libc::SCM_RIGHTS {
                        peeked.rights.push(fd);
                    }
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if len >= 12 => {
                // SAFETY: the kernel wrote one `struct ucred`, three ints.
                let words = unsafe { std::slice::from_raw_parts(data, 12) };
                let word = |at: usize| u32::from_ne_bytes(words[at..at + 4].try_into().expect("four bytes"));
                peeked.sender = Some(Ucred { pid: word(0) as i32, uid: word(4), gid: word(8) });
            }
            _ => {}
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&raw const header, at) };
    }
    Ok(peeked)
}

/// Sends a message without waiting, and without a signal should nobody listen. Gives back how many bytes went.
///
/// # Errors
/// `EAGAIN` when there is no room, and what else the kernel says.
pub fn send(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    rights: &[RawFd],
    sender: Option<Ucred>,
    to: Option<&[u8]>,
) -> nix::Result<usize> {
    let mut control = [0u64; CONTROL / 8];
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut address = to.map(address);
    // SAFETY: all zeroes is a valid value of this structure of integers and pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    if let Some(address) = &mut address {
        header.msg_name = address.as_mut_ptr().cast();
        header.msg_namelen = address.len() as libc::socklen_t;
    }
    let mut parts: Vec<(i32, Vec<u8>)> = Vec::new();
    if !rights.is_empty() {
        parts.push((libc::SCM_RIGHTS, rights.iter().flat_map(|fd| fd.to_ne_bytes()).collect()));
    }
    if let Some(Ucred { pid, uid, gid }) = sender {
        let words = [pid as u32, uid, gid];
        parts.push((libc::SCM_CREDENTIALS, words.iter().flat_map(|w| w.to_ne_bytes()).collect()));
    }
    // `struct cmsghdr`: its length in 8 bytes, level, kind; each begins at a multiple of 8.
    let mut packed: Vec<u8> = Vec::new();
    for (kind, data) in &parts {
        packed.extend_from_slice(&(16 + data.len()).to_ne_bytes());
        packed.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        packed.extend_from_slice(&kind.to_ne_bytes());
        packed.extend_from_slice(data);
        packed.resize(packed.len().next_multiple_of(8), 0);
    }
    for (word, eight) in control.iter_mut().zip(packed.chunks(8)) {
        *word = u64::from_ne_bytes(eight.try_into().expect("eight bytes"));
    }
    if !packed.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = packed.len();
    }
    // SAFETY: the header describes live buffers of the lengths given, which the kernel only reads.
    let n = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    check(n as libc::c_long).map(|n| n as usize)
}

fn name_in(bytes: &[u8], len: libc::socklen_t) -> Vec<u8> {
    trim_name(bytes.get(2..(len as usize).min(bytes.len())).unwrap_or_default()).to_vec()
}

/// A name without the zero that the kernel puts behind a path.
pub fn trim_name(name: &[u8]) -> &[u8] {
    match name {
        [first, .., 0] if *first != 0 => &name[..name.len() - 1],
        _ => name,
    }
}

/// Two connected Unix sockets, close-on-exec.
///
/// # Errors
/// What the kernel says.
pub fn pair(kind: i32) -> nix::Result<[OwnedFd; 2]> {
    let mut numbers = [0i32; 2];
    // SAFETY: the kernel writes two new descriptors, which are ours.
    unsafe {
        check(libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, numbers.as_mut_ptr()).into())?;
        Ok(numbers.map(|number| OwnedFd::from_raw_fd(number)))
    }
}

/// `listen(2)`, for as many clients as is said.
///
/// # Errors
/// What the kernel says.
pub fn listen(fd: &OwnedFd, backlog: u32) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::listen(fd.as_raw_fd(), backlog as i32).into()).map(drop) }
}

/// `shutdown(2)`. `ends`: 1 for receiving, 2 for sending, 3 for both, as `sk_shutdown` in the kernel has it.
///
/// # Errors
/// What the kernel says.
pub fn shutdown(fd: &OwnedFd, ends: u8) -> nix::Result<()> {
    // SAFETY: no memory is passed. `SHUT_*` are one less.
    unsafe { check(libc::shutdown(fd.as_raw_fd(), i32::from(ends) - 1).into()).map(drop) }
}
