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
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

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

/// `SIOCOUTQNSD` of `linux/sockios.h`: what was not sent yet, in bytes; an end counts as one.
///
/// # Errors
/// What the kernel says.
pub fn unsent(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCOUTQNSD writes one int.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), SIOCOUTQNSD, &raw mut n)))? };
    Ok(n as usize)
}

/// Who ends the repair of sockets when we say so, or have died. Dropping it says so.
#[derive(Debug)]
pub struct Guard {
    pid: i32,
    /// The guard acts on a byte (told to) or an end (we have died).
    alarm: Option<PipeWriter>,
    sockets: Vec<(RawFd, i32)>,
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
        let guard = Self { pid: made? as i32, alarm: Some(alarm), sockets: sockets.to_vec() };
        restored.map(|()| guard)
    }

    /// Has the repair ended.
    ///
    /// # Errors
    /// When a socket is still under repair.
    pub fn dismiss(mut self) -> nix::Result<()> {
        self.end()
    }

    fn end(&mut self) -> nix::Result<()> {
        let Some(mut alarm) = self.alarm.take() else { return Ok(()) };
        // Should this fail, then so does the wait.
        let _ = alarm.write(&[1]);
        drop(alarm);
        loop {
            match waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                // Somebody has ended it.
                _ => return end_repair(&self.sockets),
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            log::error!("ending the repair of TCP sockets of the job: {e}");
        }
    }
}

fn end_repair(sockets: &[(RawFd, i32)]) -> nix::Result<()> {
    let mut result = Ok(());
    for (fd, reuse) in sockets {
        let settings =
            [(libc::IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_OFF_QUIETLY), (libc::SOL_SOCKET, libc::SO_REUSEADDR, *reuse)];
        for (level, name, value) in settings {
            let len = size_of::<i32>() as libc::socklen_t;
            // SAFETY: the kernel reads one integer.
            let set = unsafe { libc::setsockopt(*fd, level, name, (&raw const value).cast(), len) };
            result = result.and(check(libc::c_long::from(set)).map(drop));
        }
    }
    result
}

/// What the guard does.
///
/// # Safety
/// Must be called in a new process, with every signal blocked.
unsafe fn watch(parent: i32, [wait, alarm, deaths]: [RawFd; 3], sockets: &[(RawFd, i32)], parked: &[Parked]) -> ! {
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
        let ended = end_repair(sockets);
        if !by_us {
            parked::let_go(parked, PATIENCE);
        }
        libc::_exit(i32::from(ended.is_err()))
    }
}
