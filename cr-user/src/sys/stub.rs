//! The instructions that a stopped process runs on our behalf: a loop over a table of system calls.
//!
//! The stub is position-independent and is copied into a scratch mapping of the process. Registers at its entry:
//!
//! | register | holds |
//! |---|---|
//! | `r15` | address of the next entry of the table |
//! | `r14` | entries left |
//! | `r13` | address of a signal frame, past its return address |
//!
//! After the last entry it returns through `rt_sigreturn`, so that a process whose tracer dies in the middle finishes the
//! table and goes on exactly where it had been stopped.

use std::arch::global_asm;

/// Bytes of one entry of the table: number, pointer to argument 0, arguments 1 to 5, result, literal for argument 0.
pub const ENTRY: u64 = 72;

global_asm!(
    ".pushsection .text.cr_stub, \"ax\"",
    ".balign 16",
    ".global cr_stub_start",
    ".global cr_stub_end",
    "cr_stub_start:",
    "2:",
    "test r14, r14",
    "je 3f",
    "mov rax, [r15]",
    "mov rdi, [r15 + 8]",
    "mov rdi, [rdi]",
    "mov rsi, [r15 + 16]",
    "mov rdx, [r15 + 24]",
    "mov r10, [r15 + 32]",
    "mov r8, [r15 + 40]",
    "mov r9, [r15 + 48]",
    "syscall",
    "mov [r15 + 56], rax",
    "add r15, 72",
    "dec r14",
    "jmp 2b",
    "3:",
    "mov rsp, r13",
    "mov eax, 15",
    "syscall",
    "ud2",
    "cr_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static cr_stub_start: u8;
    static cr_stub_end: u8;
}

/// The stub's instructions.
pub fn code() -> &'static [u8] {
    // SAFETY: both symbols are defined above, in this order, in read-only text that lives as long as the program.
    unsafe {
        let start = &raw const cr_stub_start;
        let end = &raw const cr_stub_end;
        std::slice::from_raw_parts(start, end.offset_from(start) as usize)
    }
}

/// Offset of a `syscall` instruction in the stub.
pub fn syscall_offset() -> u64 {
    code().windows(2).position(|w| w == [0x0f, 0x05]).expect("the stub makes system calls") as u64
}

/// Address of a `syscall` instruction in our own text: a forked child has it at the same place.
pub fn syscall_instruction() -> u64 {
    code().as_ptr() as u64 + syscall_offset()
}
