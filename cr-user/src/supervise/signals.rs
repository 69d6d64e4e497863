//! Signals of the controller, and which of them the job must get from it.
//!
//! They are blocked in every thread and read from a descriptor, which says who sent each of them. Those that the terminal
//! sent went to its whole foreground process group: a job in our group has them already.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::sys::process;

/// Signals that tell of a fault of the thread they hit: to block them would hide it.
const FAULTS: [Signal; 8] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGSYS,
    Signal::SIGABRT,
    Signal::SIGPIPE,
];

/// Blocks what [`Signals`] reads, and gives back the mask that was in force. Every thread must have them blocked: those that
/// are started afterwards inherit this.
///
/// # Errors
/// None that is known.
pub(super) fn block() -> Result<SigSet> {
    let mut old = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&handled()), Some(&mut old))
        .map_err(|e| Error::system("blocking signals", e))?;
    Ok(old)
}

fn handled() -> SigSet {
    let mut set = SigSet::all();
    for fault in FAULTS {
        set.remove(fault);
    }
    // Every stop of a traced thread would wake us: that a child has ended is seen in other ways.
    set.remove(Signal::SIGCHLD);
    set
}

/// A signal that was sent to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Its number.
    pub(super) number: i32,
    /// The kernel sent it (for the terminal, most often), and not a process.
    pub(super) from_kernel: bool,
    /// We sent it to ourselves.
    pub(super) from_self: bool,
}

/// What a received signal asks for, besides being passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// To stop, as the shell expects of its foreground job.
    Stop,
    /// To end.
    End,
    /// Nothing to the controller itself.
    Nothing,
}

impl Received {
    pub(super) fn meaning(self) -> Meaning {
        match self.number {
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Meaning::Stop,
            libc::SIGINT | libc::SIGTERM | libc::SIGQUIT | libc::SIGHUP => Meaning::End,
            _ => Meaning::Nothing,
        }
    }

    /// The error to end with because of it, `when` completing "stopped by SIGINT …".
    pub(super) fn as_error(self, when: &str) -> Error {
        let name = Signal::try_from(self.number).map_or("a signal", Signal::as_str);
        Error::Controller { code: 128 + self.number as u8, message: format!("stopped by {name} {when}") }
    }

    /// Whether the job `pid` must be sent it.
    pub(super) fn is_for_job(self, pid: i32) -> bool {
        let in_our_group = getpgid(Some(Pid::from_raw(pid))) == Ok(getpgrp());
        let leads_session = getsid(None) == Ok(getpid());
        self.must_be_passed_on(in_our_group, leads_session)
    }

    fn must_be_passed_on(self, in_our_group: bool, leads_session: bool) -> bool {
        if self.from_self {
            return false;
        }
        if !self.from_kernel {
            return true;
        }
        match self.number {
            libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP | libc::SIGWINCH => !in_our_group,
            // When the terminal goes, its session leader alone is told first.
            libc::SIGHUP | libc::SIGCONT => !in_our_group || leads_session,
            // About ourselves: our CPU time, our reading from the terminal.
            _ => false,
        }
    }
}

/// Where blocked signals arrive.
#[derive(Debug)]
pub(super) struct Signals(AsyncFd<SignalFd>);

impl Signals {
    /// Must be called inside the runtime, after [`block`].
    ///
    /// # Errors
    /// When the kernel makes no descriptor.
    pub(super) fn new() -> Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let watched = SignalFd::with_flags(&handled(), flags).map_err(io::Error::from).and_then(process::watch_signals);
        watched.map(Self).map_err(|e| Error::system("signalfd", e))
    }

    /// The next signal. Nothing is lost when this is dropped before it is ready.
    pub(super) async fn next(&self) -> io::Result<Received> {
        self.0
            .async_io(tokio::io::Interest::READABLE, |fd| {
                let info = fd.read_signal()?.ok_or(io::ErrorKind::WouldBlock)?;
                Ok(Received {
                    number: info.ssi_signo as i32,
                    from_kernel: info.ssi_code == libc::SI_KERNEL,
                    from_self: info.ssi_code <= libc::SI_USER && info.ssi_pid == std::process::id(),
                })
            })
            .await
    }

    /// Ready once we are told to end: with the error to end with, `when` completing "stopped by SIGINT …".
    ///
    /// # Errors
    /// When the signals cannot be read.
    pub(super) async fn interruption(&self, when: &str) -> Result<Error> {
        loop {
            let signal = self.next().await.map_err(|e| Error::system("reading a signal", e))?;
            if signal.meaning() == Meaning::End {
                return Ok(signal.as_error(when));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed_on(number: i32, from_kernel: bool, in_our_group: bool, leads_session: bool) -> bool {
        Received { number, from_kernel, from_self: false }.must_be_passed_on(in_our_group, leads_session)
    }

    #[test]
    fn the_terminals_signals_are_not_sent_twice() {
        assert!(!passed_on(libc::SIGINT, true, true, false));
        assert!(passed_on(libc::SIGINT, true, false, false));
        assert!(passed_on(libc::SIGINT, false, true, false));
    }

    #[test]
    fn a_hangup_reaches_the_job_of_a_session_leader() {
        assert!(passed_on(libc::SIGHUP, true, true, true));
        assert!(!passed_on(libc::SIGHUP, true, true, false));
    }

    #[test]
    fn signals_about_the_controller_stay_with_it() {
        assert!(!passed_on(libc::SIGXCPU, true, false, true));
        assert!(passed_on(libc::SIGUSR1, false, false, false));
        let own = Received { number: libc::SIGXFSZ, from_kernel: false, from_self: true };
        assert!(!own.must_be_passed_on(false, false));
    }
}
