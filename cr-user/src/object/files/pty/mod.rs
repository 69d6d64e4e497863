//! Pseudo-terminals of the job (`pty(7)`): pairs of which the job has the master open, and ends whose master is closed.
//!
//! A pair comes back under its number, since the job knows the path: with its settings, its size, the session that it controls
//! and the group in the foreground. A process gets its controlling terminal by inheritance alone, so the leader of the
//! session takes the terminal before it makes the others (`control.rs`).
//!
//! What is queued is read by the eBPF programs, which take nothing out ([`queue`]). Without them a pair in which something is
//! queued is refused, but for a line that is not complete, which nothing else shows.
//!
//! What is not restored: the column from which the kernel counts tabs.

mod capture;
mod control;
pub mod queue;
mod restore;

use super::{Description, FilePath, Files, Opened};
use crate::sys::tty::{Settings, Size};

pub(super) use capture::Ptys;
pub use capture::{master, refuse_unread, set_queues};
pub use control::controlling;
pub(super) use control::settle;
pub(super) use restore::{check, open_all};

/// One pair.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    /// What is opened for a new pair, in most places `/dev/ptmx`.
    pub ptmx: FilePath,
    /// Where the other end is, `/dev/pts/N`.
    pub path: FilePath,
    /// The number in that path.
    pub number: u32,
    /// What it is like; nothing once the master was closed.
    pub state: Option<State>,
}

/// What a pair is like whose master is open.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `termios(3)`.
    pub settings: Settings,
    /// Rows and columns.
    pub size: Size,
    /// Nobody can open the other end yet (`unlockpt(3)`).
    pub locked: bool,
    /// The master reads packets (`TIOCPKT`).
    pub packets: bool,
    /// Nobody else may open the master, or the other end (`TIOCEXCL`).
    pub exclusive: [bool; 2],
    /// The other end was open once, and is not now: the master reads EIO.
    pub left: bool,
    /// Permissions of the path.
    pub mode: u32,
    /// Owner of the path.
    pub uid: u32,
    /// Group of the path.
    pub gid: u32,
    /// The session that it controls; 0 for none.
    pub session: i32,
    /// The group in the foreground; 0 for none.
    pub foreground: i32,
    /// Processes of that session that are without it all the same.
    pub without: Vec<i32>,
    /// What is queued.
    pub queues: queue::Queues,
}

/// One description of an end.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PtyEnd {
    /// Index of the pair in [`Files::ptys`].
    pub pty: u32,
    /// Which end.
    pub side: Side,
    /// It was hung up: nothing can be done with it any more.
    pub hung_up: bool,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// The ends of a pair.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that stands for the user.
    Master,
    /// The terminal.
    Terminal,
    /// The terminal, opened as `/dev/tty`.
    Controlling,
}

impl PtyEnd {
    /// Whether only a process of the session can open it.
    pub(super) fn is_late(&self) -> bool {
        self.side == Side::Controlling
    }
}

impl Pty {
    /// A number of ours for the terminal, or else for the master.
    fn terminal(&self, files: &Files, opened: &Opened) -> Option<i32> {
        let mut ends = files.descriptions.iter().enumerate().filter_map(|(index, d)| match d {
            Description::Pty(end) if !end.hung_up && files.ptys.get(end.pty as usize) == Some(self) => {
                Some((index, end))
            }
            _ => None,
        });
        ends.find(|(_, end)| end.side == Side::Terminal).map(|(index, _)| opened.number(index))
    }
}
