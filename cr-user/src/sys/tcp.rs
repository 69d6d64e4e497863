//! TCP sockets under repair (`TCP_REPAIR`): the state in which the kernel shows and takes their queues and sequence numbers,
//! and sends nothing by itself.
//!
//! Repair belongs to the socket, not to whoever began it: a socket of a running job that is left in it is broken. So another
//! process, the [`Guard`], ends it: when it is told to, or when we have died. In the second case the kernel lets the job go at the
//! same moment. So its threads are parked before ([`crate::remote::park`]), and go on when the guard has them do so.

use std::io::{PipeWriter, Write, pipe};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::check;
use crate::sys::clone::{CLONE_ARGS_SIZE, CloneArgs, block_signals};
use crate::sys::parked::{self, Parked};

/// `linux/tcp.h`: under repair.
pub const REPAIR_ON: i32 = 1;
/// No longer, and the other end is asked for its window.
pub const REPAIR_OFF: i32 = 0;
/// No longer, and nothing is sent.
pub const REPAIR_OFF_QUIETLY: i32 = -1;

/// `SIOCOUTQ`: what was sent and not acknowledged yet, in bytes; an end that was sent counts as one.
///
/// # Errors
/// What the kernel says.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut n)))? };
    Ok(n as usize)
}

/// Who ends the repair of sockets when we say so, or have died. Dropping it says so.
#[derive(Debug)]
pub struct Guard {
    pid: i32,
    /// The guard acts on a byte (told to) or an end (we have died).
    alarm: Option<PipeWriter>,
}

/// For how long the guard tries to have parked threads go on.
const PATIENCE: Duration = Duration::from_secs(1);

impl Guard {
    /// Makes a process that ends the repair of these sockets, and gives each its `SO_REUSEADDR` again, which repair takes away.
    /// They are not under repair yet. If we have died it also has these threads go on, which were traced by the calling one.
    ///
    /// # Errors
    /// When no process can be made.
    pub fn post(sockets: &[(RawFd, i32)], parked: &[Parked]) -> nix::Result<Self> {
        let (wait, alarm) = pipe().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
        // No signal, and so no end of its parent's group or session, must end it.
        let mask = block_signals()?;
        // The pipe ends with our last thread, this tells of the end of the one that traces the job.
        let signals = SigSet::from(Signal::SIGUSR1);
        let deaths = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC);
        let parent = std::process::id() as i32;
        let made = deaths.and_then(|deaths| {
            let fds = [wait.as_raw_fd(), alarm.as_raw_fd(), deaths.as_raw_fd()];
            let args = CloneArgs::default();
            // SAFETY: without CLONE_VM the child has its own copy of everything, and it makes only async-signal-safe system calls
            // (other threads of the caller, and the locks they held, do not exist in it).
            unsafe {
                match libc::syscall(libc::SYS_clone3, &raw const args, CLONE_ARGS_SIZE) {
                    0 => watch(parent, fds, sockets, parked),
                    made => check(made),
                }
            }
        });
        let restored = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
        let guard = Self { pid: made? as i32, alarm: Some(alarm) };
        restored.map(|()| guard)
    }

    /// Has the repair ended.
    ///
    /// # Errors
    /// When the guard is gone.
    pub fn dismiss(mut self) -> nix::Result<()> {
        self.end()
    }

    fn end(&mut self) -> nix::Result<()> {
        let Some(mut alarm) = self.alarm.take() else { return Ok(()) };
        // Should this fail, then so does the wait.
        let _ = alarm.write(&[1]);
        drop(alarm);
        crate::sys::task::wait_end(self.pid)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            log::error!("whoever ends the repair of sockets is gone: {e}");
        }
    }
}

/// What the guard does.
///
/// # Safety
/// Must be called in a new process, with every signal blocked.
unsafe fn watch(parent: i32, [wait, alarm, deaths]: [RawFd; 3], sockets: &[(RawFd, i32)], parked: &[Parked]) -> ! {
    let int = size_of::<i32>() as libc::socklen_t;
    let mut told = [0u8];
    let event = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut events = [event(wait), event(deaths)];
    // SAFETY: plain system calls with pointers to live integers and structures.
    unsafe {
        libc::close(alarm);
        libc::setsid();
        // Only root may: others wait their turn.
        libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR1);
        // Whoever died before the line above took effect has left an end in the pipe.
        while libc::poll(events.as_mut_ptr(), 2, 1000) <= 0 && libc::getppid() == parent {}
        let by_us = events[0].revents != 0 && libc::read(wait, told.as_mut_ptr().cast(), 1) == 1;
        for (fd, reuse) in sockets {
            let off = REPAIR_OFF_QUIETLY;
            libc::setsockopt(*fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, (&raw const off).cast(), int);
            libc::setsockopt(*fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, (&raw const *reuse).cast(), int);
        }
        if !by_us {
            parked::let_go(parked, PATIENCE);
        }
        libc::_exit(0)
    }
}
