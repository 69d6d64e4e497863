//! The only home of `unsafe`: thin wrappers over kernel interfaces that no kept crate covers.
//!
//! Nothing here decides anything. Each function is one system call (or one instruction sequence) with typed arguments,
//! and each error is the kernel's own `errno`.
#![expect(unsafe_code, reason = "this module is where system calls without a safe wrapper are made")]

pub mod aide;
pub mod bpf;
pub mod clone;
pub mod cpu;
pub mod events;
pub mod fd;
pub mod first_write;
pub mod ipc;
pub mod mmap;
pub mod mqueue;
pub mod network;
pub mod pagemap;
pub mod parked;
pub mod probe;
pub mod process;
pub mod procmap;
pub mod ptrace;
pub mod reflink;
pub mod socket;
pub mod stub;
pub mod task;
pub mod tcp;
pub mod tty;
pub mod uffd;
pub mod vm;

use nix::errno::Errno;

/// Bytes in a page. x86-64 has no other base page size.
pub const PAGE: u64 = 4096;

/// Turns the return value of a raw system call into a result.
fn check(ret: libc::c_long) -> nix::Result<libc::c_long> {
    Errno::result(ret)
}
