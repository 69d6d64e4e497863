//! The eBPF programs of cr. They record and never decide: which pages of a followed job were written, what became of
//! its tasks, and, when asked, what the kernel keeps about its tasks and mappings.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod description;
mod follow;
mod iter_file;
mod iter_peek;
mod iter_task;
mod iter_vma;
mod iter_written;
mod kernel;
mod locks;
mod tasks;
mod writes;

/// The kernel lends some helpers only to programs under a licence that it knows to be compatible with its own.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: nothing here panics, and the verifier would refuse a program that could.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
