//! One end of a connection whose other end is not ours: what it takes that the other end finds it as it was.
//!
//! Repair (`TCP_REPAIR` and its family, `linux/tcp.h`) shows the numbers of the next byte in both directions, the window, and what
//! both ends agreed on when they connected; and it takes them, and what was queued, for a new socket, which then is connected
//! without a word to anybody.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;

use libc::IPPROTO_TCP;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, send};

use super::queue::{NO_QUEUE, RECEIVE_QUEUE, SEND_QUEUE, choose};
use super::{Connection, Inet, options, phase, restore};
use crate::error::Result;
use crate::sys::socket::{option, option_of_size, set_option, socket};
use crate::sys::tcp::{REPAIR_ON, unsent};

/// `TCPI_OPT_*` of `linux/tcp.h`: what was agreed on.
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const SCALES: u8 = 4;

/// `TCPOPT_*` of `net/tcp.h`.
const OPTION_MSS: u32 = 2;
const OPTION_SCALES: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMPS: u32 = 8;

/// `struct tcp_repair_window`: its words.
const RECEIVE_WINDOW_FROM: usize = 4;

/// Where a connection stands. Ends (FIN) are not counted in the numbers.
#[derive(
    serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq,
)]
pub struct Numbers {
    /// The number behind the last byte that the program has sent.
    pub sent_up_to: u32,
    /// How many of those were never given to the network.
    pub unsent: u32,
    /// The number behind the last byte that has arrived.
    pub received_up_to: u32,
    /// `struct tcp_repair_window`.
    pub window: [u32; 5],
    /// What was agreed on (`tcpi_options`).
    pub agreed: u8,
    /// The scales of both windows: ours to send in the lower half, to receive in the upper.
    pub scales: u8,
    /// The largest segment that the other end takes, in bytes.
    pub mss: u32,
    /// The clock of our timestamps.
    pub timestamp: u32,
}

impl Numbers {
    /// Those of a socket that is under repair, with no queue chosen; the two numbers of its queues are left out.
    pub(super) fn read(fd: BorrowedFd<'_>) -> nix::Result<Self> {
        let info = option(fd, IPPROTO_TCP, libc::TCP_INFO)?;
        let mut window = [0; 5];
        let raw = option_of_size(fd, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, size_of_val(&window))?;
        if raw.len() != size_of_val(&window) || info.len() < 8 {
            return Err(Errno::EPROTO);
        }
        for (word, bytes) in window.iter_mut().zip(raw.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        }
        Ok(Self {
            window,
            agreed: info[5] & (TIMESTAMPS | SACK | SCALES),
            scales: info[6],
            mss: options::int(fd, IPPROTO_TCP, libc::TCP_MAXSEG) as u32,
            timestamp: options::int(fd, IPPROTO_TCP, libc::TCP_TIMESTAMP) as u32,
            ..Self::default()
        })
    }

    /// Of a connection within the job: what was agreed on, and the windows. The numbers may be others after a restore.
    pub(super) fn shown(fd: BorrowedFd<'_>) -> Self {
        let info = option(fd, IPPROTO_TCP, libc::TCP_INFO).unwrap_or_default();
        let word =
            |at: usize| info.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")));
        // `tcpi_snd_wnd`, `tcpi_rcv_wnd`.
        let (sends, receives) = (word(228), word(232));
        Self {
            window: [0, sends, sends, receives, 0],
            agreed: info.get(5).map_or(0, |o| o & (TIMESTAMPS | SACK | SCALES)),
            scales: info.get(6).copied().unwrap_or(0),
            mss: options::int(fd, IPPROTO_TCP, libc::TCP_MAXSEG) as u32,
            ..Self::default()
        }
    }

    /// The windows as those of one who has received up to that number.
    pub(super) fn at(self, received: u32) -> Self {
        let [_, sends, most, receives, _] = self.window;
        Self { window: [received, sends, most, receives, received], ..self }
    }

    /// Those of the other end, as far as they follow.
    pub(super) fn of_other(self) -> Self {
        let [_, sends, _, receives, _] = self.window;
        Self { window: [0, receives, receives, sends, 0], scales: self.scales.rotate_left(4), ..self }
    }

    /// How much the other end was told that it may send, in bytes.
    pub(super) fn promised(&self) -> u32 {
        let [_, _, _, receives, from] = self.window;
        receives.saturating_sub(self.received_up_to.wrapping_sub(from))
    }

    /// The window in which the other end lets us send, as a packet of its would say it.
    pub(super) fn window_of_other(&self) -> u16 {
        let scale = if self.agreed & SCALES == 0 { 0 } else { self.scales & 0xf };
        u16::try_from(self.window[1] >> scale).unwrap_or(u16::MAX)
    }

    /// `struct tcp_repair_opt`: code and value.
    fn options(&self) -> Vec<u8> {
        let (ours, theirs) = (u32::from(self.scales & 0xf), u32::from(self.scales >> 4));
        let mut all = vec![(OPTION_MSS, self.mss)];
        if self.agreed & SCALES != 0 {
            all.push((OPTION_SCALES, ours | theirs << 16));
        }
        if self.agreed & SACK != 0 {
            all.push((OPTION_SACK, 0));
        }
        if self.agreed & TIMESTAMPS != 0 {
            all.push((OPTION_TIMESTAMPS, 0));
        }
        all.iter().flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat()).collect()
    }
}

/// How many bytes of those in the sending queue were never sent, the end (FIN) not counted.
pub(super) fn unsent_bytes(fd: BorrowedFd<'_>, phase: u8) -> nix::Result<u32> {
    let all = unsent(fd)?;
    // Where anything is unsent, so is the end, which comes last.
    Ok(if phase::is_ended(phase) { all.saturating_sub(1) } else { all } as u32)
}

/// Whether we may put sockets under repair (`CAP_NET_ADMIN`).
pub(super) fn is_allowed() -> bool {
    static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
        socket(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_TCP)
            .and_then(|fd| options::set_int(fd.as_fd(), IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_ON))
            .is_ok()
    });
    *ALLOWED
}

/// Makes the socket again. It stays under repair: nothing is sent. What had not been sent, and an end that arrived, is still to come
/// ([`super::Revived`]), and so is our own.
pub(super) fn make(socket: &Inet, connection: &Connection, numbers: &Numbers) -> Result<OwnedFd> {
    // To be bound to one address of IPv6 makes a socket IPv6-only for good, and that shows. Bound to none it may get another
    // address, if there are several: then that is the lesser evil.
    let fd = connected(socket, connection, numbers, true)?;
    let fd = if socket.is_at_its_address(&fd) { fd } else { connected(socket, connection, numbers, false)? };
    if !socket.is_at_its_address(&fd) {
        return Err(socket.failed(Errno::EADDRNOTAVAIL));
    }
    fill(fd.as_fd(), connection, numbers).map_err(|e| socket.failed(e))?;
    Ok(fd)
}

fn connected(socket: &Inet, connection: &Connection, numbers: &Numbers, loosely: bool) -> Result<OwnedFd> {
    let fd = restore::new(socket)?;
    let failed = |e| socket.failed(e);
    set(fd.as_fd(), libc::TCP_REPAIR, REPAIR_ON as u32).map_err(failed)?;
    let sent = connection.sent.len() as u32;
    let received = connection.received.len() as u32;
    for (queue, from) in [
        (SEND_QUEUE, numbers.sent_up_to.wrapping_sub(sent)),
        (RECEIVE_QUEUE, numbers.received_up_to.wrapping_sub(received)),
    ] {
        choose(fd.as_fd(), queue).and_then(|()| set(fd.as_fd(), libc::TCP_QUEUE_SEQ, from)).map_err(failed)?;
    }
    choose(fd.as_fd(), NO_QUEUE).map_err(failed)?;
    socket.bind(&fd, loosely)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(connection.remote)).map_err(failed)?;
    set_option(fd.as_fd(), IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &numbers.options()).map_err(failed)?;
    set(fd.as_fd(), libc::TCP_TIMESTAMP, numbers.timestamp).map_err(failed)?;
    Ok(fd)
}

/// Puts back what was queued, and the window.
fn fill(fd: BorrowedFd<'_>, connection: &Connection, numbers: &Numbers) -> nix::Result<()> {
    options::make_room(fd)?;
    let sent = connection.sent.len() - numbers.unsent as usize;
    for (queue, bytes) in [(RECEIVE_QUEUE, &connection.received[..]), (SEND_QUEUE, &connection.sent[..sent])] {
        choose(fd, queue)?;
        put(fd, bytes)?;
    }
    let mut window = numbers.window;
    // Of what has arrived, an end is not there yet.
    let arrived = numbers.received_up_to;
    if (arrived.wrapping_sub(window[RECEIVE_WINDOW_FROM]) as i32) < 0 {
        window[RECEIVE_WINDOW_FROM] = arrived;
    }
    let window = window.map(u32::to_ne_bytes).concat();
    set_option(fd, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &window)?;
    choose(fd, NO_QUEUE)
}

fn put(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    /// The kernel takes what goes into the receiving queue in one piece of memory.
    const PIECE: usize = 32 << 10;
    while !bytes.is_empty() {
        let n = send(fd.as_raw_fd(), &bytes[..bytes.len().min(PIECE)], MsgFlags::MSG_NOSIGNAL)?;
        bytes = &bytes[n..];
    }
    Ok(())
}

fn set(fd: BorrowedFd<'_>, name: i32, value: u32) -> nix::Result<()> {
    set_option(fd, IPPROTO_TCP, name, &value.to_ne_bytes())
}
