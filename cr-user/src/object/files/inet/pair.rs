//! Both ends of a connection within the job.
//!
//! They are made under repair, with what both had agreed on when they connected, and then get what was on its way by sending it
//! again. Without the right to repair they connect, and agree anew: on much the same.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::{IPPROTO_TCP, SOL_SOCKET};
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockaddrStorage, connect, getpeername, shutdown};

use super::repair::{self, Numbers};
use super::restore::{new, wait_for};
use super::{Connection, Inet, State, end_of, options, phase, queue};
use crate::error::Result;
use crate::sys::fd::readable_bytes;
use crate::sys::socket::{accept, listen};
use crate::sys::tcp::REPAIR_OFF;

/// Makes both ends, with all that was queued, closed for sending where they were.
pub(super) fn make(client: &Inet, server: &Inet) -> Result<(OwnedFd, OwnedFd)> {
    let both = client.connection().zip(server.connection());
    let (one, two) = if let Some((from, to)) = both.filter(|_| repair::is_allowed()) {
        under_repair((client, from), (server, to))?
    } else {
        let (one, two) = by_connecting(client, server)?;
        fill_by_sending(&one, client, &two, server)?;
        (one, two)
    };
    send_again(&one, client, &two, server)?;
    Ok((one, two))
}

fn under_repair(
    (client, from): (&Inet, &Connection),
    (server, to): (&Inet, &Connection),
) -> Result<(OwnedFd, OwnedFd)> {
    let random = || RandomState::new().hash_one(0) as u32;
    let (up, down) = (random(), random());
    let numbers = |connection: &Connection, sent: u32, received: u32| Numbers {
        // All that has not arrived is sent again afterwards.
        sent_up_to: sent.wrapping_add(connection.sent.len() as u32),
        unsent: connection.sent.len() as u32,
        received_up_to: received,
        ..connection.numbers.unwrap_or_default().at(received)
    };
    let one = repair::make(client, from, &numbers(from, up, down))?;
    let two = repair::make(server, to, &numbers(to, down, up))?;
    for (socket, fd) in [(client, &one), (server, &two)] {
        // Repair takes it away that others may have the same address.
        options::set_int(fd.as_fd(), IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_OFF)
            .and_then(|()| options::set_int(fd.as_fd(), SOL_SOCKET, libc::SO_REUSEADDR, 1))
            .map_err(|e| socket.failed(e))?;
    }
    Ok((one, two))
}

fn by_connecting(client: &Inet, server: &Inet) -> Result<(OwnedFd, OwnedFd)> {
    let listener = new(server)?;
    server.bind(&listener, true)?;
    listen(&listener, 16).map_err(|e| server.failed(e))?;
    let one = new(client)?;
    client.bind(&one, true)?;
    let State::Connected(connection) = &client.state else { return Err(client.failed(Errno::ENOTCONN)) };
    connect(one.as_raw_fd(), &SockaddrStorage::from(connection.remote)).map_err(|e| client.failed(e))?;
    if !client.is_at_its_address(&one) {
        return Err(client.failed(Errno::EADDRNOTAVAIL));
    }
    loop {
        let two = accept(listener.as_fd()).map_err(|e| server.failed(e))?;
        // Others may try the address too: to them nobody is there yet.
        let from = getpeername::<SockaddrStorage>(two.as_raw_fd()).ok().and_then(|a| super::capture::address(&a));
        if from.map(end_of) == Some(end_of(client.local)) {
            return Ok((one, two));
        }
    }
}

/// Puts back what had arrived.
fn fill_by_sending(one: &OwnedFd, first: &Inet, two: &OwnedFd, second: &Inet) -> Result<()> {
    let ways = [(one, first, two, second), (two, second, one, first)];
    for (from, sender, to, receiver) in ways {
        let Some(connection) = receiver.connection() else { continue };
        options::make_room(from.as_fd()).map_err(|e| sender.failed(e))?;
        if !connection.received.is_empty() {
            options::make_room(to.as_fd()).map_err(|e| receiver.failed(e))?;
            sender.send(from.as_fd(), &connection.received)?;
            let all = connection.received.len();
            wait_for(receiver, || readable_bytes(to.as_fd()).map(|n| n >= all))?;
        }
    }
    Ok(())
}

/// Sends again what had not arrived, and closes what was closed for sending.
fn send_again(one: &OwnedFd, first: &Inet, two: &OwnedFd, second: &Inet) -> Result<()> {
    let ways = [(one, first, two, second), (two, second, one, first)];
    for (from, sender, to, receiver) in ways {
        let Some(connection) = sender.connection() else { continue };
        // What had no room there has none again.
        options::set_receive_size(to.as_fd(), &receiver.options)?;
        sender.send(from.as_fd(), &connection.sent)?;
        if phase::is_ended(connection.phase) {
            shutdown(from.as_raw_fd(), Shutdown::Write).map_err(|e| sender.failed(e))?;
            if receiver.connection().is_some_and(|c| phase::has_heard_end(c.phase)) {
                wait_for(receiver, || Ok(phase::has_heard_end(queue::phase_of(to.as_fd()))))?;
            }
        }
    }
    Ok(())
}
