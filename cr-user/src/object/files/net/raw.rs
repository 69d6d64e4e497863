//! Raw sockets of IPv4 and IPv6: what they are bound and connected to, and which protocol they see. What distinguishes them
//! from others are options (`IP_HDRINCL`, `ICMP_FILTER`, `IPV6_CHECKSUM`, …), see `super::options`.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::super::No;
use super::udp::{self, Ip};
use super::{Asked, address};
use crate::procfs;

/// `IPPROTO_IGMP`.
const IGMP: i32 = 2;

/// What the kernel shows of all raw sockets.
#[derive(Default)]
pub(super) struct Tables {
    /// The other ends of those that are connected, by inode.
    remotes: OnceCell<HashMap<u64, SocketAddr>>,
}

impl Tables {
    fn remote_of(&self, inode: u64) -> Option<SocketAddr> {
        let read = || {
            let text = |name: &str| procfs::text(&format!("/proc/thread-self/net/{name}")).unwrap_or_default();
            let lines = [text("raw"), text("raw6")];
            lines.iter().flat_map(|t| t.lines()).filter_map(connected).collect()
        };
        self.remotes.get_or_init(read).get(&inode).copied()
    }
}

/// A line of `/proc/net/raw` or `raw6`, if it is of a connected socket: its inode, and the other end.
fn connected(line: &str) -> Option<(u64, SocketAddr)> {
    const ESTABLISHED: &str = "01";
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != ESTABLISHED {
        return None;
    }
    let (ip, port) = fields.get(2)?.split_once(':')?;
    // Words, each printed as the number that its bytes are in memory.
    let words: Option<Vec<u8>> = ip
        .as_bytes()
        .chunks(8)
        .map(|w| u32::from_str_radix(std::str::from_utf8(w).ok()?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<Vec<[u8; 4]>>>()
        .map(|all| all.concat());
    let bytes = words?;
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(&bytes[..]).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?),
    };
    Some((fields.get(9)?.parse().ok()?, SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?)))
}

/// The record of a raw socket.
pub(super) fn describe(asked: &Asked<'_>, groups: &udp::Tables, tables: &Tables) -> Result<Ip, No> {
    let routes =
        |name: &str| procfs::text(&format!("/proc/thread-self/net/{name}")).is_ok_and(|t| t.lines().count() > 1);
    let router = match asked.protocol {
        IGMP => routes("ip_mr_vif"),
        libc::IPPROTO_ICMPV6 => routes("ip6_mr_vif"),
        _ => false,
    };
    if router {
        let why = "is a raw socket by which this machine may be routing multicasts (MRT_INIT), which would end with it";
        return Err(No::new(why.to_owned(), "stop the multicast router before the checkpoint"));
    }
    let (local, remote) = address::ends(asked.fd);
    // Connected to port 0, it does not say so itself.
    let remote = remote.or_else(|| tables.remote_of(asked.inode));
    // In place of a port it shows its protocol.
    let bound = local.filter(|l| !l.ip().is_unspecified());
    Ok(Ip::new(asked, groups, bound, remote))
}

#[cfg(test)]
mod tests {
    use super::connected;

    #[test]
    fn a_connected_raw_socket_is_found_in_the_table() {
        let line =
            "   1: 0100007F:0001 0200007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0";
        assert_eq!(connected(line), Some((4711, "127.0.0.2:0".parse().unwrap())));
        let line = "  58: 00000000000000000000000000000000:003A 00000000000000000000000001000000:0000 01 00000000:00000000 00:00000000 00000000 0 0 12 2 0 0";
        assert_eq!(connected(line), Some((12, "[::1]:0".parse().unwrap())));
        assert_eq!(connected("   1: 0100007F:0001 00000000:0000 07 0:0 00:0 0 0 0 4711 2 0 0"), None);
        assert_eq!(connected("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }
}
