//! A restored job in a pid namespace of its own, where all its old pids are free: the controller is that namespace's init, and the
//! process that was called stays outside, passes signals in and the exit code out.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::exit;
use crate::error::{Error, Result};
use crate::sys::fd::{pidfd_open, pidfd_send_signal};
use crate::sys::process::{self, Place};

/// Goes on inside a fresh pid namespace. Outside, waits until all is over there, and gives back the exit code.
///
/// Must come before any thread is started, and after signals were blocked.
///
/// # Errors
/// When we may not make one.
pub(super) fn enter() -> Result<Option<u8>> {
    let place = process::enter_pid_namespace().map_err(|e| Error::NotHere {
        what: "the job".to_owned(),
        why: format!("no pid namespace can be made for it ({e})"),
        todo: "run cr as root, or restore without --pid-namespace".to_owned(),
    })?;
    match place {
        Place::Inside => Ok(None),
        Place::Outside(init) => wait(init).map(Some),
    }
}

fn wait(init: Pid) -> Result<u8> {
    let failed = |e: nix::Error| Error::system("waiting for the job's pid namespace", e);
    let mut set = SigSet::all();
    set.remove(Signal::SIGSEGV);
    set.remove(Signal::SIGBUS);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(failed)?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)?;
    let pidfd = pidfd_open(init.as_raw()).map_err(failed)?;
    loop {
        let mut ready =
            [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(failed(e)),
        }
        let over = ready[0].any().unwrap_or(false);
        while let Ok(Some(signal)) = signals.read_signal() {
            let number = signal.ssi_signo as i32;
            // What the terminal sent has reached those inside as well.
            if signal.ssi_code != libc::SI_KERNEL && number != libc::SIGCHLD {
                let _ = pidfd_send_signal(pidfd.as_fd(), number);
            }
        }
        if over {
            return Ok(exit::code_of_child(init.as_raw()).unwrap_or(125));
        }
    }
}
