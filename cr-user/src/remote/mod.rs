//! Stopping a job, and making a stopped process execute system calls.
//!
//! The rule that shapes this module: **the controller can die at any instruction, and the job must then go on as if
//! nothing had happened.** A tracee whose tracer dies runs on with whatever registers it has. So its registers never
//! point anywhere but at its own instruction, or at code that ends in `rt_sigreturn` to a frame that holds its own
//! registers, exactly as if it were handling a signal.

pub mod confinement;
pub mod frame;
pub mod freeze;
pub mod gadget;
pub mod park;
pub mod puppet;
pub mod query;
pub mod runner;

pub use confinement::Confinement;
pub use freeze::Frozen;
pub use gadget::Gadgets;
pub use park::Lot;
pub use puppet::Puppet;
pub use query::{Answers, Questions};
pub use runner::{Call, Runner, Scratch};

/// The kernel's own results between `-4095` and `-1` are errors.
pub fn kernel_result(value: i64) -> nix::Result<u64> {
    if (-4095..0).contains(&value) { Err(nix::errno::Errno::from_raw(-value as i32)) } else { Ok(value as u64) }
}

/// What the kernel leaves in `rax` of a system call that a stop interrupted, and that it will itself start again.
/// `include/linux/errno.h`.
pub mod restart {
    /// Start again.
    pub const SYS: i64 = -512;
    /// Start again, whatever the handler says.
    pub const NOINTR: i64 = -513;
    /// Start again unless a handler ran.
    pub const NOHAND: i64 = -514;
    /// Start again through `restart_syscall`, with what the kernel remembers of the time left.
    pub const RESTARTBLOCK: i64 = -516;
}
