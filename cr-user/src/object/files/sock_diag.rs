//! Questions to `sock_diag(7)`, where the kernel shows the sockets of our network namespace: also those that no process has.

use std::io;

use crate::netlink::{ACKNOWLEDGE, ALL, Messages, Netlink, REQUEST};
pub(super) use crate::netlink::{u16_at, u32_at};

/// `linux/sock_diag.h`: show, and (since 4.5, if the kernel is built so) take away.
const SHOW: u16 = 20;
const DESTROY: u16 = 21;

/// All sockets that the kernel shows when it is asked so, as far as `parse` knows them.
///
/// # Errors
/// What the kernel says.
pub(super) fn show_all<T>(question: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let question = Messages::one(SHOW, REQUEST | ALL, |out| out.put(question));
    Netlink::open(libc::NETLINK_SOCK_DIAG)?.show_all(&question, parse)
}

/// Takes a socket away.
///
/// # Errors
/// What the kernel says.
pub(super) fn destroy(which: &[u8]) -> io::Result<()> {
    let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
    netlink.send(&Messages::one(DESTROY, REQUEST | ACKNOWLEDGE, |out| out.put(which)))?;
    netlink.answers(&mut |_| ()).map(drop)
}
