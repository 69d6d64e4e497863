//! Standard input, output and error that come from outside the job: a terminal, or a pipe or socket whose other end
//! somebody else holds. A restore gives the job what `cr restore` itself has under that number.
//!
//! What was typed or sent but not yet read is not part of the job. A pipe or socket that holds unread input is refused,
//! since that input would be lost; a terminal's is not, since nobody expects it back.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag};
use nix::unistd::isatty;

use super::survey::{Group, Seen};
use super::{No, open_again, own_link};
use crate::error::{Error, Result};
use crate::sys::fd;

/// One of the three standard descriptors.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Stdio {
    /// 0, 1 or 2: `cr restore`'s descriptor to take.
    pub number: i32,
    /// Access mode and status flags (`O_*`). Of these a restore sets `O_NONBLOCK`, where that does not disturb others.
    pub flags: i32,
}

/// Whether a descriptor is one of the three.
pub(super) fn is_standard(fd: i32) -> bool {
    (0..=2).contains(&fd)
}

/// The standard descriptor that stands for something which several descriptors may refer to: one of those that do.
pub(super) fn standing_for(refers: impl Fn(i32) -> bool, writable: bool) -> Option<i32> {
    let order: &[i32] = if writable { &[1, 2, 0] } else { &[0, 1, 2] };
    order.iter().copied().find(|n| refers(*n))
}

/// Takes a description apart: the standard descriptors go by their own numbers, since at restore they may be three
/// different things, and what else refers to the description goes with `number`.
pub(super) fn split(group: &Group, number: i32) -> Vec<(Stdio, Vec<&Seen>)> {
    let mut parts: Vec<(Stdio, Vec<&Seen>)> = Vec::new();
    for seen in &group.members {
        let number = if is_standard(seen.fd) { seen.fd } else { number };
        match parts.iter_mut().find(|(s, _)| s.number == number) {
            Some((_, members)) => members.push(seen),
            None => parts.push((Stdio { number, flags: seen.flags }, vec![seen])),
        }
    }
    parts
}

/// Refuses input that would be lost.
pub(super) fn no_unread_input(fd: BorrowedFd<'_>, what: &str) -> std::result::Result<(), No> {
    match fd::readable_bytes(fd) {
        Ok(0) | Err(_) => Ok(()),
        Ok(n) => {
            let why =
                format!("is {what} from outside the job with {n} unread bytes, which a restore could not give back");
            Err(No::new(why, "wait until the job has read them, or start it with its input in a file"))
        }
    }
}

impl Stdio {
    /// Our own descriptor of that number, or a new description of the same thing where the job had `O_NONBLOCK` and we have
    /// not, or the other way round.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let failed = |e: nix::Error| Error::system(format!("duplicating descriptor {} of cr restore", self.number), e);
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let ours = match self.number {
            0 => stdin.as_fd(),
            1 => stdout.as_fd(),
            _ => stderr.as_fd(),
        };
        let now = nix::fcntl::fcntl(ours, FcntlArg::F_GETFL).map_err(failed)?;
        if (now ^ self.flags) & libc::O_NONBLOCK != 0 && (isatty(ours).unwrap_or(false) || is_pipe(ours)) {
            // The flag belongs to the description, which whoever called us has too: leave theirs alone.
            let flags = (now & !libc::O_NONBLOCK) | (self.flags & libc::O_NONBLOCK);
            if let Ok(own) = open_again(own_link(ours.as_raw_fd()).as_ref(), flags & !OFlag::O_DIRECT.bits()) {
                return Ok(own.into());
            }
        }
        fd::dup_above(ours, 0).map_err(failed)
    }
}

fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFIFO)
}
