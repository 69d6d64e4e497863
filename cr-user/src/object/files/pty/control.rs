//! Who is controlled by a terminal of the job: sessions, groups in the foreground, and `/dev/tty`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use super::super::unix::Crew;
use super::super::{Description, Files, Opened};
use super::Pty;
use crate::error::Result;
use crate::remote::Call;

/// What the leaders of sessions run as soon as they lead them, and before they make the others, who inherit the terminal: by
/// pid.
pub fn controlling(files: &Files, opened: &Opened) -> HashMap<i32, Call> {
    let take = |pty: &Pty| {
        let session = pty.state.as_ref().map(|s| s.session).filter(|s| *s != 0)?;
        Some((session, ioctl(pty.terminal(files, opened)?, libc::TIOCSCTTY, 0)))
    };
    files.ptys.iter().filter_map(take).collect()
}

/// Puts the groups into the foreground, takes the terminal from those who are without, and opens `/dev/tty` for who had
/// it open: by index of the description. All groups must be there.
pub(in super::super) fn settle(files: &Files, opened: &Opened, crew: &mut dyn Crew) -> Result<Vec<(usize, OwnedFd)>> {
    let mut late = Vec::new();
    for (nth, pty) in files.ptys.iter().enumerate() {
        let Some(state) = pty.state.as_ref().filter(|s| s.session != 0) else { continue };
        let Some(terminal) = pty.terminal(files, opened) else { continue };
        let leader = state.session;
        for (index, description) in files.descriptions.iter().enumerate() {
            match description {
                Description::Pty(end) if end.pty as usize == nth && end.is_late() => {
                    let path = crew.data(leader)?;
                    let flags = (end.flags | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
                    let open = Call::new(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, flags, 0]);
                    let number = crew.run(leader, vec![open], b"/dev/tty\0", "opening /dev/tty")?[0];
                    late.push((index, crew.fetch(leader, number as i32)?));
                    crew.run(leader, vec![Call::new(libc::SYS_close, &[number])], &[], "closing /dev/tty")?;
                }
                _ => {}
            }
        }
        if state.foreground != 0 && state.foreground != leader {
            let group = crew.data(leader)?;
            let call = ioctl(terminal, libc::TIOCSPGRP, group);
            let what = format!("putting group {} into the foreground of {}", state.foreground, pty.path);
            crew.run(leader, vec![call], &state.foreground.to_le_bytes(), &what)?;
        }
        for pid in &state.without {
            let call = ioctl(terminal, libc::TIOCNOTTY, 0);
            crew.run(*pid, vec![call], &[], "leaving its session's terminal")?;
        }
    }
    Ok(late)
}

fn ioctl(fd: i32, request: u64, argument: u64) -> Call {
    Call::new(libc::SYS_ioctl, &[fd as u64, request, argument])
}
