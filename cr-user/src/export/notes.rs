//! The notes of a core file: threads with their registers, who the process is, its auxiliary vector and mapped files
//! (`fs/binfmt_elf.c`; the structures are those of `<sys/procfs.h>` on x86-64).

use super::{Subject, segments};
use crate::object::process::Process;
use crate::object::threads::Thread;
use crate::sys::PAGE;

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const NT_X86_XSTATE: u32 = 0x202;

/// Bytes of `struct elf_prstatus` and `struct elf_prpsinfo`.
const PRSTATUS: usize = 336;
const PRPSINFO: usize = 136;
/// Bytes of `struct user_fpregs_struct`, with which the extended state begins.
const FPREGS: usize = 512;

/// The notes of a process.
pub(super) struct Notes<'s> {
    pub(super) subject: &'s Subject,
}

impl Notes<'_> {
    /// All notes, in the kernel's order: those of the process stand after the status of its first thread.
    pub(super) fn build(&self) -> Vec<u8> {
        let Subject { process, threads, mappings, .. } = self.subject;
        let mut out = Vec::new();
        for (index, thread) in threads.all.iter().enumerate() {
            note(&mut out, "CORE", NT_PRSTATUS, &self.status(thread));
            if index == 0 {
                note(&mut out, "CORE", NT_PRPSINFO, &self.process_info(&thread.name));
                let auxv: Vec<u8> = process.auxv.iter().flat_map(|word| word.to_le_bytes()).collect();
                note(&mut out, "CORE", NT_AUXV, &auxv);
                note(&mut out, "CORE", NT_FILE, &mapped_files(&segments::files(mappings)));
            }
            let state = thread.extended_state();
            if let Some(legacy) = state.get(..FPREGS) {
                note(&mut out, "CORE", NT_FPREGSET, legacy);
                note(&mut out, "LINUX", NT_X86_XSTATE, &state);
            }
        }
        out
    }

    /// `struct elf_prstatus`: no signal, no times, the registers.
    fn status(&self, thread: &Thread) -> Vec<u8> {
        let process = &self.subject.process;
        let signals = self.subject.signals.threads.iter().find(|of| of.tid == thread.tid);
        let mut out = vec![0; PRSTATUS];
        let pending = signals.map(|of| &of.queued).into_iter().flatten().chain(&self.subject.signals.queued);
        put(&mut out, 16, &pending.fold(0, |set, info| set | bit_of(info)).to_le_bytes());
        put(&mut out, 24, &signals.map_or(0, |of| of.mask).to_le_bytes());
        put(&mut out, 32, &identity(process, thread.tid));
        let registers: Vec<u8> = thread.regs.iter().flat_map(|register| register.to_le_bytes()).collect();
        put(&mut out, 112, &registers);
        put(&mut out, 328, &1i32.to_le_bytes());
        out
    }

    /// `struct elf_prpsinfo`.
    fn process_info(&self, name: &[u8]) -> Vec<u8> {
        let Subject { process, credentials, .. } = self.subject;
        let mut out = vec![0; PRPSINFO];
        let stopped = process.stop_signal != 0;
        (out[0], out[1]) = if stopped { (3, b'T') } else { (0, b'R') };
        if let Some(first) = credentials.threads.first() {
            put(&mut out, 16, &first.uids[0].to_le_bytes());
            put(&mut out, 20, &first.gids[0].to_le_bytes());
        }
        put(&mut out, 24, &identity(process, process.pid));
        put(&mut out, 40, &name[..name.len().min(15)]);
        let line: Vec<u8> = process.command_line.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
        put(&mut out, 56, line.trim_ascii_end().get(..79).unwrap_or(line.trim_ascii_end()));
        out
    }
}

/// Four numbers: a thread's (or the process's), the parent's, the group's and the session's.
fn identity(process: &Process, number: i32) -> Vec<u8> {
    [number, process.ppid, process.pgid, process.sid].map(i32::to_le_bytes).concat()
}

/// The bit of the signal that a `siginfo_t` is of.
fn bit_of(info: &[u8]) -> u64 {
    let number = info.get(..4).map_or(0, |n| i32::from_le_bytes(n.try_into().expect("four bytes")));
    if (1..=64).contains(&number) { 1 << (number - 1) } else { 0 }
}

/// `NT_FILE`: how many, bytes of a page; bounds and offset (in pages) of each; their names.
fn mapped_files(files: &[segments::Mapped]) -> Vec<u8> {
    let head = [files.len() as u64, PAGE].into_iter();
    let places = files.iter().flat_map(|file| [file.start, file.end, file.offset / PAGE]);
    let mut out: Vec<u8> = head.chain(places).flat_map(u64::to_le_bytes).collect();
    for file in files {
        out.extend(file.name.as_bytes());
        out.push(0);
    }
    out
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// One note: lengths, type, name and content, each part padded to four bytes.
fn note(out: &mut Vec<u8>, name: &str, kind: u32, content: &[u8]) {
    let lengths = [name.len() as u32 + 1, content.len() as u32, kind];
    out.extend(lengths.map(u32::to_le_bytes).concat());
    for part in [[name.as_bytes(), &[0]].concat().as_slice(), content] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}
