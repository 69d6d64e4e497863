//! UDP, UDP-Lite and ping sockets, and what they have in common with raw ones: addresses, multicast groups, and what was shut down.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use libc::{AF_INET, AF_INET6, IPPROTO_UDP, SOCK_DGRAM, SOL_SOCKET};
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};

use super::super::No;
use super::super::inet::options::{int, set_int};
use super::super::sock_diag;
use super::address::{self, Address, unspecified};
use super::multicast::{self, Membership};
use super::queue::{self, Datagram};
use super::{Asked, Net, Special};
use crate::error::{Error, Result};
use crate::netlink::{attributes, u32_at};
use crate::sys::socket::{polled, set_option};
use crate::sys::tcp::unacknowledged;

/// `UDP_ENCAP` of `linux/udp.h`.
const UDP_ENCAP: i32 = 100;
/// Directions, as `sk_shutdown` in the kernel has them.
const RECEIVING: u8 = 1;
const SENDING: u8 = 2;

/// Where a socket over IP is.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// Its own address, if it is bound to one. The port of a ping socket is its identifier.
    pub local: Option<Address>,
    /// The address that it is connected to.
    pub remote: Option<Address>,
    /// Its multicast groups.
    pub memberships: Vec<Membership>,
    /// `shutdown(2)`: 1 for receiving, 2 for sending.
    pub shutdown: u8,
    /// What it has not read, as far as that is kept.
    pub queue: Vec<Datagram>,
}

/// What the kernel shows of all sockets.
#[derive(Default)]
pub(super) struct Tables {
    /// The groups of this machine.
    groups: OnceCell<Vec<(u32, IpAddr)>>,
    /// What was shut down of UDP sockets, by inode.
    shutdowns: OnceCell<HashMap<u64, u8>>,
}

/// What sockets of a protocol are called.
pub(super) fn name(protocol: i32) -> &'static str {
    match protocol {
        IPPROTO_UDP => "UDP socket",
        libc::IPPROTO_UDPLITE => "UDP-Lite socket",
        _ => "ping socket",
    }
}

/// Whether a socket of IPv4 or IPv6 is of these kinds.
pub(super) fn is_one(asked: &Asked<'_>) -> bool {
    let protocols = [IPPROTO_UDP, libc::IPPROTO_UDPLITE, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6];
    asked.kind == SOCK_DGRAM && protocols.contains(&asked.protocol)
}

/// The record of a socket, or why there can be none.
pub(super) fn describe(asked: &Asked<'_>, tables: &Tables) -> std::result::Result<Ip, No> {
    let (local, remote) = address::ends(asked.fd);
    let ip = Ip::new(asked, tables, local.filter(|l| l.port() != 0), remote);
    let refused =
        |what: &str, todo| Err(No::new(format!("is a {} ({}) {what}", name(asked.protocol), ip.ends()), todo));
    if int(asked.fd, IPPROTO_UDP, UDP_ENCAP) != 0 {
        let todo = "have the job close it before the checkpoint";
        return refused("that carries a tunnel (UDP_ENCAP), whose state the kernel keeps to itself", todo);
    }
    if is_corked(asked.fd) {
        let todo = "wait until the job has sent it, or have it clear UDP_CORK";
        return refused("that holds back what was written to it (UDP_CORK, MSG_MORE); nobody can look at that", todo);
    }
    Ok(ip)
}

/// Whether something was written and stays unsent. What is under way to a device is gone in a moment.
fn is_corked(fd: BorrowedFd<'_>) -> bool {
    const TRIES: u32 = 20;
    for _ in 0..TRIES {
        if unacknowledged(fd).unwrap_or(0) == 0 {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// What was shut down of every UDP socket that the kernel shows; nothing, if it shows none.
fn shutdowns() -> HashMap<u64, u8> {
    /// `INET_DIAG_SHUTDOWN` of `linux/inet_diag.h`, and bytes of `struct inet_diag_msg`.
    const SHUTDOWN: u16 = 8;
    const HEADER: usize = 72;
    let parse = |message: &[u8]| {
        let inode = u64::from(u32_at(message, 68));
        let found = attributes(message.get(HEADER..)?).find(|(kind, _)| *kind == SHUTDOWN);
        Some((inode, found.and_then(|(_, value)| value.first().copied()).unwrap_or(0)))
    };
    let mut all = HashMap::new();
    for family in [AF_INET, AF_INET6] {
        for protocol in [IPPROTO_UDP, libc::IPPROTO_UDPLITE] {
            // `struct inet_diag_req_v2`: family, protocol, what besides, padding, states, a socket's name.
            let mut question = vec![family as u8, protocol as u8, 0, 0];
            question.extend_from_slice(&u32::MAX.to_ne_bytes());
            question.resize(56, 0);
            match sock_diag::show_all(&question, parse) {
                Ok(shown) => all.extend(shown.into_iter().filter(|(inode, _)| *inode != 0)),
                Err(e) => log::debug!("sock_diag shows no sockets of protocol {protocol}: {e}"),
            }
        }
    }
    all
}

impl Ip {
    /// Of a socket with these addresses.
    pub(super) fn new(
        asked: &Asked<'_>,
        tables: &Tables,
        local: Option<SocketAddr>,
        remote: Option<SocketAddr>,
    ) -> Self {
        let mut ip = Self {
            local: local.map(Address::of),
            remote: remote.map(Address::of),
            memberships: Vec::new(),
            shutdown: 0,
            queue: Vec::new(),
        };
        if asked.frozen {
            let groups = tables.groups.get_or_init(multicast::groups);
            ip.memberships = multicast::read(asked.fd, asked.family, groups);
            let events = polled(asked.fd, libc::POLLRDHUP);
            let heard = if events & libc::POLLRDHUP != 0 { RECEIVING } else { 0 };
            let both = if events & libc::POLLHUP != 0 { RECEIVING | SENDING } else { 0 };
            // That it does not send any more is shown by no event.
            let told = remote.and_then(|_| tables.shutdowns.get_or_init(shutdowns).get(&asked.inode).copied());
            ip.shutdown = heard | both | told.unwrap_or(0);
        }
        ip
    }

    /// Its addresses, in words.
    pub(super) fn ends(&self) -> String {
        match (&self.local, &self.remote) {
            (Some(local), Some(remote)) => format!("{} to {}", local.at, remote.at),
            (Some(local), None) => format!("bound to {}", local.at),
            (None, Some(remote)) => format!("to {}", remote.at),
            (None, None) => "without an address".to_owned(),
        }
    }

    /// The address that a socket is bound to.
    fn place(&self, net: &Net) -> Option<SocketAddr> {
        let mut at = self.local.as_ref()?.at;
        // To be bound to one address of IPv6 makes a socket IPv6-only for good, and that shows. Connected it has that address all
        // the same.
        let both = net.family == AF_INET6 && !net.options.is_on(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        if self.remote.is_some() && both && at.ip().to_canonical().is_ipv6() && net.kind == SOCK_DGRAM {
            at.set_ip(unspecified(net.family));
        }
        Some(at)
    }

    /// Gives a socket its address.
    pub(super) fn bind(&self, net: &Net, fd: BorrowedFd<'_>) -> Result<()> {
        let (Some(local), Some(place)) = (&self.local, self.place(net)) else { return Ok(()) };
        let at = SocketAddr::new(place.ip(), place.port());
        // With the number that its interface has now, if it is of one.
        let at = if at.ip() == local.at.ip() { local.now()? } else { at };
        address::bind(fd, at, &|| net.what())
    }

    /// Connects a socket.
    pub(super) fn connect(&self, net: &Net, fd: BorrowedFd<'_>) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        address::connect(fd, remote.now()?, &|| net.what())
    }

    /// Binds a socket, puts what it has not read into its queue, connects it, and joins its groups.
    pub(super) fn settle(&self, net: &Net, fd: BorrowedFd<'_>, earlier: &[&Net]) -> Result<()> {
        self.bind(net, fd)?;
        if !self.queue.is_empty() {
            self.put_back(net, fd, earlier)?;
        }
        self.connect(net, fd)?;
        let what = net.what();
        self.memberships.iter().try_for_each(|m| m.join(fd, &what))
    }

    /// What comes from elsewhere is let in from any device while the queue is filled: we send through none.
    fn put_back(&self, net: &Net, fd: BorrowedFd<'_>, earlier: &[&Net]) -> Result<()> {
        let device = |name: &[u8]| {
            set_option(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, name)
                .map_err(|e| Error::system(format!("choosing the device of {}", net.what()), e))
        };
        let own = net.options.device();
        if own.is_some() {
            device(b"\0")?;
        }
        // Of those that share the address, it is the last to have come.
        let place =
            net.shares_port().then(|| earlier.iter().filter(|other| other.shares_port_with(net)).count() as u32);
        queue::put_back(&self.queue, net, fd, place);
        match own {
            Some(name) => device(&[name.as_bytes(), b"\0"].concat()),
            None => Ok(()),
        }
    }

    /// What comes last: what was shut down.
    pub(super) fn finish(&self, net: &Net, fd: BorrowedFd<'_>) -> Result<()> {
        let how = match self.shutdown {
            0 => return Ok(()),
            RECEIVING => Shutdown::Read,
            SENDING => Shutdown::Write,
            _ => Shutdown::Both,
        };
        match shutdown(fd.as_raw_fd(), how) {
            // Of one that is not connected it is done, and told so.
            Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
            Err(e) => Err(net.failed(e)),
        }
    }
}

impl Net {
    /// Whether it may share its port.
    pub(super) fn shares_port(&self) -> bool {
        self.options.is_on(SOL_SOCKET, libc::SO_REUSEPORT)
    }

    /// Whether this one, which was made before the other, is in the kernel's list of those among which the other's datagrams are
    /// shared out. One that was bound to every address leaves it when it is connected.
    fn shares_port_with(&self, other: &Self) -> bool {
        let (Special::Ip(one), Special::Ip(two)) = (&self.special, &other.special) else { return false };
        let bound = one.place(self);
        let alike = (self.family, self.protocol, bound, self.options.device())
            == (other.family, other.protocol, two.place(other), other.options.device());
        let has_left = one.remote.is_some() && bound.is_none_or(|at| at.ip().is_unspecified());
        self.shares_port() && alike && !has_left
    }
}

/// Makes room for everything that is to be put into the queue.
pub(super) fn make_room(fd: BorrowedFd<'_>) {
    const ROOM: i32 = 1 << 28;
    if set_int(fd, SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM).is_err() {
        // What the system allows at most is less.
        let _ = set_int(fd, SOL_SOCKET, libc::SO_RCVBUF, ROOM);
    }
}
