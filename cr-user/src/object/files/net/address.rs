//! Addresses of IP sockets, and network interfaces by name: their numbers are others on another machine, or after a reboot.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

use super::super::not_here;
use crate::error::{Error, Result};
use crate::sys::network;

/// An address.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// With the number that the interface had.
    pub at: SocketAddr,
    /// The interface that a link-local address is of; empty for all others.
    pub interface: String,
}

impl Address {
    /// As the kernel shows it.
    pub(super) fn of(at: SocketAddr) -> Self {
        let scope = match at {
            SocketAddr::V6(v6) => v6.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        Self { at, interface: interface_name(scope) }
    }

    /// With the number that the interface has now.
    pub(super) fn now(&self) -> Result<SocketAddr> {
        let mut at = self.at;
        if let SocketAddr::V6(v6) = &mut at
            && !self.interface.is_empty()
        {
            v6.set_scope_id(interface_number(&self.interface, &format!("the address {at}", at = self.at))?);
        }
        Ok(at)
    }
}

/// The address of a socket, and that of the other end if it has one.
pub(super) fn ends(fd: BorrowedFd<'_>) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let local = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok().and_then(|a| std_address(&a));
    let remote = getpeername::<SockaddrStorage>(fd.as_raw_fd()).ok().and_then(|a| std_address(&a));
    (local, remote)
}

fn std_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

/// Gives a socket an address.
///
/// # Errors
/// [`Error::NotHere`] if the address is taken, or not of this machine.
pub(super) fn bind(fd: BorrowedFd<'_>, at: SocketAddr, what: &dyn Fn() -> String) -> Result<()> {
    nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at)).map_err(|e| match e {
        Errno::EADDRINUSE => not_here(what(), format!("{at} is in use"), "end whoever uses it"),
        Errno::EADDRNOTAVAIL => {
            not_here(what(), format!("this machine has no address {}", at.ip()), "give it that address")
        }
        Errno::EACCES => not_here(what(), format!("{at} may not be used"), "run cr as root"),
        other => Error::system(format!("making {}", what()), other),
    })
}

/// Connects a socket, which sends nothing.
///
/// # Errors
/// [`Error::NotHere`] if no way leads there.
pub(super) fn connect(fd: BorrowedFd<'_>, to: SocketAddr, what: &dyn Fn() -> String) -> Result<()> {
    nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).map_err(|e| match e {
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EADDRNOTAVAIL | Errno::EINVAL => {
            let todo = "set up the network as it was: its addresses and routes";
            not_here(what(), format!("no route leads to {} ({e})", to.ip()), todo)
        }
        other => Error::system(format!("making {}", what()), other),
    })
}

/// Parts a socket from the other end.
pub(super) fn disconnect(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let mut nobody = (libc::AF_UNSPEC as u16).to_ne_bytes().to_vec();
    nobody.resize(16, 0);
    network::connect(fd, &nobody)
}

/// The name of an interface by its number; empty if there is none.
pub(super) fn interface_name(number: u32) -> String {
    if number == 0 {
        return String::new();
    }
    if_indextoname(number).map_or(String::new(), |name| name.to_string_lossy().into_owned())
}

/// The number of an interface that `what` needs.
///
/// # Errors
/// [`Error::NotHere`] if there is none of that name.
pub(super) fn interface_number(name: &str, what: &str) -> Result<u32> {
    if_nametoindex(name).map_err(|_| {
        let todo = "make it, with the addresses that it had";
        not_here(what.to_owned(), format!("this machine has no network interface {name}"), todo)
    })
}

/// An address without a port.
pub(super) fn unspecified(family: i32) -> IpAddr {
    if family == libc::AF_INET { IpAddr::from([0; 4]) } else { IpAddr::from([0u8; 16]) }
}
