//! A place to show samples at: redrawn on a terminal, line after line in a pipe.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cr::error::Error;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::view::View;

/// Another screen, on which what was there before is kept; and an empty one, drawn from the upper left corner.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Why the wait has ended.
pub(super) enum Woken {
    /// It is time for the next sample.
    Time,
    /// The terminal has another size, or we have it again.
    Redraw,
    /// Somebody has had enough: end with this code.
    End(u8),
}

/// Where samples are shown.
pub(super) struct Screen {
    signals: SignalFd,
    /// It is a terminal that is redrawn.
    drawn: bool,
    /// When the wait under way ends.
    until: Option<Instant>,
}

impl Screen {
    /// Begins to show; `plain` without redrawing. Signals are waited for from now on.
    pub(super) fn open(plain: bool) -> cr::Result<Self> {
        let drawn = !plain && io::stdout().is_terminal();
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            set.add(signal);
        }
        if drawn {
            for signal in [Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT] {
                set.add(signal);
            }
        }
        let failed = |e: nix::Error| Error::system("waiting for signals", e);
        set.thread_block().map_err(failed)?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)?;
        let screen = Self { signals, drawn, until: None };
        if drawn {
            print(ENTER);
        }
        Ok(screen)
    }

    /// Waits so long, or until a signal comes. After a [`Woken::Redraw`] what was left of the time is waited for.
    pub(super) fn wait(&mut self, time: Duration) -> cr::Result<Woken> {
        let until = *self.until.get_or_insert_with(|| Instant::now() + time);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: not to wake a moment too early, again and again.
            let timeout =
                PollTimeout::try_from(left.as_millis() + u128::from(!left.is_zero())).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(e) => return Err(Error::system("waiting for signals", e)),
            }
            let signal = self.signals.read_signal().map_err(|e| Error::system("reading a signal", e))?;
            match signal.map(|signal| signal.ssi_signo as i32) {
                Some(libc::SIGWINCH | libc::SIGCONT) => return Ok(Woken::Redraw),
                Some(libc::SIGTSTP) => {
                    print(LEAVE);
                    let _ = raise(Signal::SIGSTOP);
                    print(ENTER);
                    return Ok(Woken::Redraw);
                }
                // The way to end what shows something for ever.
                Some(libc::SIGINT) => return Ok(Woken::End(0)),
                Some(number) => return Ok(Woken::End(128 + number as u8)),
                None if Instant::now() >= until => {
                    self.until = None;
                    return Ok(Woken::Time);
                }
                None => {}
            }
        }
    }

    /// Shows a sample. False: nobody reads any more.
    pub(super) fn show(&self, view: &View) -> bool {
        if !self.drawn {
            return self.line(&view.line());
        }
        let (columns, rows) = size();
        let lines = view.screen(columns);
        // The last row stays free, so that nothing scrolls.
        let shown = &lines[..lines.len().min(rows.saturating_sub(1))];
        print(&format!("{CLEAR}{}", shown.join("\r\n")))
    }

    /// A line of its own. False: nobody reads any more.
    #[expect(clippy::unused_self, reason = "lines go where the screen is")]
    pub(super) fn line(&self, text: &str) -> bool {
        print(&format!("{text}\n"))
    }

    /// Gives the terminal back as it was, with the last sample on it.
    pub(super) fn close(&mut self, last: Option<&View>) {
        if std::mem::take(&mut self.drawn) {
            print(LEAVE);
            let (columns, _) = size();
            if let Some(view) = last {
                self.line(&view.screen(columns).join("\n"));
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close(None);
    }
}

/// Writes at once. False: nobody reads any more.
fn print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let [rows, columns, ..] = cr::sys::tty::size(io::stdout().as_fd()).unwrap_or_default();
    let or = |size: u16, usual: usize| if size == 0 { usual } else { size.into() };
    (or(columns, 80), or(rows, 24))
}
