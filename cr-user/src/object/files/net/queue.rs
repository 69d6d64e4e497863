//! What has arrived at a socket and was not read.
//!
//! No system call shows more of it than the first datagram without taking it out, or without moving a place that belongs to the
//! socket (`SO_PEEK_OFF`), where it would stay if cr died. So the queue is read from the kernel's memory
//! ([`crate::track::datagrams`]), which disturbs nothing.
//!
//! A datagram carries its sender's address. It is put back by sending it again over the loopback interface, with headers of our own
//! that name that sender. Only what is addressed to a single address of this machine can go that way. What else there is, is lost, as
//! it would be if there were no room; the checkpoint says so.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::{AF_INET, AF_INET6, IPPROTO_RAW, SOCK_DGRAM, SOCK_RAW, SOL_SOCKET};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, connect, recv, sendto};
use serde::{Deserialize, Serialize};

use super::super::{Description, Files, Holder, survey};
use super::{Net, Special, address, udp};
use crate::sys::network;
use crate::sys::socket::{option, set_option, socket};

/// What becomes of datagrams that the job has not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They are kept where that is possible, and lost where not.
    #[default]
    Keep,
    /// They are lost.
    Drop,
    /// While there are any, no checkpoint is taken.
    Refuse,
}

/// What was received and not read.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// To which address.
    pub to: IpAddr,
    /// How many hops it had left (`IP_RECVTTL`).
    pub hops: u8,
    /// Its type of service (`IP_RECVTOS`).
    pub service: u8,
    /// Its bytes.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub bytes: Vec<u8>,
}

/// A socket in which something waits.
#[derive(Debug)]
pub struct Waiting {
    /// The index of its description.
    pub description: usize,
    /// A process that has it, and under which number.
    pub at: (i32, i32),
    /// What it is called.
    pub what: String,
    /// Whether something waits to be read.
    pub waits: bool,
    /// Whether that is of a kind that can be put back.
    pub can_be_kept: bool,
    /// Whether an error waits to be told.
    pub reports: bool,
}

/// The sockets in which something waits: datagrams, or errors.
pub fn waiting(files: &Files) -> Vec<Waiting> {
    let sockets = super::all(files).filter(|(_, net)| !matches!(net.special, Special::Netlink(_)));
    let busy = sockets.filter(|(_, net)| net.waiting || net.reports);
    let of = |(description, net): (usize, &Net)| {
        let at = files.holders(description).first().copied()?;
        let is_udp = net.kind == SOCK_DGRAM && [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE].contains(&net.protocol);
        let can_be_kept = is_udp && matches!(net.special, Special::Ip(_));
        Some(Waiting { description, at, what: net.what(), waits: net.waiting, can_be_kept, reports: net.reports })
    };
    busy.filter_map(of).collect()
}

/// Puts what was read of a queue into the record. Gives back how many of the datagrams could not be put back, and so are left out.
pub fn set(files: &mut Files, description: usize, datagrams: Vec<Datagram>) -> usize {
    let Description::Net(net) = &mut files.descriptions[description] else { return 0 };
    let all = datagrams.len();
    let Special::Ip(ip) = &mut net.special else { return 0 };
    let local = ip.local.as_ref().map(|l| l.at.ip());
    ip.queue = datagrams.into_iter().filter(|d| d.can_be_sent(local)).collect();
    all - ip.queue.len()
}

/// The bytes of the first datagram in a socket's queue, where it stays.
pub fn first(holders: &[Holder<'_>], (pid, fd): (i32, i32)) -> Option<Vec<u8>> {
    const LONGEST: usize = 1 << 16;
    let ours = survey::fetch(holders, pid, fd).ok()?;
    let mut bytes = vec![0; LONGEST];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let n = recv(ours.as_raw_fd(), &mut bytes, flags).ok()?;
    bytes.truncate(n);
    Some(bytes)
}

impl Datagram {
    /// Whether it can be sent again, to a socket that is bound to an address.
    fn can_be_sent(&self, local: Option<IpAddr>) -> bool {
        let is_single = |ip: IpAddr| !ip.is_multicast() && ip != IpAddr::from([255; 4]);
        let is_link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let to = self.destination(local);
        let local_link = is_link_local(to) || is_link_local(self.from.ip());
        is_single(to) && !local_link && to.is_ipv4() == self.from.is_ipv4()
    }

    /// To where it is sent again: for a socket that is bound to every address, an own one will do if it went to many.
    fn destination(&self, local: Option<IpAddr>) -> IpAddr {
        let bound = local.map(|l| l.to_canonical()).filter(|l| !l.is_unspecified());
        match bound {
            Some(ip) => ip,
            None if self.to.is_multicast() || self.to == IpAddr::from([255; 4]) => match self.to {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            },
            None => self.to,
        }
    }

    /// The datagram with the headers of IP and of its protocol.
    fn packet(&self, protocol: i32, to: SocketAddr) -> Vec<u8> {
        let len = 8 + self.bytes.len();
        // Of UDP-Lite this is how much is covered by the checksum: all.
        let stated = if protocol == libc::IPPROTO_UDP { len as u16 } else { 0 };
        let mut inner: Vec<u8> =
            [self.from.port(), to.port(), stated, 0].into_iter().flat_map(u16::to_be_bytes).collect();
        inner.extend_from_slice(&self.bytes);
        let mut pseudo: Vec<u8> = Vec::new();
        let mut packet: Vec<u8> = Vec::new();
        match (self.from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                pseudo.extend([from.octets(), to.octets()].concat());
                let total = (20 + len) as u16;
                packet.extend([0x45, self.service]);
                packet.extend(total.to_be_bytes());
                packet.extend([0, 0, 0, 0, self.hops.max(1), protocol as u8, 0, 0]);
            }
            (from, to) => {
                let octets = |ip: IpAddr| match ip {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                };
                pseudo.extend([octets(from), octets(to)].concat());
                let class = self.service;
                packet.extend([0x60 | class >> 4, class << 4, 0, 0]);
                packet.extend((len as u16).to_be_bytes());
                packet.extend([protocol as u8, self.hops.max(1)]);
            }
        }
        packet.extend_from_slice(&pseudo);
        pseudo.extend((len as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, protocol as u8]);
        let sum = checksum(&[&pseudo, &inner]);
        inner[6..8].copy_from_slice(&sum.to_be_bytes());
        packet.extend_from_slice(&inner);
        packet
    }
}

/// The checksum of the internet (RFC 1071), as UDP writes it: never 0. All parts but the last are of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u64 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        other => other,
    }
}

/// Puts datagrams into the queue of a socket of the job that is bound, and not connected yet. What cannot be put back is lost, and
/// noted. `place` is that of the socket in the list of those that share its port (`SO_REUSEPORT`), if it may.
pub(super) fn put_back(queue: &[Datagram], net: &Net, fd: BorrowedFd<'_>, place: Option<u32>) {
    let Special::Ip(ip) = &net.special else { return };
    udp::make_room(fd);
    if let Some(place) = place
        && let Err(e) = choose_always(fd, place)
    {
        log::info!("{} cannot be chosen among those that share its port: {e}", net.what());
    }
    let mut sender = Sender { net, fd, raw: [None, None], is_chosen: place.is_some(), connected: None };
    let local = ip.local.as_ref().map(|l| l.at);
    let done = queue.iter().take_while(|d| {
        let sent = local.ok_or(Errno::EADDRNOTAVAIL).and_then(|local| sender.send(d, local));
        sent.inspect_err(|e| log::info!("a datagram of {} for {}: {e}", d.from, net.what())).is_ok()
    });
    let lost = queue.len() - done.count();
    if lost > 0 {
        let what = net.what();
        log::warn!(
            "{what}: {lost} datagrams that it had not read at the checkpoint are lost: they cannot be sent to it again"
        );
    }
    if sender.connected.is_some() {
        // Its own other end comes later.
        let _ = address::disconnect(fd);
    }
    if place.is_some() {
        let _ = set_option(fd, SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, &0i32.to_ne_bytes());
    }
}

/// Has all datagrams go to one of the sockets that share a port, by a program that always answers with its place among them.
fn choose_always(fd: BorrowedFd<'_>, place: u32) -> nix::Result<()> {
    // `BPF_RET | BPF_K`, two jumps, the constant.
    let instruction = [[0x06, 0, 0, 0], place.to_ne_bytes()].concat();
    network::attach_program(fd, libc::SO_ATTACH_REUSEPORT_CBPF, &instruction)
}

/// Our own sockets, from which packets are sent to one of the job.
struct Sender<'a> {
    net: &'a Net,
    fd: BorrowedFd<'a>,
    /// Of IPv4, of IPv6.
    raw: [Option<OwnedFd>; 2],
    /// Whether it gets what goes to its port, whoever shares that.
    is_chosen: bool,
    /// To whom the job's socket is connected now.
    connected: Option<SocketAddr>,
}

impl Sender<'_> {
    /// Sends one, and waits until it has arrived.
    fn send(&mut self, datagram: &Datagram, local: SocketAddr) -> nix::Result<()> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let to = SocketAddr::new(datagram.destination(Some(local.ip())), local.port());
        let any_port = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
        let family = if to.is_ipv4() { AF_INET } else { AF_INET6 };
        // To an address that is none of ours it would leave this machine.
        bind(socket(family, SOCK_DGRAM, 0)?.as_raw_fd(), &any_port)?;
        let raw = &mut self.raw[usize::from(to.is_ipv6())];
        let raw = match raw {
            Some(raw) => raw,
            None => raw.insert(socket(family, SOCK_RAW, IPPROTO_RAW)?),
        };
        // Where others of the job have the same address, it goes to the one that is connected to its sender.
        if !self.is_chosen && self.connected != Some(datagram.from) {
            let from = match datagram.from {
                SocketAddr::V4(v4) if self.net.family == AF_INET6 => {
                    SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
                }
                from => from,
            };
            if connect(self.fd.as_raw_fd(), &SockaddrStorage::from(from)).is_err() {
                // No route leads to that sender: then to whoever is bound there.
                let _ = address::disconnect(self.fd);
            }
            self.connected = Some(datagram.from);
        }
        let before = received(self.fd);
        sendto(raw.as_raw_fd(), &datagram.packet(self.net.protocol, to), &any_port, MsgFlags::MSG_DONTWAIT)?;
        let end = Instant::now() + PATIENCE;
        while received(self.fd) == before {
            if Instant::now() > end {
                return Err(Errno::ETIMEDOUT);
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }
}

/// How many bytes of memory a socket's queue takes: first word of `SO_MEMINFO`.
fn received(fd: BorrowedFd<'_>) -> u32 {
    let told = option(fd, SOL_SOCKET, libc::SO_MEMINFO).unwrap_or_default();
    told.get(..4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(from: &str, to: &str) -> Datagram {
        Datagram {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            hops: 64,
            service: 0,
            bytes: b"numbered".to_vec(),
        }
    }

    /// The sum over what a receiver sums up is zero in ones' complement.
    fn verify(packet: &[u8], addresses: std::ops::Range<usize>, header: usize) {
        let inner = &packet[header..];
        let pseudo = [&packet[addresses], &(inner.len() as u32).to_be_bytes(), &[0, 0, 0, 17]].concat();
        assert_eq!(checksum(&[&pseudo, inner]), 0xffff);
    }

    #[test]
    fn packets_have_valid_checksums() {
        let packet = datagram("10.1.2.3:5000", "127.0.0.1").packet(17, "127.0.0.1:6000".parse().unwrap());
        assert_eq!(packet.len(), 20 + 8 + 8);
        verify(&packet, 12..20, 20);
        let packet = datagram("[2001:db8::1]:5000", "::1").packet(17, "[::1]:6000".parse().unwrap());
        assert_eq!(packet.len(), 40 + 8 + 8);
        verify(&packet, 8..40, 40);
    }

    #[test]
    fn only_what_goes_to_one_address_is_sent_again() {
        let any = Some("0.0.0.0".parse().unwrap());
        assert!(datagram("10.1.2.3:5000", "127.0.0.1").can_be_sent(any));
        assert!(datagram("10.1.2.3:5000", "239.1.2.3").can_be_sent(any), "an own address will do");
        assert!(!datagram("10.1.2.3:5000", "239.1.2.3").can_be_sent(Some("239.1.2.3".parse().unwrap())));
        assert!(!datagram("[fe80::1]:5000", "::1").can_be_sent(Some("::".parse().unwrap())));
    }
}
