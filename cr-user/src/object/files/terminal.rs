//! A terminal that is open as something else than standard input, output or error, such as `/dev/tty`. A restore opens the
//! terminal that `cr restore` was called from. Its settings (`termios(3)`) are not put back.

use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::isatty;

use super::survey::Seen;
use super::{not_here, open_again, own_link};
use crate::error::Result;

/// A terminal.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
}

/// Whether the descriptor is the master of a pseudo-terminal, which answers as a terminal too: `/dev/ptmx`, 5:2
/// (`Documentation/admin-guide/devices.txt`).
pub(super) fn is_master(seen: &Seen) -> bool {
    (libc::major(seen.meta.rdev()), libc::minor(seen.meta.rdev())) == (5, 2)
}

/// The record.
pub(super) fn describe(seen: &Seen) -> Terminal {
    Terminal { flags: seen.flags }
}

impl Terminal {
    /// Opens our terminal: what of 0, 1 and 2 is one, or the controlling terminal.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let standard = [isatty(stdin().as_fd()), isatty(stdout().as_fd()), isatty(stderr().as_fd())];
        let ours = standard.iter().position(|tty| *tty == Ok(true));
        let path = ours.map_or(PathBuf::from("/dev/tty"), |n| own_link(n as i32).into());
        open_again(&path, self.flags).map(Into::into).map_err(|e| {
            let why = format!("cr restore has no terminal to give it ({}: {e})", path.display());
            not_here(
                "a terminal that the job had open".to_owned(),
                why,
                "call cr restore from a terminal, or under script(1)",
            )
        })
    }
}
