//! Making pairs anew, under their old numbers.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use nix::sys::stat::makedev;

use super::super::{Description, Files, not_here, open_again, own_link};
use super::queue::set_blocking;
use super::{Pty, PtyEnd, Side, State};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::tty::{self, Number, Setting};

/// `UNIX98_PTY_SLAVE_MAJOR` of `linux/major.h`: the device number of the terminal of a pair has the pair's number besides.
const TERMINAL_MAJOR: u64 = 136;

/// Whether every number is free.
pub(in super::super) fn check(files: &Files) -> Result<()> {
    let mut numbers = Numbers::default();
    ascending(files).into_iter().try_for_each(|(_, pty)| numbers.make(pty, libc::O_RDWR).map(drop))
}

/// Every description of a pair that we can open, by index.
pub(in super::super) fn open_all(files: &Files) -> Result<HashMap<usize, OwnedFd>> {
    let (mut all, mut numbers) = (HashMap::new(), Numbers::default());
    for (nth, pty) in ascending(files) {
        let ends = files.descriptions.iter().enumerate().filter_map(|(index, d)| match d {
            Description::Pty(end) if end.pty as usize == nth && !end.is_late() => Some((index, end)),
            _ => None,
        });
        all.extend(pty.restore(&ends.collect::<Vec<_>>(), &mut numbers)?);
    }
    Ok(all)
}

/// All pairs, those with the lowest numbers first.
fn ascending(files: &Files) -> Vec<(usize, &Pty)> {
    let mut all: Vec<(usize, &Pty)> = files.ptys.iter().enumerate().collect();
    all.sort_by_key(|(_, pty)| pty.number);
    all
}

/// Numbers of pairs. The kernel gives the lowest that is free, so those below are taken meanwhile.
#[derive(Default)]
struct Numbers {
    below: Vec<File>,
}

impl Numbers {
    /// A new pair with its number. Whoever asks for several begins with the lowest.
    fn make(&mut self, pty: &Pty, flags: i32) -> Result<File> {
        loop {
            let master = open_again(pty.ptmx.as_path(), flags).map_err(|e| {
                let why = format!("{} cannot be opened ({e})", pty.ptmx);
                pty.not_here(why, "restore where /dev has pseudo-terminals, and enough of them are free")
            })?;
            let number = tty::number(master.as_fd(), Number::Pair).map_err(|e| pty.failed("its number", e.into()))?;
            match number.cast_unsigned() {
                n if n == pty.number => return Ok(master),
                n if n < pty.number => self.below.push(master),
                _ => return Err(pty.is_taken()),
            }
        }
    }
}

impl Pty {
    fn is_taken(&self) -> Error {
        let number = format!("tty-index:\t{}\n", self.number);
        let is_end = |pid: i32, fd: i32| {
            let Ok(link) = procfs::link(pid, &format!("fd/{fd}")) else { return false };
            let info = || procfs::text(&format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            link == self.path.as_path() || link == self.ptmx.as_path() && info().contains(&number)
        };
        let ours = std::process::id() as i32;
        let holder = procfs::processes().filter(|pid| *pid != ours).find_map(|pid| {
            let mut all = procfs::descriptors(pid).unwrap_or_default().into_iter();
            all.any(|fd| is_end(pid, fd)).then(|| procfs::who(pid))
        });
        let holder = holder.unwrap_or_else(|| "another process".to_owned());
        let why = format!("that number is in use by {holder}, and the job knows it");
        self.not_here(why, "end that process, or restore where the number is free")
    }

    /// Makes the pair and all of its descriptions: `ends`, with their indices.
    fn restore(&self, ends: &[(usize, &PtyEnd)], numbers: &mut Numbers) -> Result<Vec<(usize, OwnedFd)>> {
        let ours = ends.iter().find(|(_, e)| e.side == Side::Master);
        let flags = ours.map_or(libc::O_RDWR, |(_, e)| e.flags);
        let mut master = numbers.make(self, flags | libc::O_NONBLOCK)?;
        tty::set_number(master.as_fd(), Setting::Locked, 0).map_err(|e| self.failed("unlocking it", e.into()))?;
        let opener = master.try_clone().map_err(|e| self.failed("its master", e))?;
        let peer = |flags: i32| tty::open_peer(opener.as_fd(), flags).map_err(|e| self.failed("opening it", e.into()));
        let terminals =
            |hung_up: bool| ends.iter().filter(move |(_, e)| e.side == Side::Terminal && e.hung_up == hung_up);
        let mut all = Vec::new();
        for (index, end) in terminals(true) {
            all.push((*index, peer(end.flags)?));
        }
        let Some(state) = &self.state else {
            // With the master it dies.
            return Ok(all);
        };
        if let Some((_, dead)) = all.first() {
            tty::hang_up(dead.as_fd()).map_err(|e| self.failed("hanging it up", e.into()))?;
        }
        for (index, end) in terminals(false) {
            all.push((*index, peer(end.flags)?));
        }
        if state.left {
            drop(peer(libc::O_RDWR)?);
        }
        let live = terminals(false).next().and_then(|(index, _)| all.iter().find(|(i, _)| i == index));
        state.put(self, &mut master, live.map(|(_, fd)| fd))?;
        set_blocking(&master, flags).map_err(|e| self.failed("its flags", e))?;
        all.extend(ours.map(|(index, _)| (*index, master.into())));
        Ok(all)
    }

    fn failed(&self, what: &str, e: io::Error) -> Error {
        Error::system(format!("restoring the terminal {}: {what}", self.path), e)
    }

    fn not_here(&self, why: String, todo: &str) -> Error {
        not_here(format!("the terminal {}", self.path), why, todo)
    }
}

impl State {
    fn put(&self, pty: &Pty, master: &mut File, terminal: Option<&OwnedFd>) -> Result<()> {
        let mut put = || -> io::Result<()> {
            let again = master.try_clone()?;
            let open = || tty::open_peer(again.as_fd(), libc::O_RDWR | libc::O_NONBLOCK);
            self.queues.put(master, &self.settings, open)?;
            tty::set_settings(master.as_fd(), &self.settings)?;
            self.queues.put_pending(master)?;
            // Nobody is in the foreground to be told.
            tty::set_size(master.as_fd(), self.size)?;
            if self.exclusive[0] {
                tty::make_exclusive(master.as_fd())?;
            }
            if let Some(terminal) = terminal.filter(|_| self.exclusive[1]) {
                tty::make_exclusive(terminal.as_fd())?;
            }
            let held = open_again(pty.path.as_path(), libc::O_PATH | libc::O_NOFOLLOW)?;
            let (now, path) = (held.metadata()?, own_link(held.as_raw_fd()));
            // An image that somebody made up must not have us give another file away.
            if !now.file_type().is_char_device() || now.rdev() != makedev(TERMINAL_MAJOR, pty.number.into()) {
                return Err(io::Error::other(format!(
                    "{} is not the terminal with the number {}",
                    pty.path, pty.number
                )));
            }
            if (now.uid(), now.gid()) != (self.uid, self.gid) {
                std::os::unix::fs::chown(&path, Some(self.uid), Some(self.gid))?;
            }
            if now.mode() & 0o7777 != self.mode {
                fs::set_permissions(&path, Permissions::from_mode(self.mode))?;
            }
            tty::set_number(master.as_fd(), Setting::Locked, self.locked.into())?;
            // Last, since it reports changes.
            Ok(tty::set_number(master.as_fd(), Setting::Packets, self.packets.into())?)
        };
        put().map_err(|e| pty.failed("its settings", e))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::FilePath;
    use super::super::queue::Queues;
    use super::*;

    /// Whatever path an image names, the file there is not given away unless it is the terminal of the pair.
    #[test]
    fn only_the_terminal_itself_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut master = open_again("/dev/ptmx".as_ref(), libc::O_RDWR | libc::O_NONBLOCK).unwrap();
        tty::set_number(master.as_fd(), Setting::Locked, 0).unwrap();
        let number = tty::number(master.as_fd(), Number::Pair).unwrap().cast_unsigned();
        let terminal = format!("/dev/pts/{number}");
        let before = fs::metadata(&terminal).unwrap();
        let state = State {
            settings: tty::settings(master.as_fd()).unwrap(),
            size: tty::size(master.as_fd()).unwrap(),
            locked: false,
            packets: false,
            exclusive: [false; 2],
            left: false,
            mode: 0o604,
            uid: before.uid(),
            gid: before.gid(),
            session: 0,
            foreground: 0,
            without: Vec::new(),
            queues: Queues::default(),
        };
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "somebody's").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&terminal, &link).unwrap();
        let mut put = |path: &std::path::Path| {
            let pty = Pty { ptmx: FilePath(b"/dev/ptmx".to_vec()), path: FilePath::from(path), number, state: None };
            state.put(&pty, &mut master, None)
        };
        for path in [file.as_path(), &link, "/dev/null".as_ref()] {
            let said = put(path).unwrap_err().to_string();
            assert!(said.contains("is not the terminal with the number"), "{said}");
        }
        put(terminal.as_ref()).unwrap();
        assert_eq!(fs::metadata(&terminal).unwrap().mode() & 0o7777, 0o604);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    }
}
