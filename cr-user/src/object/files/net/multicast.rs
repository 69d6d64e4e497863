//! Memberships in multicast groups. No list shows those of one socket; but a socket answers, for a group and an interface, which
//! sources it lets in there (`MCAST_MSFILTER`), if it is a member. So it is asked about every group that this machine is in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IP, IPPROTO_IPV6};

use super::address::{interface_name, interface_number};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::network::ask_option;
use crate::sys::socket::set_option;

/// `struct group_filter` of `linux/in.h`: interface, group, mode, number of sources, sources.
const MODE: usize = 136;
const COUNT: usize = 140;
const SOURCES: usize = 144;
/// Bytes of `struct sockaddr_storage`.
const STORAGE: usize = 128;
/// All but the sources that are named.
const EXCLUDE: u32 = 0;

/// What a socket lets in from one group on one interface.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: IpAddr,
    /// The interface's name.
    pub interface: String,
    /// Whether everything is let in but what `sources` sent, or only that.
    pub exclude: bool,
    /// Senders.
    pub sources: Vec<IpAddr>,
}

/// Every group that this machine is in, with the number of the interface.
pub(super) fn groups() -> Vec<(u32, IpAddr)> {
    let text = |name: &str| procfs::text(&format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let mut all = Vec::new();
    let mut interface = 0;
    for line in text("igmp").lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with(char::is_whitespace) {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(raw) = u32::from_str_radix(first, 16) {
            // Printed as the number that its bytes are in memory.
            all.push((interface, IpAddr::V4(Ipv4Addr::from(raw.to_ne_bytes()))));
        }
    }
    for line in text("igmp6").lines() {
        let mut fields = line.split_whitespace();
        let number = fields.next().and_then(|n| n.parse().ok());
        let group = fields.nth(1).and_then(|g| u128::from_str_radix(g, 16).ok());
        all.extend(number.zip(group).map(|(n, g)| (n, IpAddr::V6(Ipv6Addr::from(g)))));
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Of these groups those that a socket is a member of.
pub(super) fn read(fd: BorrowedFd<'_>, family: i32, groups: &[(u32, IpAddr)]) -> Vec<Membership> {
    let of_family = groups.iter().filter(|(_, group)| group.is_ipv4() || family == libc::AF_INET6);
    of_family.filter_map(|(interface, group)| ask(fd, *interface, *group)).collect()
}

fn ask(fd: BorrowedFd<'_>, interface: u32, group: IpAddr) -> Option<Membership> {
    let mut room = 64u32;
    loop {
        let mut value = vec![0; SOURCES + room as usize * STORAGE];
        value[..4].copy_from_slice(&interface.to_ne_bytes());
        value[8..8 + STORAGE].copy_from_slice(&storage(group));
        value[COUNT..COUNT + 4].copy_from_slice(&room.to_ne_bytes());
        ask_option(fd, level(group), libc::MCAST_MSFILTER, &mut value).ok()?;
        let word =
            |at: usize| value.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")));
        let count = word(COUNT);
        if count > room {
            room = count;
            continue;
        }
        let sources = value[SOURCES..].chunks_exact(STORAGE).take(count as usize).map(|s| source(s, group));
        return Some(Membership {
            group,
            interface: interface_name(interface),
            exclude: word(MODE) == EXCLUDE,
            sources: sources.collect(),
        });
    }
}

impl Membership {
    /// Whether the interface is here.
    pub(super) fn check(&self, what: &str) -> Result<()> {
        interface_number(&self.interface, what).map(drop)
    }

    /// Joins.
    pub(super) fn join(&self, fd: BorrowedFd<'_>, what: &str) -> Result<()> {
        let number = interface_number(&self.interface, what)?;
        let failed = |e: nix::errno::Errno| {
            let (group, interface) = (self.group, &self.interface);
            Error::system(format!("joining the multicast group {group} on {interface} for {what}"), e)
        };
        let request = |source: Option<&IpAddr>| {
            // `struct group_req`, `struct group_source_req`.
            let mut value = number.to_ne_bytes().to_vec();
            value.resize(8, 0);
            value.extend_from_slice(&storage(self.group));
            value.extend(source.into_iter().flat_map(|s| storage(*s)));
            value
        };
        let level = level(self.group);
        if self.exclude {
            set_option(fd, level, libc::MCAST_JOIN_GROUP, &request(None)).map_err(failed)?;
        }
        let name = if self.exclude { libc::MCAST_BLOCK_SOURCE } else { libc::MCAST_JOIN_SOURCE_GROUP };
        self.sources.iter().try_for_each(|s| set_option(fd, level, name, &request(Some(s)))).map_err(failed)
    }
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { IPPROTO_IP } else { IPPROTO_IPV6 }
}

/// A `struct sockaddr_storage` with an address.
fn storage(ip: IpAddr) -> [u8; STORAGE] {
    let mut bytes = [0; STORAGE];
    match ip {
        IpAddr::V4(v4) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            bytes[4..8].copy_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            bytes[8..24].copy_from_slice(&v6.octets());
        }
    }
    bytes
}

fn source(storage: &[u8], group: IpAddr) -> IpAddr {
    if group.is_ipv4() {
        IpAddr::from(<[u8; 4]>::try_from(&storage[4..8]).expect("four bytes"))
    } else {
        IpAddr::from(<[u8; 16]>::try_from(&storage[8..24]).expect("sixteen bytes"))
    }
}
