//! Sockets that were connected and are no more: both ends have ended it, or the program is to see that it was reset.
//!
//! The kernel makes a socket such in one way only: it is connected, to us here, and then that is ended.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::SOL_SOCKET;
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockaddrStorage, bind, connect, getpeername, getsockname, shutdown};

use super::capture::address;
use super::restore::{new, wait_for};
use super::{Inet, end_of, options, phase, queue};
use crate::error::Result;
use crate::sys::fd::readable_bytes;
use crate::sys::socket::{accept, listen, set_option};

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By both ends.
    Both,
    /// It was reset, and the program has not noticed yet.
    Reset,
}

/// Makes such a socket, in whose queue this is left to be read.
pub(super) fn make(socket: &Inet, received: &[u8], how: How) -> Result<OwnedFd> {
    let (one, two) = connected(socket).map_err(|e| socket.failed(e))?;
    let room = options::make_room(two.as_fd()).and_then(|()| options::make_room(one.as_fd()));
    room.map_err(|e| socket.failed(e))?;
    if !received.is_empty() {
        socket.send(two.as_fd(), received)?;
        wait_for(socket, || readable_bytes(one.as_fd()).map(|n| n >= received.len()))?;
    }
    if how == How::Reset {
        // `struct linger`: on, for no time.
        let linger = [1i32, 0].map(i32::to_ne_bytes).concat();
        set_option(two.as_fd(), SOL_SOCKET, libc::SO_LINGER, &linger).map_err(|e| socket.failed(e))?;
    }
    drop(two);
    if how == How::Both {
        wait_for(socket, || Ok(phase::has_heard_end(queue::phase_of(one.as_fd()))))?;
        shutdown(one.as_raw_fd(), Shutdown::Write).map_err(|e| socket.failed(e))?;
    }
    wait_for(socket, || Ok(queue::phase_of(one.as_fd()) == phase::CLOSE))?;
    Ok(one)
}

/// A socket with the address that it had, if that can be had, and one of ours that it is connected to.
fn connected(socket: &Inet) -> nix::Result<(OwnedFd, OwnedFd)> {
    let here: SocketAddr = match socket.family {
        libc::AF_INET => (Ipv4Addr::LOCALHOST, 0).into(),
        _ if socket.local.ip().to_canonical().is_ipv4() => (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0).into(),
        _ => (Ipv6Addr::LOCALHOST, 0).into(),
    };
    let plain = |_| Errno::EIO;
    let bare = Inet { options: Vec::new(), ..socket.clone() };
    let listener = new(&bare).map_err(plain)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(here))?;
    listen(&listener, 1)?;
    let there = getsockname::<SockaddrStorage>(listener.as_raw_fd())?;
    let one = new(socket).map_err(plain)?;
    // Nobody can tell where the ends of a connection were that is no more, but for the address that the program still has.
    if bind(one.as_raw_fd(), &SockaddrStorage::from(socket.local)).is_err() {
        log::info!("{} gets another address, since its own is not here", socket.what());
    }
    connect(one.as_raw_fd(), &there)?;
    let own = getsockname::<SockaddrStorage>(one.as_raw_fd())?;
    loop {
        let two = accept(listener.as_fd())?;
        let from = getpeername::<SockaddrStorage>(two.as_raw_fd())?;
        if address(&from).map(end_of) == address(&own).map(end_of) {
            return Ok((one, two));
        }
    }
}
