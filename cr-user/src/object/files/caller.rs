//! The terminal that a job shares with whoever started it: the settings that it has while the job is in the foreground, and the
//! group that is there. A restore lends the job the terminal that `cr restore` was called from: gives it these settings and
//! puts that group into the foreground, and takes both back when the job stops or ends.
//!
//! Only a restore that is itself in the foreground can lend what it has. A job whose root led the session of its terminal comes
//! back without one, since a terminal controls one session only, and ours is the caller's.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgrp, isatty};

use super::survey::{self, Group};
use super::{Description, Files, Holder};
use crate::procfs;
use crate::sys::tty::{self, Number, Setting, Settings};

/// What the terminal of a job in the foreground is like.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// `termios(3)`.
    pub settings: Settings,
    /// The group in the foreground; 0 for the one that the job was started in.
    pub foreground: i32,
}

/// The record; none when the job is in the background, or has no such terminal.
pub(super) fn describe(holders: &[Holder<'_>], groups: &[Group], files: &Files) -> Option<Caller> {
    let pids: Vec<i32> = holders.iter().flat_map(|h| std::iter::once(h.pid).chain(h.sharers.iter().copied())).collect();
    // Fields of proc(5)'s `stat`, of which the first that is there is the third.
    let field = |stat: &[String], n: usize| stat.get(n - 3)?.parse::<i32>().ok();
    let group_of = |pid: i32| field(&procfs::stat(pid).ok()?, 5);
    let root = *pids.first()?;
    let stat = procfs::stat(root).ok()?;
    let (session, terminal, foreground) = (field(&stat, 6)?, field(&stat, 7)?, field(&stat, 8)?);
    if terminal == 0 || session == root || !pids.iter().any(|pid| group_of(*pid) == Some(foreground)) {
        return None;
    }
    let is_outside = |g: &&Group| {
        let index = files.description_of(g.first().pid, g.first().fd);
        index
            .is_some_and(|i| matches!(files.descriptions[i as usize], Description::Stdio(_) | Description::Terminal(_)))
    };
    let ours = groups.iter().filter(is_outside).find_map(|g| {
        let ours = survey::fetch(holders, g.first().pid, g.first().fd).ok()?;
        (tty::number(ours.as_fd(), Number::Device) == Ok(terminal)).then_some(ours)
    })?;
    let foreground = if pids.contains(&foreground) { foreground } else { 0 };
    Some(Caller { settings: tty::settings(ours.as_fd()).ok()?, foreground })
}

/// A terminal of ours that a job has. Dropping it takes it back.
#[derive(Debug)]
pub struct Lent {
    terminal: OwnedFd,
    caller: Caller,
    /// As it was before.
    before: Settings,
    given: bool,
}

impl Caller {
    /// Lends the job our terminal, if we are in its foreground.
    pub fn lend(self) -> Option<Lent> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let all = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let terminal = all.into_iter().find(|fd| isatty(fd) == Ok(true))?.try_clone_to_owned().ok()?;
        let before = tty::settings(terminal.as_fd()).ok()?;
        let mut lent = Lent { terminal, caller: self, before, given: false };
        lent.give();
        lent.given.then_some(lent)
    }
}

impl Lent {
    /// Whether the job has it now.
    pub fn is_given(&self) -> bool {
        self.given
    }

    /// Gives it to the job, if we are in the foreground, and lets those who are there then go on. Signals that tell a background
    /// process to leave a terminal alone must be blocked.
    pub fn give(&mut self) {
        let own = getpgrp().as_raw();
        if self.given || own == 0 || tty::number(self.terminal.as_fd(), Number::Foreground) != Ok(own) {
            return;
        }
        self.before = tty::settings(self.terminal.as_fd()).unwrap_or(self.before);
        // The line is the caller's.
        let Settings { control, line, speeds, .. } = self.before;
        let settings = Settings { control, line, speeds, ..self.caller.settings };
        self.set(&settings, self.caller.foreground);
        self.given = true;
    }

    /// Has the group in the foreground go on.
    pub fn resume(&self) {
        if self.caller.foreground != 0 {
            let _ = killpg(Pid::from_raw(self.caller.foreground), Signal::SIGCONT);
        }
    }

    /// Takes it back, with the settings that the job gives it by now.
    pub fn take_back(&mut self) {
        if std::mem::take(&mut self.given) {
            self.caller.settings = tty::settings(self.terminal.as_fd()).unwrap_or(self.caller.settings);
            self.set(&self.before, getpgrp().as_raw());
        }
    }

    fn set(&self, settings: &Settings, foreground: i32) {
        let fd = self.terminal.as_fd();
        let group = if foreground == 0 { Ok(()) } else { tty::set_number(fd, Setting::Foreground, foreground) };
        // It may be gone, and the job too.
        if let Err(e) = tty::set_settings(fd, settings).and(group) {
            log::info!("the terminal cannot be handed over: {e}");
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.take_back();
    }
}
