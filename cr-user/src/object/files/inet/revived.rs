//! Connections with somebody outside that were made again, until the job runs: nothing is sent, and nobody may send.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::{IPPROTO_TCP, SOL_SOCKET};
use nix::sys::socket::{Shutdown, shutdown};

use super::forge::End;
use super::repair::Numbers;
use super::{Connection, Inet, options, phase, queue, restore};
use crate::error::Result;
use crate::sys::fd::fcntl;
use crate::sys::tcp::REPAIR_OFF;

/// Sockets under repair, as the restored job has them too. Dropping this without [`Revived::go`], and the job with it, closes
/// them without a word to the other ends.
#[derive(Debug, Default)]
pub struct Revived {
    all: Vec<One>,
}

#[derive(Debug)]
struct One {
    fd: OwnedFd,
    socket: Inet,
    numbers: Numbers,
}

impl Revived {
    /// One more.
    pub(super) fn add(&mut self, fd: OwnedFd, socket: &Inet, numbers: Numbers) {
        self.all.push(One { fd, socket: socket.clone(), numbers });
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Both ends of each, ours first.
    pub fn flows(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.all.iter().filter_map(|one| Some((one.socket.local, one.socket.outside()?.remote))).collect()
    }

    /// Has them go on. What the other ends send must reach them by now.
    ///
    /// # Errors
    /// When one cannot: its other end will see that it is gone.
    pub fn go(self) -> Result<()> {
        self.all.iter().try_for_each(One::go)
    }
}

impl One {
    fn go(&self) -> Result<()> {
        let Some(connection) = self.socket.outside() else { return Ok(()) };
        let (fd, failed) = (self.fd.as_fd(), |e| self.socket.failed(e));
        let ended = phase::is_ended(connection.phase);
        if phase::has_heard_end(connection.phase) {
            self.end_of_other(connection).send().map_err(failed)?;
            let heard = |phase: u8| phase::has_heard_end(phase) || phase == phase::CLOSE;
            restore::wait_for(&self.socket, || Ok(heard(queue::phase_of(fd))))?;
        }
        // From the moment at which the silence ends, the other end may say that it is gone. The program shall hear of it, not we.
        let is_gone = || queue::phase_of(fd) == phase::CLOSE;
        if ended && !is_gone() && self.numbers.unsent == 0 {
            // It was sent. Should it not have arrived, it is sent again in time.
            queue::choose(fd, queue::SEND_QUEUE).map_err(failed)?;
            shutdown(fd.as_raw_fd(), Shutdown::Write).map_err(failed)?;
            queue::choose(fd, queue::NO_QUEUE).map_err(failed)?;
        }
        options::set_int(fd, IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_OFF).map_err(failed)?;
        if self.numbers.unsent > 0 && !is_gone() {
            match self.send_rest(connection, ended) {
                Err(e) if is_gone() => log::info!("{} ended at once: {e}", self.socket.what()),
                sent => sent?,
            }
        }
        // Repair takes that away.
        let reuse = self.socket.options.iter().filter(|o| (o.level, o.name) == (SOL_SOCKET, libc::SO_REUSEADDR));
        reuse
            .into_iter()
            .try_for_each(|o| crate::sys::socket::set_option(fd, o.level, o.name, &o.value))
            .map_err(failed)
    }

    /// What the program has sent, and was never given to the network.
    fn send_rest(&self, connection: &Connection, ended: bool) -> Result<()> {
        let (fd, failed) = (self.fd.as_fd(), |e| self.socket.failed(e));
        options::make_room(fd).map_err(failed)?;
        // All of it finds room: whether the socket waits makes no difference.
        let sent = connection.sent.len() - self.numbers.unsent as usize;
        self.socket.send(fd, &connection.sent[sent..])?;
        if ended {
            shutdown(fd.as_raw_fd(), Shutdown::Write).map_err(failed)?;
        }
        options::set(fd, &self.socket.options)?;
        fcntl(fd, libc::F_SETFL, (self.socket.flags & !libc::O_ASYNC).into()).map(drop).map_err(failed)
    }

    fn end_of_other(&self, connection: &Connection) -> End {
        End {
            from: connection.remote,
            to: self.socket.local,
            number: self.numbers.received_up_to,
            arrived: self.numbers.sent_up_to.wrapping_sub(connection.sent.len() as u32),
            window: self.numbers.window_of_other(),
        }
    }
}
