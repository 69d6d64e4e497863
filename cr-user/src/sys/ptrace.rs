//! ptrace requests that `nix` lacks or words differently. All come from the thread that seized the tracee.

use nix::errno::Errno;

use crate::sys::check;

/// General registers, as `PTRACE_GETREGS` gives them.
pub type Regs = libc::user_regs_struct;

/// What `PTRACE_SEIZE` asks for where the tracee must not outlive us.
pub const OPTIONS_PUPPET: i32 =
    libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACESYSGOOD;

/// `PTRACE_EVENT_STOP`: the stop of `PTRACE_INTERRUPT`, of a group stop, and of a new thread.
pub const EVENT_STOP: i32 = 128;

/// The stop's signal at the entry to and the exit from a system call, under `PTRACE_O_TRACESYSGOOD`.
pub const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// `PTRACE_O_SUSPEND_SECCOMP`: seccomp does nothing while we trace the task.
pub const O_SUSPEND_SECCOMP: i32 = 1 << 21;

const NT_X86_XSTATE: usize = 0x202;
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const PEEKSIGINFO_SHARED: u32 = 1;

fn request(request: libc::c_uint, tid: i32, addr: usize, data: usize) -> nix::Result<libc::c_long> {
    Errno::clear();
    // SAFETY: every caller in this file passes, for its request, either integers or pointers to live objects of the size
    // that the request reads or writes.
    check(unsafe { libc::ptrace(request, tid, addr, data) })
}

/// Attaches without stopping, with `options` (`PTRACE_O_*`).
///
/// # Errors
/// `EPERM` for a task that may not be traced or has a tracer, `ESRCH`.
pub fn seize(tid: i32, options: i32) -> nix::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// Replaces the options (`PTRACE_O_*`) of a stopped task.
///
/// # Errors
/// `EPERM` for [`O_SUSPEND_SECCOMP`] without `CAP_SYS_ADMIN` or under seccomp ourselves, `ESRCH`.
pub fn set_options(tid: i32, options: i32) -> nix::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// Asks a seized task to stop.
///
/// # Errors
/// `ESRCH`.
pub fn interrupt(tid: i32) -> nix::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped task run, delivering `signal` (0: none).
///
/// # Errors
/// `ESRCH`.
pub fn cont(tid: i32, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped task run to the next entry to, or exit from, a system call.
///
/// Single steps are no choice where the tracer may die: the trap flag outlives it and kills the task.
///
/// # Errors
/// `ESRCH`.
pub fn syscall(tid: i32) -> nix::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Lets go of a stopped task, delivering `signal` (0: none).
///
/// # Errors
/// `ESRCH`.
pub fn detach(tid: i32, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// The number of the child behind a fork or clone event.
///
/// # Errors
/// `ESRCH`.
pub fn event_message(tid: i32) -> nix::Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message)
}

/// Registers that are all zero.
pub fn no_regs() -> Regs {
    // SAFETY: the structure is 27 integers.
    unsafe { std::mem::zeroed() }
}

/// General registers.
///
/// # Errors
/// `ESRCH` when the task is not stopped.
pub fn regs(tid: i32) -> nix::Result<Regs> {
    let mut regs = no_regs();
    request(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as usize)?;
    Ok(regs)
}

/// Replaces the general registers.
///
/// # Errors
/// `EIO` for values that no program could have, `ESRCH`.
pub fn set_regs(tid: i32, regs: &Regs) -> nix::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as usize).map(drop)
}

/// The extended state (x87, SSE, AVX, …) in the standard XSAVE format.
///
/// # Errors
/// `ENODEV` without XSAVE, `ESRCH`.
pub fn xstate(tid: i32) -> nix::Result<Vec<u8>> {
    // Room for more than any CPU has, of which little is used: a vector of that size would be kept as long as the state is.
    let mut room = [0u8; 16 * 1024];
    let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &raw mut iov as usize)?;
    Ok(room[..iov.iov_len].to_vec())
}

/// Replaces the extended state.
///
/// # Errors
/// `EINVAL`/`EFAULT` for a layout or feature that this CPU lacks, `ESRCH`.
pub fn set_xstate(tid: i32, xstate: &[u8]) -> nix::Result<()> {
    let mut iov = libc::iovec { iov_base: xstate.as_ptr().cast_mut().cast(), iov_len: xstate.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, &raw mut iov as usize).map(drop)
}

/// The mask of blocked signals, bit `n - 1` for signal `n`.
///
/// # Errors
/// `ESRCH`.
pub fn sigmask(tid: i32) -> nix::Result<u64> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut mask as usize)?;
    Ok(mask)
}

/// Replaces the mask of blocked signals.
///
/// # Errors
/// `ESRCH`.
pub fn set_sigmask(tid: i32, mask: u64) -> nix::Result<()> {
    request(libc::PTRACE_SETSIGMASK, tid, 8, &raw const mask as usize).map(drop)
}

/// A queued signal's information: the kernel's 128 bytes.
pub type SigInfo = [u8; 128];

/// The information of the signal that the task is about to take.
///
/// # Errors
/// `EINVAL` when the stop is not for a signal.
pub fn siginfo(tid: i32) -> nix::Result<SigInfo> {
    let mut info = [0u8; 128];
    request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as usize)?;
    Ok(info)
}

#[repr(C)]
struct PeekSigInfo {
    off: u64,
    flags: u32,
    nr: i32,
}

/// Signals queued for the thread (`shared == false`) or for its whole process, oldest first. Nothing is consumed.
///
/// # Errors
/// `ESRCH`.
pub fn queued_signals(tid: i32, shared: bool) -> nix::Result<Vec<SigInfo>> {
    const BATCH: usize = 32;
    let mut all = Vec::new();
    loop {
        let args =
            PeekSigInfo { off: all.len() as u64, flags: if shared { PEEKSIGINFO_SHARED } else { 0 }, nr: BATCH as i32 };
        let mut batch = [[0u8; 128]; BATCH];
        let n = request(libc::PTRACE_PEEKSIGINFO, tid, &raw const args as usize, batch.as_mut_ptr() as usize)? as usize;
        all.extend_from_slice(&batch[..n]);
        if n < BATCH {
            return Ok(all);
        }
    }
}

/// A thread's registration for restartable sequences.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rseq {
    /// Address of the thread's `struct rseq`; 0 when there is none.
    pub address: u64,
    /// Its size in bytes.
    pub size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Flags (0 today).
    pub flags: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Rseq>() == 24);

/// The thread's registration for restartable sequences (5.13 and later).
///
/// # Errors
/// `EIO` on older kernels.
pub fn rseq(tid: i32) -> nix::Result<Rseq> {
    let mut rseq = Rseq::default();
    request(GET_RSEQ_CONFIGURATION, tid, size_of::<Rseq>(), &raw mut rseq as usize)?;
    Ok(rseq)
}

/// A seccomp filter of a stopped task, the oldest having index 0: classic BPF, eight bytes an instruction.
///
/// # Errors
/// `ENOENT` past the newest, `EACCES` without `CAP_SYS_ADMIN` or under seccomp ourselves, `EMEDIUMTYPE` for a program that is
/// not classic BPF, `ESRCH`.
pub fn seccomp_filter(tid: i32, index: usize) -> nix::Result<Vec<u64>> {
    const MOST: usize = 4096; // BPF_MAXINSNS
    let mut program = vec![0u64; MOST];
    let n = request(SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize)?;
    program.truncate(n as usize);
    Ok(program)
}

/// The flags (`SECCOMP_FILTER_FLAG_*`) of a seccomp filter of a stopped task.
///
/// # Errors
/// As for [`seccomp_filter`].
pub fn seccomp_flags(tid: i32, index: usize) -> nix::Result<u64> {
    // `struct seccomp_metadata`: the index, and the flags.
    let mut metadata = [index as u64, 0];
    request(SECCOMP_GET_METADATA, tid, size_of_val(&metadata), metadata.as_mut_ptr() as usize)?;
    Ok(metadata[1])
}
