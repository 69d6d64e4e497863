//! Kernel interfaces tried out on ourselves, for `cr check`. Each attempt leaves nothing behind.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::null_mut;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use crate::sys::{PAGE, check, pagemap, uffd};

/// One anonymous page of our own, unmapped when dropped.
struct Page(*mut libc::c_void);

impl Page {
    fn map() -> nix::Result<Self> {
        // SAFETY: a fresh private anonymous mapping, at an address that the kernel chooses.
        let at = unsafe {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(null_mut(), PAGE as usize, prot, flags, -1, 0)
        };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self(at)) }
    }

    fn address(&self) -> u64 {
        self.0 as u64
    }

    fn write(&self) {
        // SAFETY: the page is ours, mapped for writing, and nobody has a reference into it.
        unsafe { self.0.cast::<u8>().write_volatile(1) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this page, and no reference into it was given out.
        unsafe { libc::munmap(self.0, PAGE as usize) };
    }
}

/// Whether userfaultfd has these features (`uffd::FEATURE_*`).
///
/// # Errors
/// `EINVAL` when it lacks one, `ENOSYS` or `EPERM` when there is no userfaultfd for us.
pub fn uffd_feature(features: u64) -> nix::Result<()> {
    uffd::api(uffd::create()?.as_fd(), features)
}

/// Whether the written-bit does what it must: unset after protection, set after a write, by `PAGEMAP_SCAN`.
///
/// # Errors
/// What the first call that failed said; `EIO` when all went well and the answers were wrong.
pub fn written_bit() -> nix::Result<()> {
    let page = Page::map()?;
    page.write();
    let (start, end) = (page.address(), page.address() + PAGE);
    let tracker = uffd::create()?;
    uffd::api(tracker.as_fd(), uffd::FEATURE_WP_ASYNC | uffd::FEATURE_WP_UNPOPULATED)?;
    uffd::register_wp(tracker.as_fd(), start, PAGE)?;
    let pagemap: OwnedFd = open("/proc/self/pagemap")?;
    let query = |protect| pagemap::Query {
        all: pagemap::IS_WRITTEN,
        any: 0,
        inverted: 0,
        report: pagemap::IS_WRITTEN,
        protect,
        tracked_only: true,
    };
    let mut found = [pagemap::Region::default(); 2];
    let mut count = |protect| pagemap::scan(pagemap.as_fd(), start, end, query(protect), &mut found).map(|(n, _)| n);
    let first = count(true)?;
    let protected = count(false)?;
    page.write();
    let written = count(false)?;
    if (first, protected, written) == (1, 0, 1) { Ok(()) } else { Err(Errno::EIO) }
}

/// Whether a page that was just written has the soft-dirty bit (bit 55 of `/proc/PID/pagemap`).
///
/// # Errors
/// When the pagemap cannot be read.
pub fn soft_dirty() -> nix::Result<bool> {
    use std::os::unix::fs::FileExt;
    let page = Page::map()?;
    page.write();
    let pagemap = File::from(open("/proc/self/pagemap")?);
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, page.address() / PAGE * 8).map_err(|e| errno(&e))?;
    Ok(u64::from_le_bytes(entry) >> 55 & 1 == 1)
}

/// Whether guard pages can be installed (`MADV_GUARD_INSTALL`).
///
/// # Errors
/// `EINVAL` before Linux 6.13.
pub fn guard_pages() -> nix::Result<()> {
    const MADV_GUARD_INSTALL: i32 = 102;
    let page = Page::map()?;
    // SAFETY: nobody has a reference into the page, which is gone after this.
    unsafe { check(libc::c_long::from(libc::madvise(page.0, PAGE as usize, MADV_GUARD_INSTALL)))? };
    Ok(())
}

/// Whether the layout of an address space can be set (`PR_SET_MM_MAP`).
///
/// # Errors
/// `EINVAL` without `CONFIG_CHECKPOINT_RESTORE`.
pub fn set_mm_map() -> nix::Result<()> {
    const PR_SET_MM_MAP_SIZE: libc::c_ulong = 15;
    let mut size: u32 = 0;
    // SAFETY: the call writes one unsigned int.
    unsafe { check(libc::c_long::from(libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP_SIZE, &raw mut size, 0, 0)))? };
    Ok(())
}

/// Whether timers can be made with given ids (`PR_TIMER_CREATE_RESTORE_IDS`).
///
/// # Errors
/// `EINVAL` before Linux 6.15.
pub fn timer_ids() -> nix::Result<()> {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: libc::c_ulong = 2;
    // SAFETY: integers only.
    unsafe { check(libc::c_long::from(libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0)))? };
    Ok(())
}

/// Whether the vdso can be mapped at a given address (`ARCH_MAP_VDSO_64`).
///
/// # Errors
/// `EINVAL` without `CONFIG_CHECKPOINT_RESTORE`.
pub fn map_vdso() -> nix::Result<()> {
    const ARCH_MAP_VDSO_64: i32 = 0x2003;
    // SAFETY: no memory is passed. We have a vdso, so the kernel maps no other: that it says so is what we ask.
    let outcome = unsafe { check(libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_64, 0)) };
    match outcome {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// What ptrace can do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ptrace {
    /// A process can be stopped and examined.
    pub attach: bool,
    /// A thread's registration of restartable sequences can be read (`PTRACE_GET_RSEQ_CONFIGURATION`).
    pub rseq: bool,
}

/// Tries ptrace on a child that is made for this.
///
/// # Errors
/// When there can be no child.
pub fn ptrace() -> nix::Result<Ptrace> {
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    // SAFETY: the child makes only async-signal-safe calls before it is killed.
    match unsafe { fork()? } {
        ForkResult::Child => loop {
            if nix::sys::ptrace::traceme().is_err() {
                // SAFETY: nothing of the caller's may run here, such as its exit handlers.
                unsafe { libc::_exit(1) };
            }
            let _ = raise(Signal::SIGSTOP);
        },
        ForkResult::Parent { child } => {
            let attach = matches!(waitpid(child, None)?, nix::sys::wait::WaitStatus::Stopped(..));
            let mut configuration = [0u8; 64];
            // SAFETY: the kernel writes at most as many bytes as it is told the buffer has.
            let rseq = attach
                && unsafe {
                    let (pid, buffer) = (child.as_raw(), configuration.as_mut_ptr());
                    check(libc::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, pid, configuration.len(), buffer)).is_ok()
                };
            if attach {
                kill(child, Signal::SIGKILL)?;
                waitpid(child, None)?;
            }
            Ok(Ptrace { attach, rseq })
        }
    }
}

/// Whether a descriptor can be fetched from a process, and be compared with another: `pidfd_getfd` and `kcmp`, tried on
/// ourselves.
pub fn descriptors() -> (nix::Result<()>, nix::Result<()>) {
    let me = std::process::id() as i32;
    let fetched = super::fd::pidfd_open(me).and_then(|pidfd| {
        let pidfd: BorrowedFd<'_> = pidfd.as_fd();
        super::fd::pidfd_getfd(pidfd, pidfd.as_raw_fd())
    });
    let compared = open("/proc/self/status").and_then(|file| {
        let fd = file.as_raw_fd();
        super::fd::compare_descriptions(me, fd, me, fd)
            .and_then(|order| if order.is_eq() { Ok(()) } else { Err(Errno::EIO) })
    });
    (fetched.map(drop), compared)
}

/// Whether a process can be made with a given pid (`clone3` with `set_tid`).
///
/// # Errors
/// `EPERM` without `CAP_CHECKPOINT_RESTORE`.
pub fn set_tid() -> nix::Result<()> {
    // Our own pid is taken. That the kernel says so, and not that we may not choose, is what we ask.
    match super::clone::spawn_puppet(std::process::id() as i32, libc::SIGCHLD) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

fn open(path: &str) -> nix::Result<OwnedFd> {
    File::open(path).map(Into::into).map_err(|e| errno(&e))
}

fn errno(e: &std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}
