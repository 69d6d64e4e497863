//! What is queued in a pseudo-terminal: no system call tells it without taking it out. See `drivers/tty/n_tty.c` and
//! `drivers/tty/tty_buffer.c`.
//!
//! What is written to one end waits in a list of buffers until the line discipline of the other end has room for it; that one
//! keeps a ring of bytes, and for each byte whether it ends a line.

use super::btf::{Btf, BtfError};
use super::hints::HintsError;

/// Bytes of a line discipline's ring (`N_TTY_BUF_SIZE`).
const RING: u64 = 4096;

/// The queues of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TtyQueues {
    /// What the master would read.
    pub output: Vec<u8>,
    /// How much of that its line discipline holds; the rest waits.
    pub arrived: usize,
    /// What the line discipline of the terminal holds.
    pub input: Vec<u8>,
    /// Which bytes of that end lines.
    pub ends: Vec<usize>,
    /// What it has not looked at yet.
    pub pending: Vec<u8>,
    /// Echoes that are not written yet.
    pub echoes: u64,
    /// The terminal's output is stopped, and so is that of the master.
    pub stopped: [bool; 2],
    /// It was stopped by `tcflow(3)`.
    pub stopped_by_call: bool,
    /// What a master in packet mode is to be told.
    pub packet: u8,
}

impl TtyQueues {
    /// Whether something waits although there is room for it.
    pub fn is_on_its_way(&self) -> bool {
        const FULL: usize = RING as usize - 128;
        let waits = self.output.len() > self.arrived;
        waits && self.arrived < FULL || !self.pending.is_empty() && self.input.len() < FULL
    }
}

/// Where the fields are in this kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct TtyLayout {
    file_private: u64,
    private_tty: u64,
    link: u64,
    discipline: u64,
    port: u64,
    stopped: u64,
    stopped_by_call: u64,
    packet: u64,
    read_head: u64,
    read_tail: u64,
    read_ring: u64,
    read_ends: u64,
    echo_head: u64,
    echo_tail: u64,
    port_first: u64,
    buffer_next: u64,
    buffer_commit: u64,
    buffer_read: u64,
    buffer_data: u64,
}

impl TtyLayout {
    pub(super) fn of(kernel: &Btf) -> Result<Self, BtfError> {
        let at = |structure: &str, path: &str| kernel.offset(structure, path).map(u64::from);
        Ok(Self {
            file_private: at("file", "private_data")?,
            private_tty: at("tty_file_private", "tty")?,
            link: at("tty_struct", "link")?,
            discipline: at("tty_struct", "disc_data")?,
            port: at("tty_struct", "port")?,
            stopped: at("tty_struct", "flow.stopped")?,
            stopped_by_call: at("tty_struct", "flow.tco_stopped")?,
            packet: at("tty_struct", "ctrl.pktstatus")?,
            read_head: at("n_tty_data", "read_head")?,
            read_tail: at("n_tty_data", "read_tail")?,
            read_ring: at("n_tty_data", "read_buf")?,
            read_ends: at("n_tty_data", "read_flags")?,
            echo_head: at("n_tty_data", "echo_head")?,
            echo_tail: at("n_tty_data", "echo_tail")?,
            port_first: at("tty_port", "buf.head")?,
            buffer_next: at("tty_buffer", "next")?,
            buffer_commit: at("tty_buffer", "commit")?,
            buffer_read: at("tty_buffer", "read")?,
            buffer_data: at("tty_buffer", "data")?,
        })
    }
}

/// A look through pointers.
struct Eye<P> {
    layout: TtyLayout,
    peek: P,
}

/// The queues of the pair of which `file` (the kernel's address) is the master. Nobody may read or write meanwhile.
pub(super) fn queues(
    file: u64,
    layout: TtyLayout,
    peek: impl FnMut(&[u64]) -> Result<Vec<u64>, HintsError>,
) -> Result<TtyQueues, HintsError> {
    let mut eye = Eye { layout, peek };
    let private = eye.word(file + layout.file_private)?;
    let master = eye.word(private + layout.private_tty)?;
    let terminal = eye.word(master + layout.link)?;
    if master == 0 || terminal == 0 {
        return Err(HintsError::Map { map: "PEEK", why: "a pseudo-terminal cannot be followed".into() });
    }
    let (mut output, _) = eye.ring(master)?;
    let arrived = output.len();
    output.extend(eye.waiting(master)?);
    let (input, ends) = eye.ring(terminal)?;
    let pending = eye.waiting(terminal)?;
    let discipline = eye.word(terminal + layout.discipline)?;
    let echoes = eye.word(discipline + layout.echo_head)?.wrapping_sub(eye.word(discipline + layout.echo_tail)?);
    let mut flag = |at: u64| eye.bytes(at, 1).map(|b| b[0]);
    Ok(TtyQueues {
        output,
        arrived,
        input,
        ends,
        pending,
        echoes,
        stopped: [flag(terminal + layout.stopped)? != 0, flag(master + layout.stopped)? != 0],
        stopped_by_call: flag(terminal + layout.stopped_by_call)? != 0,
        packet: flag(terminal + layout.packet)?,
    })
}

impl<P: FnMut(&[u64]) -> Result<Vec<u64>, HintsError>> Eye<P> {
    fn word(&mut self, at: u64) -> Result<u64, HintsError> {
        Ok((self.peek)(&[at])?[0])
    }

    fn bytes(&mut self, at: u64, len: usize) -> Result<Vec<u8>, HintsError> {
        let (first, skip) = (at & !7, (at & 7) as usize);
        let words: Vec<u64> = (0..(skip + len).div_ceil(8)).map(|n| first + 8 * n as u64).collect();
        let bytes = (self.peek)(&words)?.into_iter().flat_map(u64::to_le_bytes);
        Ok(bytes.skip(skip).take(len).collect())
    }

    /// What the line discipline of an end holds, and which of the bytes end lines.
    fn ring(&mut self, tty: u64) -> Result<(Vec<u8>, Vec<usize>), HintsError> {
        let discipline = self.word(tty + self.layout.discipline)?;
        if discipline == 0 {
            return Ok(Default::default());
        }
        let (head, tail) =
            (self.word(discipline + self.layout.read_head)?, self.word(discipline + self.layout.read_tail)?);
        let len = head.wrapping_sub(tail).min(RING);
        if len == 0 {
            return Ok(Default::default());
        }
        let ring = self.bytes(discipline + self.layout.read_ring, RING as usize)?;
        let flags = self.bytes(discipline + self.layout.read_ends, RING as usize / 8)?;
        let places = (0..len).map(|n| (tail.wrapping_add(n) % RING) as usize);
        let ends = places.clone().enumerate().filter(|(_, at)| flags[at / 8] >> (at % 8) & 1 != 0).map(|(n, _)| n);
        Ok((places.clone().map(|at| ring[at]).collect(), ends.collect()))
    }

    /// What waits until the line discipline of an end has room.
    fn waiting(&mut self, tty: u64) -> Result<Vec<u8>, HintsError> {
        /// A list that does not end is none.
        const MOST: usize = 4096;
        let mut all = Vec::new();
        let port = self.word(tty + self.layout.port)?;
        let mut buffer = if port == 0 { 0 } else { self.word(port + self.layout.port_first)? };
        for _ in 0..MOST {
            if buffer == 0 {
                break;
            }
            let TtyLayout { buffer_next, buffer_commit, buffer_read, buffer_data, .. } = self.layout;
            let told = (self.peek)(&[buffer + buffer_next, buffer + buffer_commit, buffer + buffer_read])?;
            let (commit, read) = (told[1] & 0xffff_ffff, told[2] & 0xffff_ffff);
            all.extend(self.bytes(buffer + buffer_data + read, commit.saturating_sub(read) as usize)?);
            buffer = told[0];
        }
        Ok(all)
    }
}
