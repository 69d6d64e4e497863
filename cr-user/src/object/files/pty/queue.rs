//! What is queued in a pair, and how it is put back.
//!
//! Input is written to the master again, while the terminal has settings by which each byte becomes what it was: the characters
//! that end lines do so, and nothing else means anything. That the kernel has dealt with it is seen by a stop and a start
//! character behind it, of which a master in packet mode is told.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::{No, pipe};
use crate::sys::fd::readable_bytes;
use crate::sys::tty::{self, Setting, Settings};
use crate::track::tty::TtyQueues;

/// What is queued.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Queues {
    /// Written to the terminal, and to be read from the master.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub output: Vec<u8>,
    /// What the terminal's line discipline holds.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub input: Vec<u8>,
    /// Which bytes of that end lines.
    pub ends: Vec<u32>,
    /// Written to the master, and not looked at yet for want of room.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub pending: Vec<u8>,
    /// Whether the terminal's output is stopped.
    pub stopped: Stopped,
}

/// Whether and how output is stopped.
#[derive(
    serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq,
)]
pub enum Stopped {
    /// It is not.
    #[default]
    No,
    /// By the stop character (Ctrl-S).
    ByCharacter,
    /// By `tcflow(3)`.
    ByCall,
}

/// As much as fits with room to spare: beyond it nothing behind the input would be looked at.
const ALMOST_FULL: usize = 4080;

/// As much waits for a line discipline at most, if it is written in small pieces. Other pieces may make room for more.
const MOST_WAITING: usize = 14_000;

/// What a master in packet mode is told (`asm-generic/ioctls.h`): output was stopped, or started.
const STOP: u8 = 4;
const START: u8 = 8;

const PATIENCE: Duration = Duration::from_secs(5);

impl Queues {
    /// From what the kernel holds, or why it cannot be put back. `opened`: the terminal was open at some time.
    pub(super) fn of(told: &TtyQueues, settings: &Settings, packets: bool, opened: bool) -> Result<Self, No> {
        const EXTPROC: u32 = 0o200_000;
        const WAIT: &str = "wait until the job has read it";
        let no = |why: &str, todo: &'static str| Err(No::new(why.to_owned(), todo));
        let canonical = settings.local & libc::ICANON != 0;
        if packets && told.packet != 0 {
            return no("with a change of state that has not been read (TIOCPKT)", WAIT);
        }
        if told.echoes != 0 && settings.local & (libc::ECHO | libc::ECHONL) != 0 {
            return no("with echoes for which there is no room yet", WAIT);
        }
        if told.stopped[1] {
            return no("whose own output is stopped (tcflow)", "have the job start it again");
        }
        if !told.input.is_empty() && settings.local & EXTPROC != 0 {
            return no("with input that another machine edits (EXTPROC)", WAIT);
        }
        if !told.output.is_empty() && !opened {
            return no("with echoes that have not been read, of a terminal that nobody opened yet", WAIT);
        }
        if told.output.len() - told.arrived > MOST_WAITING || told.pending.len() > MOST_WAITING {
            return no("with more unread bytes than are sure to fit again", WAIT);
        }
        let is_end = |at: usize| told.ends.contains(&at);
        let ends_lines = [b'\n', 0, settings.characters[libc::VEOL], settings.characters[libc::VEOL2]];
        let odd = |(at, byte): (usize, &u8)| {
            if is_end(at) { !ends_lines.contains(byte) } else { *byte == b'\n' }
        };
        if canonical && (told.input.len() > ALMOST_FULL || told.input.iter().enumerate().any(odd)) {
            return no("with lines that have not been read, and that typing them again would not give", WAIT);
        }
        let stopped = match (told.stopped[0], told.stopped_by_call) {
            (false, _) => Stopped::No,
            (true, true) => Stopped::ByCall,
            (true, false) => Stopped::ByCharacter,
        };
        let cannot_type = told.input.len() > ALMOST_FULL || settings.input & libc::IXON == 0;
        if stopped == Stopped::ByCharacter && cannot_type {
            return no("whose output is stopped (Ctrl-S)", "start it again (Ctrl-Q)");
        }
        Ok(Self {
            output: told.output.clone(),
            input: told.input.clone(),
            ends: if canonical { told.ends.iter().map(|n| *n as u32).collect() } else { Vec::new() },
            pending: told.pending.clone(),
            stopped,
        })
    }

    /// Fills a new pair, of which we have the master, which must not block. Its settings are to be set afterwards.
    pub(super) fn put(
        &self,
        master: &mut File,
        settings: &Settings,
        open: impl Fn() -> nix::Result<OwnedFd>,
    ) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        let bare = Settings {
            input: libc::IXON,
            output: settings.output & !libc::OPOST,
            local: settings.local & libc::ICANON,
            characters: [0; 19],
            ..*settings
        };
        tty::set_number(master.as_fd(), Setting::Packets, 1)?;
        for piece in self.pieces() {
            self.put_piece(master, piece, &bare, &open)?;
        }
        if !self.output.is_empty() {
            tty::set_settings(master.as_fd(), &Settings { input: 0, ..bare })?;
            write_all(&mut File::from(open()?), &self.output)?;
        }
        match self.stopped {
            Stopped::No => {}
            Stopped::ByCall => tty::stop_output(open()?.as_fd())?,
            Stopped::ByCharacter => {
                let mut characters = bare.characters;
                characters[libc::VSTOP] = 1;
                tty::set_settings(master.as_fd(), &Settings { characters, ..bare })?;
                write_all(master, &[1])?;
                wait_told(master, STOP)?;
            }
        }
        // What it has to tell of all that is forgotten with the mode.
        Ok(tty::set_number(master.as_fd(), Setting::Packets, 0)?)
    }

    /// What nobody had looked at is looked at under the settings that hold then.
    pub(super) fn put_pending(&self, master: &mut File) -> io::Result<()> {
        write_all(master, &self.pending)
    }

    /// Input in pieces in which a byte ends lines always or never, and that leave bytes over for other meanings.
    fn pieces(&self) -> Vec<std::ops::Range<usize>> {
        const MOST: usize = 200;
        let mut pieces = Vec::new();
        let (mut start, mut plain, mut end) = (0, [false; 256], None);
        for (at, byte) in self.input.iter().enumerate() {
            let ends = self.ends.contains(&(at as u32)) && !matches!(*byte, 0 | b'\n');
            let clash =
                if ends { plain[*byte as usize] || end.is_some_and(|e| e != *byte) } else { end == Some(*byte) };
            if clash || at - start == MOST {
                pieces.push(start..at);
                (start, plain, end) = (at, [false; 256], None);
            }
            if ends {
                end = Some(*byte);
            } else {
                plain[*byte as usize] = true;
            }
        }
        pieces.push(start..self.input.len());
        pieces.retain(|p| !p.is_empty());
        pieces
    }

    fn put_piece(
        &self,
        master: &mut File,
        piece: std::ops::Range<usize>,
        bare: &Settings,
        open: impl Fn() -> nix::Result<OwnedFd>,
    ) -> io::Result<()> {
        let is_end = |at: usize| self.ends.contains(&(at as u32));
        let bytes = &self.input[piece.clone()];
        let mut spare = (1..=255u8).filter(|b| *b != b'\n' && !bytes.contains(b));
        let mut next = || spare.next().expect("a piece has fewer bytes than there are");
        let (stop, start, end_of_file) = (next(), next(), next());
        let mut characters = bare.characters;
        characters[libc::VSTOP] = stop;
        characters[libc::VSTART] = start;
        characters[libc::VEOF] = end_of_file;
        // Without lines these two places are VMIN and VTIME.
        if bare.local & libc::ICANON == 0 {
            (characters[libc::VMIN], characters[libc::VTIME]) = (1, 0);
        }
        let end = piece.clone().find(|at| is_end(*at) && !matches!(self.input[*at], 0 | b'\n'));
        characters[libc::VEOL] = end.map_or(0, |at| self.input[at]);
        let typed: Vec<u8> = piece
            .clone()
            .map(|at| if is_end(at) && self.input[at] == 0 { end_of_file } else { self.input[at] })
            .collect();
        if piece.end > ALMOST_FULL {
            // No room to look at what comes behind: none of it means anything, and it can be counted.
            tty::set_settings(master.as_fd(), &Settings { input: 0, ..*bare })?;
            write_all(master, &typed)?;
            let terminal = open()?;
            return wait(|| Ok(readable_bytes(terminal.as_fd())? >= piece.end));
        }
        tty::set_settings(master.as_fd(), &Settings { characters, ..*bare })?;
        write_all(master, &typed)?;
        write_all(master, &[stop])?;
        wait_told(master, STOP)?;
        write_all(master, &[start])?;
        wait_told(master, START)
    }
}

/// Writes to one that does not block. There was room for as much before; in small pieces there is most.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    const PIECE: usize = 256;
    wait(|| {
        while !bytes.is_empty() {
            match to.write(&bytes[..bytes.len().min(PIECE)]) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    })
}

/// Waits until a master in packet mode is told of something.
fn wait_told(master: &mut File, what: u8) -> io::Result<()> {
    wait(|| {
        let mut polled = [PollFd::new(master.as_fd(), PollFlags::POLLPRI)];
        poll(&mut polled, PollTimeout::from(100u8))?;
        if !polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLPRI)) {
            return Ok(false);
        }
        let mut status = [0];
        Ok(master.read(&mut status)? == 1 && status[0] & what != 0)
    })
}

fn wait(mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let started = Instant::now();
    while !done()? {
        if started.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Whether the master blocks.
pub(super) fn set_blocking(master: &File, flags: i32) -> io::Result<()> {
    pipe::set_status(master.as_fd(), flags & pipe::SETTABLE)
}
