//! Instructions that the job already has and that we borrow: `syscall; ret`, and the return from a signal handler.

use std::io;

use crate::procfs::{self, Vma};
use crate::sys::vm;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SYSCALL_RET: [u8; 3] = [0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall`: what every libc passes as `sa_restorer`.
const RESTORERS: [&[u8]; 2] = [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];

/// Addresses of borrowed instructions in one address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gadgets {
    /// A `syscall` instruction, from the vdso when nothing better is there.
    pub syscall: u64,
    /// `syscall; ret` and the way back through `rt_sigreturn`: with both, a call survives the controller's death.
    pub safe: Option<(u64, u64)>,
}

impl Gadgets {
    /// Looks through the executable mappings of the process.
    ///
    /// # Errors
    /// When the mappings cannot be read, or no `syscall` instruction is there at all.
    pub fn find(pid: i32) -> io::Result<Self> {
        let vmas = procfs::maps(pid)?;
        let (mut syscall, mut call, mut restorer) = (None, None, None);
        for vma in vmas.iter().filter(|v| is_code(v)) {
            let text = text(pid, vma);
            let find =
                |needle: &[u8]| text.windows(needle.len()).position(|w| w == needle).map(|at| vma.start + at as u64);
            syscall = syscall.or_else(|| find(&SYSCALL));
            call = call.or_else(|| find(&SYSCALL_RET));
            restorer = restorer.or_else(|| RESTORERS.iter().find_map(|r| find(r)));
            if call.is_some() && restorer.is_some() {
                break;
            }
        }
        let syscall = syscall.ok_or_else(|| io::Error::other("it has no `syscall` instruction in its code"))?;
        Ok(Self { syscall, safe: call.zip(restorer) })
    }

    /// Address of a `syscall` instruction that is not in `avoid`.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_outside(pid: i32, avoid: std::ops::Range<u64>) -> io::Result<u64> {
        let vmas = procfs::maps(pid)?;
        // The vdso has one wherever the kernel maps it; it is the smallest place to look through.
        let mut code: Vec<&Vma> = vmas.iter().filter(|v| is_code(v) && !avoid.contains(&v.start)).collect();
        code.sort_by_key(|v| v.name != "[vdso]");
        code.iter()
            .find_map(|vma| {
                let at = text(pid, vma).windows(SYSCALL.len()).position(|w| w == SYSCALL)?;
                Some(vma.start + at as u64)
            })
            .ok_or_else(|| io::Error::other("it has no `syscall` instruction in its code"))
    }

    /// Whether the instructions still stand where they were found.
    pub fn still_there(&self, pid: i32) -> bool {
        let reads = |at: u64, want: &[u8]| {
            let mut have = vec![0; want.len()];
            let range = vm::Range { start: at, len: want.len() as u64 };
            vm::read(procfs::voice(pid), &[range], &mut have).is_ok_and(|n| n == want.len()) && have == want
        };
        reads(self.syscall, &SYSCALL)
            && self.safe.is_none_or(|(call, restorer)| {
                reads(call, &SYSCALL_RET) && RESTORERS.iter().any(|r| reads(restorer, r))
            })
    }
}

fn is_code(vma: &Vma) -> bool {
    vma.prot & (libc::PROT_EXEC | libc::PROT_READ) == libc::PROT_EXEC | libc::PROT_READ && vma.name != "[vsyscall]"
}

/// The readable beginning of a mapping, at most 64 MiB.
fn text(pid: i32, vma: &Vma) -> Vec<u8> {
    let len = vma.len().min(64 << 20);
    let mut buf = vec![0; len as usize];
    let n = vm::read(procfs::voice(pid), &[vm::Range { start: vma.start, len }], &mut buf).unwrap_or(0);
    buf.truncate(n);
    buf
}
