//! Options that sockets of these kinds have besides those of TCP sockets, and those whose values are interfaces.

use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, SOL_NETLINK, SOL_PACKET, SOL_RAW, SOL_SOCKET};

use super::super::inet::options::{self, Setting};
use super::address::{interface_name, interface_number};
use crate::error::{Error, Result};
use crate::sys::socket::{option, set_option};

/// `linux/udp.h`; `UDPLITE_*` of `net/udplite.h`.
const UDP_CORK: i32 = 1;
const UDP_NO_CHECK6_TX: i32 = 101;
const UDP_NO_CHECK6_RX: i32 = 102;
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;
const UDPLITE_SEND_CSCOV: i32 = 10;
const UDPLITE_RECV_CSCOV: i32 = 11;
/// `linux/icmp.h`, `linux/icmpv6.h`.
const ICMP_FILTER: i32 = 1;
const ICMPV6_FILTER: i32 = 1;

/// Options that come in one form.
const MORE: &[(i32, i32)] = &[
    (SOL_SOCKET, libc::SO_PASSCRED),
    (SOL_SOCKET, libc::SO_NOFCS),
    (SOL_SOCKET, libc::SO_WIFI_STATUS),
    (SOL_SOCKET, libc::SO_TXTIME),
    // SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW, SO_TIMESTAMPING_NEW.
    (SOL_SOCKET, 63),
    (SOL_SOCKET, 64),
    (SOL_SOCKET, 65),
    (SOL_SOCKET, libc::SO_PREFER_BUSY_POLL),
    // SO_RCVMARK, since 5.19; SO_RCVPRIORITY, since 6.14.
    (SOL_SOCKET, 75),
    (SOL_SOCKET, 82),
    // Sockets of TCP show them, and do not let them be set.
    (IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (IPPROTO_IP, libc::IP_OPTIONS),
    (IPPROTO_IP, libc::IP_HDRINCL),
    (IPPROTO_IP, libc::IP_NODEFRAG),
    (IPPROTO_IP, libc::IP_CHECKSUM),
    (IPPROTO_IP, libc::IP_RECVFRAGSIZE),
    (IPPROTO_IPV6, libc::IPV6_HDRINCL),
    (IPPROTO_IPV6, libc::IPV6_CHECKSUM),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL),
    (IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR),
    (IPPROTO_IPV6, libc::IPV6_RECVFRAGSIZE),
    (IPPROTO_IPV6, libc::IPV6_RECVRTHDR),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS),
    (IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS),
    (IPPROTO_IPV6, libc::IPV6_RECVPATHMTU),
    (IPPROTO_IPV6, libc::IPV6_FLOWINFO),
    (IPPROTO_IPV6, libc::IPV6_DONTFRAG),
    (IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL),
    (IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES),
    (IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    (IPPROTO_IPV6, libc::IPV6_HOPOPTS),
    (IPPROTO_IPV6, libc::IPV6_RTHDRDSTOPTS),
    (IPPROTO_IPV6, libc::IPV6_RTHDR),
    (IPPROTO_IPV6, libc::IPV6_DSTOPTS),
    (IPPROTO_UDP, UDP_CORK),
    (IPPROTO_UDP, UDP_NO_CHECK6_TX),
    (IPPROTO_UDP, UDP_NO_CHECK6_RX),
    (IPPROTO_UDP, UDP_SEGMENT),
    (IPPROTO_UDP, UDP_GRO),
    (libc::IPPROTO_UDPLITE, UDPLITE_SEND_CSCOV),
    (libc::IPPROTO_UDPLITE, UDPLITE_RECV_CSCOV),
    (SOL_RAW, ICMP_FILTER),
    (libc::IPPROTO_ICMPV6, ICMPV6_FILTER),
    (SOL_NETLINK, libc::NETLINK_PKTINFO),
    (SOL_NETLINK, libc::NETLINK_BROADCAST_ERROR),
    (SOL_NETLINK, libc::NETLINK_NO_ENOBUFS),
    (SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID),
    (SOL_NETLINK, libc::NETLINK_CAP_ACK),
    (SOL_NETLINK, libc::NETLINK_EXT_ACK),
    (SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK),
    (SOL_PACKET, libc::PACKET_VERSION),
    (SOL_PACKET, libc::PACKET_RESERVE),
    (SOL_PACKET, libc::PACKET_AUXDATA),
    (SOL_PACKET, libc::PACKET_ORIGDEV),
    (SOL_PACKET, libc::PACKET_LOSS),
    (SOL_PACKET, libc::PACKET_VNET_HDR),
    (SOL_PACKET, libc::PACKET_TIMESTAMP),
    (SOL_PACKET, libc::PACKET_COPY_THRESH),
    (SOL_PACKET, libc::PACKET_TX_HAS_OFF),
    (SOL_PACKET, libc::PACKET_QDISC_BYPASS),
    (SOL_PACKET, libc::PACKET_IGNORE_OUTGOING),
    // A look with it moves it on, so it comes last.
    (SOL_SOCKET, libc::SO_PEEK_OFF),
];

/// Options whose value is an interface's number, and whether that is in the order of the network.
const INTERFACES: &[(i32, i32, bool)] = &[
    (IPPROTO_IP, libc::IP_UNICAST_IF, true),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_IF, true),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, false),
];

/// An option whose value is an interface.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Through {
    /// `IPPROTO_*`.
    pub level: i32,
    /// Its number.
    pub name: i32,
    /// The interface's name.
    pub interface: String,
}

/// All options of a socket.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Those with plain values.
    pub plain: Vec<Setting>,
    /// The address that IPv4 multicasts are sent from (`IP_MULTICAST_IF`).
    pub multicast_from: [u8; 4],
    /// The name of the interface by which they leave, where that is known; empty for whichever leads there.
    pub multicast_through: String,
    /// Those whose values are interfaces.
    pub through: Vec<Through>,
}

/// What the options are now.
pub(super) fn read(fd: BorrowedFd<'_>) -> Options {
    // What TCP alone has is not known to these sockets, and left out.
    let mut plain = options::read(fd, true);
    let more = |(level, name): &(i32, i32)| {
        Some(Setting { level: *level, name: *name, value: option(fd, *level, *name).ok()? })
    };
    plain.extend(MORE.iter().filter_map(more));
    let through = INTERFACES.iter().filter_map(|(level, name, swapped)| {
        let raw = options::int(fd, *level, *name) as u32;
        let interface = interface_name(if *swapped { u32::from_be(raw) } else { raw });
        (!interface.is_empty()).then_some(Through { level: *level, name: *name, interface })
    });
    let from = option(fd, IPPROTO_IP, libc::IP_MULTICAST_IF).ok();
    let multicast_from = from.and_then(|bytes| bytes.get(..4)?.try_into().ok()).unwrap_or_default();
    Options { plain, multicast_from, multicast_through: String::new(), through: through.collect() }
}

impl Options {
    /// An option with a plain value.
    pub(super) fn get(&self, level: i32, name: i32) -> Option<&[u8]> {
        self.plain.iter().find(|s| (s.level, s.name) == (level, name)).map(|s| &*s.value)
    }

    /// Whether it is set, and not 0.
    pub(super) fn is_on(&self, level: i32, name: i32) -> bool {
        self.get(level, name).is_some_and(|value| value.iter().any(|b| *b != 0))
    }

    /// The interface that the socket is bound to (`SO_BINDTODEVICE`).
    pub(super) fn device(&self) -> Option<String> {
        let value = self.get(SOL_SOCKET, libc::SO_BINDTODEVICE)?;
        let name = value.split(|b| *b == 0).next().unwrap_or_default();
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// Whether every interface is here.
    pub(super) fn check(&self, what: &str) -> Result<()> {
        let through = self.through.iter().map(|t| &t.interface).chain([&self.multicast_through]);
        let names = self.device().into_iter().chain(through.filter(|name| !name.is_empty()).cloned());
        names.into_iter().try_for_each(|name| interface_number(&name, what).map(drop))
    }

    /// Sets what must be so before the socket is bound.
    pub(super) fn set_first(&self, fd: BorrowedFd<'_>) -> Result<()> {
        options::set_first(fd, &self.plain)?;
        if self.is_on(SOL_SOCKET, libc::SO_REUSEADDR) {
            options::set_int(fd, SOL_SOCKET, libc::SO_REUSEADDR, 1)
                .map_err(|e| Error::system("setting SO_REUSEADDR of a socket of the job", e))?;
        }
        Ok(())
    }

    /// Sets all that is not so already.
    pub(super) fn set(&self, fd: BorrowedFd<'_>, what: &str) -> Result<()> {
        options::set(fd, &self.plain)?;
        let failed = |name: i32| {
            move |e: nix::errno::Errno| Error::system(format!("setting option {name} of a socket of the job"), e)
        };
        if self.multicast_from != [0; 4] || !self.multicast_through.is_empty() {
            // `struct ip_mreqn`: group, address, interface.
            let mut value = [[0; 4], self.multicast_from].concat();
            if !self.multicast_through.is_empty() {
                value.extend_from_slice(&interface_number(&self.multicast_through, what)?.to_ne_bytes());
            }
            set_option(fd, IPPROTO_IP, libc::IP_MULTICAST_IF, &value).map_err(failed(libc::IP_MULTICAST_IF))?;
        }
        for through in &self.through {
            let number = interface_number(&through.interface, what)?;
            let swapped =
                INTERFACES.iter().any(|(level, name, s)| (*level, *name, *s) == (through.level, through.name, true));
            let value = if swapped { number.to_be() } else { number };
            set_option(fd, through.level, through.name, &value.to_ne_bytes()).map_err(failed(through.name))?;
        }
        Ok(())
    }
}
