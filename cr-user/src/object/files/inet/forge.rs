//! A packet that the other end of a connection has sent once, sent again in its name: that it has ended (FIN). It does not send it
//! again by itself, since it was told that it arrived, and a socket takes it from nowhere else.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};

use crate::sys::socket::socket;

const FIN_AND_ACK: u8 = 0x11;
const TCP: u8 = 6;
const TCP_HEADER: usize = 20;

/// The end of what one sends to the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Whose it is.
    pub(super) from: SocketAddr,
    /// Who is to see it.
    pub(super) to: SocketAddr,
    /// Its number.
    pub(super) number: u32,
    /// The number up to which all has arrived there.
    pub(super) arrived: u32,
    /// Its window, scaled.
    pub(super) window: u16,
}

impl End {
    /// Sends it; it does not leave this machine, which has the address that it goes to.
    ///
    /// # Errors
    /// What the kernel says, `EPERM` without `CAP_NET_RAW`.
    pub(super) fn send(&self) -> nix::Result<()> {
        let (from, to) = (self.from.ip().to_canonical(), self.to.ip().to_canonical());
        let (family, packet) = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                // The kernel fills in the checksum and the number of the packet.
                let mut packet = vec![0x45, 0, 0, (20 + TCP_HEADER) as u8, 0, 0, 0, 0, 64, TCP, 0, 0];
                packet.extend_from_slice(&addresses);
                packet.extend_from_slice(&self.segment(&addresses));
                (libc::AF_INET, packet)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                let mut packet = vec![0x60, 0, 0, 0, 0, TCP_HEADER as u8, TCP, 64];
                packet.extend_from_slice(&addresses);
                packet.extend_from_slice(&self.segment(&addresses));
                (libc::AF_INET6, packet)
            }
            _ => return Err(Errno::EAFNOSUPPORT),
        };
        let raw = socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        let mut target = self.to;
        target.set_ip(to);
        target.set_port(0);
        sendto(raw.as_raw_fd(), &packet, &SockaddrStorage::from(target), MsgFlags::empty()).map(drop)
    }

    /// The TCP header, which is all there is.
    fn segment(&self, addresses: &[u8]) -> Vec<u8> {
        let mut segment = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        segment.extend_from_slice(&self.number.to_be_bytes());
        segment.extend_from_slice(&self.arrived.to_be_bytes());
        segment.extend_from_slice(&[((TCP_HEADER / 4) << 4) as u8, FIN_AND_ACK]);
        segment.extend_from_slice(&self.window.to_be_bytes());
        segment.extend_from_slice(&[0; 4]);
        // RFC 9293, 3.1: over the addresses, the protocol and the length too.
        let pseudo = [addresses, &[0, TCP, 0, TCP_HEADER as u8]].concat();
        let checksum = checksum([&pseudo[..], &segment[..]]);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        segment
    }
}

/// The complement of the sum of 16-bit words (RFC 1071), of which each part has a whole number.
fn checksum(parts: [&[u8]; 2]) -> u16 {
    let words = parts.into_iter().flat_map(|p| p.chunks_exact(2));
    let mut sum: u32 = words.map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // Its example: 0001 f203 f4f5 f6f7 add up to ddf2.
        assert_eq!(checksum([&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn whoever_checks_the_checksum_gets_zero() {
        let end = End {
            from: "192.0.2.1:80".parse().unwrap(),
            to: "192.0.2.2:4711".parse().unwrap(),
            number: 0x1234_5678,
            arrived: 0x9abc_def0,
            window: 512,
        };
        let addresses = [192, 0, 2, 1, 192, 0, 2, 2];
        let pseudo = [&addresses[..], &[0, TCP, 0, TCP_HEADER as u8]].concat();
        assert_eq!(checksum([&pseudo, &end.segment(&addresses)]), 0);
    }
}
