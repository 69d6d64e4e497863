//! Making a process with a chosen pid.

use nix::errno::Errno;

use crate::sys::check;

/// `struct clone_args` (`include/uapi/linux/sched.h`), version 2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// `CLONE_*` flags.
    pub flags: u64,
    /// Where the pidfd goes.
    pub pidfd: u64,
    /// Where the child's tid goes in the child.
    pub child_tid: u64,
    /// Where the child's tid goes in the parent.
    pub parent_tid: u64,
    /// The signal that the parent gets at exit.
    pub exit_signal: u64,
    /// Lowest byte of the stack.
    pub stack: u64,
    /// Bytes of the stack.
    pub stack_size: u64,
    /// New TLS base.
    pub tls: u64,
    /// Address of the array of wanted pids, innermost namespace first.
    pub set_tid: u64,
    /// Elements of that array.
    pub set_tid_size: u64,
    /// Cgroup descriptor.
    pub cgroup: u64,
}
/// Bytes of [`CloneArgs`].
pub const CLONE_ARGS_SIZE: usize = size_of::<CloneArgs>();
const _: () = assert!(CLONE_ARGS_SIZE == 88);

impl CloneArgs {
    /// The kernel's bytes of this structure.
    pub fn to_bytes(self) -> [u8; CLONE_ARGS_SIZE] {
        // SAFETY: eleven u64 fields without padding are 88 plain bytes.
        unsafe { std::mem::transmute(self) }
    }
}

/// Makes a child with pid `pid`, of whose end `exit_signal` will tell (0: nothing), that does nothing but wait to be traced, and dies with the calling thread.
///
/// The child is a copy of the caller: until it is emptied it must not run anything but its wait.
///
/// # Errors
/// `EEXIST` when the pid is taken, `EPERM` without `CAP_CHECKPOINT_RESTORE`, `EINVAL` beyond `pid_max`.
pub fn spawn_puppet(pid: i32, exit_signal: i32) -> nix::Result<()> {
    let set_tid = [pid];
    let args = CloneArgs {
        exit_signal: exit_signal as u64,
        set_tid: set_tid.as_ptr() as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let parent = std::process::id() as i32;
    // SAFETY: without CLONE_VM the child has its own copy of everything, and it makes only async-signal-safe system calls
    // (other threads of the caller, and the locks they held, do not exist in it).
    unsafe {
        match libc::syscall(libc::SYS_clone3, &raw const args, CLONE_ARGS_SIZE) {
            -1 => Err(Errno::last()),
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // The caller may have died before the line above took effect.
                if libc::getppid() != parent {
                    libc::_exit(125);
                }
                loop {
                    libc::pause();
                }
            }
            _ => Ok(()),
        }
    }
}

/// `prctl(PR_SET_CHILD_SUBREAPER)` for the calling process.
///
/// # Errors
/// None that is known.
pub fn become_subreaper() -> nix::Result<()> {
    // SAFETY: integers only.
    unsafe { check(libc::c_long::from(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)))? };
    Ok(())
}

/// Blocks every signal of the calling thread, and gives back the mask that was in force.
///
/// # Errors
/// None that is known.
pub fn block_signals() -> nix::Result<nix::sys::signal::SigSet> {
    let mut old = nix::sys::signal::SigSet::empty();
    nix::sys::signal::sigprocmask(
        nix::sys::signal::SigmaskHow::SIG_BLOCK,
        Some(&nix::sys::signal::SigSet::all()),
        Some(&mut old),
    )?;
    Ok(old)
}
