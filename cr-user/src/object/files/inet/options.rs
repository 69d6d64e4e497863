//! Options of sockets of networks, as bytes.

use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

use crate::error::{Error, Result};
use crate::sys::socket::{option, set_option};

/// `SO_BUF_LOCK` of `asm-generic/socket.h`: which buffer sizes were set by the program.
const SO_BUF_LOCK: i32 = 72;

/// What decides to which addresses a socket can be bound and connected, and so comes first.
const FIRST: &[(i32, i32)] = &[
    (IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (SOL_SOCKET, libc::SO_REUSEPORT),
    (SOL_SOCKET, libc::SO_BINDTODEVICE),
    (SOL_SOCKET, libc::SO_MARK),
    (IPPROTO_IP, libc::IP_FREEBIND),
    (IPPROTO_IP, libc::IP_TRANSPARENT),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    // IP_LOCAL_PORT_RANGE, since 6.3.
    (IPPROTO_IP, 51),
    (IPPROTO_IPV6, libc::IPV6_FREEBIND),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
];

/// The others. To set a size also locks it, so the locks come last.
const THEN: &[(i32, i32)] = &[
    (SOL_SOCKET, libc::SO_DEBUG),
    (SOL_SOCKET, libc::SO_DONTROUTE),
    (SOL_SOCKET, libc::SO_BROADCAST),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (SOL_SOCKET, libc::SO_TIMESTAMPING),
    (SOL_SOCKET, libc::SO_BUSY_POLL),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (SOL_SOCKET, libc::SO_RXQ_OVFL),
    (SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE),
    (SOL_SOCKET, libc::SO_NO_CHECK),
    (IPPROTO_IP, libc::IP_TOS),
    // The type of service implies a priority.
    (SOL_SOCKET, libc::SO_PRIORITY),
    (IPPROTO_IP, libc::IP_TTL),
    (IPPROTO_IP, libc::IP_MINTTL),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IP, libc::IP_PKTINFO),
    (IPPROTO_IP, libc::IP_RECVTTL),
    (IPPROTO_IP, libc::IP_RECVTOS),
    (IPPROTO_IP, libc::IP_RECVOPTS),
    (IPPROTO_IP, libc::IP_RETOPTS),
    (IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (IPPROTO_TCP, libc::TCP_SYNCNT),
    (IPPROTO_TCP, libc::TCP_LINGER2),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, libc::TCP_CONGESTION),
    (IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (IPPROTO_TCP, libc::TCP_SAVE_SYN),
    (IPPROTO_TCP, libc::TCP_FASTOPEN),
    (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT),
    (IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE),
    (IPPROTO_TCP, libc::TCP_INQ),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_CORK),
    // Sizes of buffers imply a window.
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (SOL_SOCKET, SO_BUF_LOCK),
];

/// What a connection negotiates, and shows changed then.
const UNCONNECTED: &[(i32, i32)] = &[(IPPROTO_TCP, libc::TCP_MAXSEG)];

/// What is set while a socket is made, and put right in the end.
const LENT: &[(i32, i32)] =
    &[(SOL_SOCKET, libc::SO_SNDBUF), (SOL_SOCKET, libc::SO_RCVBUF), (SOL_SOCKET, libc::SO_REUSEADDR)];

/// One option.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `SOL_SOCKET`, `IPPROTO_*`.
    pub level: i32,
    /// Its number.
    pub name: i32,
    /// Its value, as the kernel shows it.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub value: Vec<u8>,
}

/// What the options are now. Those that the kernel does not know, or not for this kind of socket, are left out.
pub(in super::super) fn read(fd: BorrowedFd<'_>, connected: bool) -> Vec<Setting> {
    let unconnected = if connected { &[][..] } else { UNCONNECTED };
    let all = FIRST.iter().chain(unconnected).chain(LENT).chain(THEN);
    let read = |(level, name): &(i32, i32)| {
        Some(Setting { level: *level, name: *name, value: option(fd, *level, *name).ok()? })
    };
    all.filter_map(read).collect()
}

/// Sets what must be so before a socket is bound.
pub(in super::super) fn set_first(fd: BorrowedFd<'_>, settings: &[Setting]) -> Result<()> {
    let first = settings.iter().filter(|s| {
        let id = (s.level, s.name);
        FIRST.contains(&id) || UNCONNECTED.contains(&id)
    });
    first.into_iter().try_for_each(|s| s.set(fd))
}

/// Sets all that is not so already.
pub(in super::super) fn set(fd: BorrowedFd<'_>, settings: &[Setting]) -> Result<()> {
    settings.iter().filter(|s| !UNCONNECTED.contains(&(s.level, s.name))).try_for_each(|s| s.set(fd))
}

/// Sets the size of the receive buffer, and so the largest window, as they were.
pub(super) fn set_receive_size(fd: BorrowedFd<'_>, settings: &[Setting]) -> Result<()> {
    const SIZES: [(i32, i32); 2] = [(SOL_SOCKET, libc::SO_RCVBUF), (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP)];
    let size = settings.iter().filter(|s| SIZES.contains(&(s.level, s.name)));
    size.into_iter().try_for_each(|s| s.set(fd))
}

/// Sets the size of the send buffer as it was.
pub(super) fn set_send_size(fd: BorrowedFd<'_>, settings: &[Setting]) -> Result<()> {
    const SIZES: [(i32, i32); 2] = [(SOL_SOCKET, libc::SO_SNDBUF), (SOL_SOCKET, SO_BUF_LOCK)];
    let size = settings.iter().filter(|s| SIZES.contains(&(s.level, s.name)));
    size.into_iter().try_for_each(|s| s.set(fd))
}

/// Room for everything that is to be put into a queue.
const ROOM: i32 = 1 << 28;

/// Makes room for everything that is to be put into the queues. Nothing must arrive meanwhile but what we send: the other end would be
/// told of the room.
pub(super) fn make_room(fd: BorrowedFd<'_>) -> nix::Result<()> {
    make_room_to_send(fd)?;
    set_size(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, ROOM)
}

/// Makes room for everything that is to be sent.
pub(super) fn make_room_to_send(fd: BorrowedFd<'_>) -> nix::Result<()> {
    set_size(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, ROOM)
}

/// Sees to it that there is room for the window that the other end was promised, besides what lies in the queue already: the kernel
/// takes back a promise that it cannot keep, and then both ends may disagree for good on what they may send.
pub(super) fn keep_promise(fd: BorrowedFd<'_>, window: u32) -> nix::Result<()> {
    // SO_MEMINFO: first the memory that the receiving queue takes.
    const SO_MEMINFO: i32 = 55;
    // SOCK_RCVBUF_LOCK: the program has chosen the size.
    const CHOSEN: i32 = 2;
    let info = option(fd, SOL_SOCKET, SO_MEMINFO)?;
    // What arrives may take twice its size. A program that has chosen a size sees another only if it cannot be helped.
    let times = if int(fd, SOL_SOCKET, SO_BUF_LOCK) & CHOSEN == 0 { 2 } else { 1 };
    let needed = (as_int(&info) as u32).saturating_add(window.saturating_mul(times)).min(i32::MAX as u32) as i32;
    if int(fd, SOL_SOCKET, libc::SO_RCVBUF) >= needed {
        return Ok(());
    }
    let locks = int(fd, SOL_SOCKET, SO_BUF_LOCK);
    set_size(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, needed.div_euclid(2) + 1)?;
    set_int(fd, SOL_SOCKET, SO_BUF_LOCK, locks)
}

/// An option that is an int; 0 if there is no such option.
pub(in super::super) fn int(fd: BorrowedFd<'_>, level: i32, name: i32) -> i32 {
    option(fd, level, name).map_or(0, |v| as_int(&v))
}

/// Sets an option that is an int.
pub(in super::super) fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> nix::Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

impl Setting {
    fn set(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let Self { level, name, value } = self;
        if option(fd, *level, *name).is_ok_and(|now| now == *value) {
            return Ok(());
        }
        let set = match (*level, *name) {
            (SOL_SOCKET, libc::SO_SNDBUF) => set_size(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, as_int(value) / 2),
            (SOL_SOCKET, libc::SO_RCVBUF) => set_size(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, as_int(value) / 2),
            _ => set_option(fd, *level, *name, value),
        };
        set.map_err(|e| Error::system(format!("setting option {level}:{name} of a socket of the job"), e))
    }
}

/// The kernel doubles what it is told, and shows the double.
fn set_size(fd: BorrowedFd<'_>, force: i32, ask: i32, size: i32) -> nix::Result<()> {
    set_int(fd, SOL_SOCKET, force, size).or_else(|_| set_int(fd, SOL_SOCKET, ask, size))
}

fn as_int(value: &[u8]) -> i32 {
    value.get(..4).map_or(0, |b| i32::from_ne_bytes(b.try_into().expect("four bytes")))
}
