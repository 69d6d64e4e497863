//! A terminal that is open as something else than standard input, output or error, such as `/dev/tty`. A restore opens the
//! terminal that `cr restore` was called from.

use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::unistd::isatty;

use super::survey::Seen;
use super::{not_here, open_again, own_link};
use crate::error::Result;

/// A terminal.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
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
