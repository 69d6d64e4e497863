//! BPF iterators for one process or one map. aya 0.14 opens iterators over everything only.

use std::{
    fs::File,
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// What an iterator is to go over.
#[derive(Clone, Copy, Debug)]
pub enum IterTarget<'a> {
    /// Every task.
    All,
    /// Every task of the process with this number in the caller's own pid namespace.
    Process(i32),
    /// The one task with this number in the caller's own pid namespace.
    Task(i32),
    /// Every entry of this map.
    Map(BorrowedFd<'a>),
}

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// `struct { … } link_create` of `union bpf_attr` in `linux/bpf.h`, as far as an iterator needs it.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    padding: u32,
}

/// `struct { … } iter_create` of `union bpf_attr`.
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// `struct { … } task` of `union bpf_iter_link_info` (Linux 6.1); its first word is also `map.map_fd`.
#[repr(C)]
#[derive(Default)]
struct IterInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
    padding: u32,
}

const _: () = assert!(size_of::<LinkCreate>() == 32);
const _: () = assert!(size_of::<IterInfo>() == 16);

/// Makes one pass of a loaded `iter/*` program over `target`; reading the file runs the program.
///
/// Fails with `ESRCH` if there is no such process or task.
pub fn iter_open(program: BorrowedFd<'_>, target: IterTarget<'_>) -> io::Result<File> {
    let info = match target {
        IterTarget::All => IterInfo::default(),
        IterTarget::Process(pid) => IterInfo { pid: pid.cast_unsigned(), ..IterInfo::default() },
        IterTarget::Task(tid) => IterInfo { tid: tid.cast_unsigned(), ..IterInfo::default() },
        IterTarget::Map(map) => IterInfo { tid: map.as_raw_fd().cast_unsigned(), ..IterInfo::default() },
    };
    let link = bpf_fd(
        BPF_LINK_CREATE,
        &LinkCreate {
            prog_fd: program.as_raw_fd().cast_unsigned(),
            target_fd: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            iter_info: (&raw const info).addr() as u64,
            iter_info_len: size_of::<IterInfo>() as u32,
            padding: 0,
        },
    )?;
    // The iterator holds its own reference to the link, which may be closed here.
    let iter = bpf_fd(BPF_ITER_CREATE, &IterCreate { link_fd: link.as_raw_fd().cast_unsigned(), flags: 0 })?;
    Ok(iter.into())
}

/// `bpf(2)` for a command that answers with a new file descriptor.
fn bpf_fd<A>(command: libc::c_long, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<A>()` bytes at `attributes`, which are initialised and have no padding; what they
    // point to (the iterator's target) outlives the call. Needed as no crate passes an iterator's target.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>() as libc::c_ulong)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
