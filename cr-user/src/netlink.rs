//! Conversations with the kernel over `netlink(7)`: messages and their attributes out, answers in.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{SndBuf, SndBufForce};
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, getsockname, getsockopt, recv, send, setsockopt};

use crate::sys::socket::{set_option, socket};

/// `linux/netlink.h`: flags of messages.
pub const REQUEST: u16 = 0x1;
/// What came of it is to be said.
pub const ACKNOWLEDGE: u16 = 0x4;
/// Everything is to be shown.
pub const ALL: u16 = 0x300;

const INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const CAP_ACK: i32 = 10;

/// A netlink socket. Messages go to the network namespace in which it was made.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// A socket for conversations with one part of the kernel (`NETLINK_*`).
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` when the kernel has no such part.
    pub fn open(protocol: i32) -> io::Result<Self> {
        let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        // An error need not come with all of the message that it is about.
        set_option(socket.as_fd(), libc::SOL_NETLINK, CAP_ACK, &1i32.to_ne_bytes())?;
        Ok(Self(socket))
    }

    /// The number by which the kernel knows this socket: no other of the same namespace and protocol has it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn port(&self) -> io::Result<u32> {
        bind(self.0.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(getsockname::<NetlinkAddr>(self.0.as_raw_fd())?.pid())
    }

    /// Sends what was written. Answers to earlier messages that nobody took are gone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, messages: &Messages) -> io::Result<()> {
        let mut old = [0; HEADER];
        while recv(self.0.as_raw_fd(), &mut old, MsgFlags::MSG_DONTWAIT).is_ok() {}
        let len = messages.bytes.len();
        // They must fit as a whole, with what the kernel keeps beside them.
        if len > getsockopt(&self.0, SndBuf)? / 2 {
            setsockopt(&self.0, SndBufForce, &len)?;
        }
        send(self.0.as_raw_fd(), &messages.bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes every answer apart until the last one, and says whether others changed things meanwhile, so that there may be holes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn answers(&self, take: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        let mut buffer = vec![0; 1 << 16];
        let mut interrupted = false;
        loop {
            let n = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                n => n?,
            };
            let mut rest = &buffer[..n];
            while rest.len() >= HEADER {
                let (len, kind, flags) = (u32_at(rest, 0) as usize, u16_at(rest, 4), u16_at(rest, 6));
                if len < HEADER || len > rest.len() {
                    return Err(io::Error::other("the kernel's answer is cut short"));
                }
                interrupted |= flags & INTERRUPTED != 0;
                match kind {
                    DONE => return Ok(interrupted),
                    ERROR => match -(u32_at(rest, HEADER) as i32) {
                        0 => return Ok(interrupted),
                        error => return Err(io::Error::from_raw_os_error(error)),
                    },
                    _ => take(&rest[HEADER..len]),
                }
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// Everything that the kernel shows when it is asked so, as far as `parse` knows it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn show_all<T>(&self, question: &Messages, parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        const TRIES: usize = 10;
        let mut all = Vec::new();
        for _ in 0..TRIES {
            all.clear();
            self.send(question)?;
            let interrupted = self.answers(&mut |message| all.extend(parse(message)))?;
            if !interrupted {
                break;
            }
        }
        Ok(all)
    }
}

/// Messages that are being written.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// Where the last one begins.
    last: usize,
}

impl Messages {
    /// One message, for a start.
    pub fn one(kind: u16, flags: u16, body: impl FnOnce(&mut Self)) -> Self {
        let mut messages = Self::default();
        messages.message(kind, flags, body);
        messages
    }

    /// Another message, with what `body` puts into it.
    pub fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.last = at;
        self.bytes.extend_from_slice(&[0; HEADER]);
        self.bytes[at + 4..at + 6].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        body(self);
        let len = (self.bytes.len() - at) as u32;
        self.bytes[at..at + 4].copy_from_slice(&len.to_ne_bytes());
        self.align();
    }

    /// What comes of the last message is to be said.
    pub fn acknowledge_last(&mut self) {
        self.bytes[self.last + 6] |= ACKNOWLEDGE as u8;
    }

    /// Bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.any_attribute(kind, |out| out.put(value));
    }

    /// An attribute that is a number, as netfilter has them.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute that is a name: the kernel wants it to end in a zero.
    pub fn name(&mut self, kind: u16, value: &str) {
        self.any_attribute(kind, |out| {
            out.put(value.as_bytes());
            out.put(&[0]);
        });
    }

    /// An attribute that holds others.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        self.any_attribute(kind | NESTED, inside);
    }

    fn any_attribute(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        inside(self);
        let len = u16::try_from(self.bytes.len() - at).expect("less than 64 KiB in an attribute");
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in a part of an answer: kind and value of each.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0));
        let value = bytes.get(4..len)?;
        let kind = u16_at(bytes, 2) & !NESTED;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The 32-bit word there; 0 behind the end.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
}

/// The 16-bit word there; 0 behind the end.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_ne_bytes(b.try_into().expect("two bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut out = Messages::default();
        out.attribute(7, b"abcde");
        out.nest(3, |out| out.number(1, 0x0102_0304));
        let read: Vec<_> = attributes(&out.bytes).collect();
        assert_eq!(read, [(7, &b"abcde"[..]), (3, &[8, 0, 1, 0, 1, 2, 3, 4][..])]);
        assert_eq!(attributes(read[1].1).collect::<Vec<_>>(), [(1, &[1, 2, 3, 4][..])]);
        // Cut short, and too short to be one: nothing is read that is not there.
        for bad in [&out.bytes[..6], &[3, 0, 1, 0][..], &[0; 8][..], &[200, 0, 1, 0, 5, 5][..]] {
            assert_eq!(attributes(bad).count(), 0, "{bad:?}");
        }
    }

    #[test]
    fn messages_have_their_lengths() {
        let mut out = Messages::one(5, REQUEST, |out| out.put(b"x"));
        out.message(6, ALL, |_| ());
        let starts = [0, 20];
        let heads = starts.map(|at| (u32_at(&out.bytes, at), u16_at(&out.bytes, at + 4), u16_at(&out.bytes, at + 6)));
        assert_eq!(heads, [(17, 5, REQUEST), (16, 6, ALL)]);
        assert_eq!(out.bytes.len(), 36);
    }
}
