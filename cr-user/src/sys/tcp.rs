//! TCP sockets under repair (`TCP_REPAIR`): the state in which the kernel shows and takes their queues and sequence numbers,
//! and sends nothing by itself.
//!
//! Repair belongs to the socket, not to whoever began it: a socket of a running job that is left in it is broken. So another
//! process, the [`Guard`], ends it: when it is told to, or when we have died.

use std::io::{PipeWriter, pipe};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;

use crate::sys::check;
use crate::sys::clone::{CLONE_ARGS_SIZE, CloneArgs, block_signals};

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
    /// The guard acts when this is closed.
    alarm: Option<PipeWriter>,
}

impl Guard {
    /// Makes a process that ends the repair of these sockets, and gives each its `SO_REUSEADDR` again, which repair takes away.
    /// They are not under repair yet.
    ///
    /// # Errors
    /// When no process can be made.
    pub fn post(sockets: &[(RawFd, i32)]) -> nix::Result<Self> {
        let (wait, alarm) = pipe().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
        // No signal, and so no end of its parent's group or session, must end it.
        let mask = block_signals()?;
        let args = CloneArgs::default();
        // SAFETY: without CLONE_VM the child has its own copy of everything, and it makes only async-signal-safe system calls
        // (other threads of the caller, and the locks they held, do not exist in it).
        let made = unsafe {
            match libc::syscall(libc::SYS_clone3, &raw const args, CLONE_ARGS_SIZE) {
                0 => watch(wait.as_raw_fd(), alarm.as_raw_fd(), sockets),
                made => check(made),
            }
        };
        let restored = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&mask), None);
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
        if self.alarm.take().is_none() {
            return Ok(());
        }
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
/// Must be called in a new process.
unsafe fn watch(wait: RawFd, alarm: RawFd, sockets: &[(RawFd, i32)]) -> ! {
    let int = size_of::<i32>() as libc::socklen_t;
    let mut byte = 0u8;
    // SAFETY: plain system calls with pointers to live integers.
    unsafe {
        libc::close(alarm);
        libc::setsid();
        while libc::read(wait, (&raw mut byte).cast(), 1) != 0 {}
        for (fd, reuse) in sockets {
            let off = REPAIR_OFF_QUIETLY;
            libc::setsockopt(*fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, (&raw const off).cast(), int);
            libc::setsockopt(*fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, (&raw const *reuse).cast(), int);
        }
        libc::_exit(0)
    }
}
