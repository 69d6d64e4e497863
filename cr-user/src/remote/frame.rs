//! The signal frame that brings an interrupted thread back to where it was.
//!
//! Layout: `struct rt_sigframe` of `arch/x86/include/asm/sigframe.h`, `struct sigcontext_64` and `struct _fpx_sw_bytes` of
//! `arch/x86/include/uapi/asm/sigcontext.h`.

use crate::error::{Error, Result};
use crate::remote::restart;
use crate::sys::ptrace::{self, Regs};

/// Where the extended state begins in the frame. The frame starts at a multiple of 64, as XSAVE wants its area to.
const XSTATE_AT: usize = 448;
const UC_FLAGS: u64 = 0b111; // UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
const SS_FLAGS_INVALID: u32 = 0x7777;
const SW_BYTES_AT: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// The one feature that a thread must ask for before it may use it (AMX tile data); its area is the last one.
const DYNAMIC_FEATURES: u64 = 1 << 18;
const XSTATE_BV_AT: usize = 512;

/// What a thread goes back to.
#[derive(Clone, Debug)]
pub struct Context {
    /// Its registers at the stop.
    pub regs: Regs,
    /// Its extended state at the stop.
    pub xstate: Vec<u8>,
    /// Its mask of blocked signals.
    pub sigmask: u64,
}

impl Context {
    /// Of a thread that stands still.
    ///
    /// # Errors
    /// When it is gone.
    pub fn read(tid: i32) -> Result<Self> {
        let lost = |e| Error::system(format!("reading the registers of thread {tid}"), e);
        Ok(Self {
            regs: ptrace::regs(tid).map_err(lost)?,
            xstate: ptrace::xstate(tid).map_err(lost)?,
            sigmask: ptrace::sigmask(tid).map_err(lost)?,
        })
    }

    /// Bytes of the frame.
    pub fn frame_len(&self) -> usize {
        XSTATE_AT + self.xstate_len() + 4
    }

    /// The frame for address `base` (a multiple of 64), whose first word is `restorer`: the code that calls `rt_sigreturn`.
    pub fn frame(&self, base: u64, restorer: u64) -> Vec<u8> {
        debug_assert_eq!(base % 64, 0);
        let mut out = Vec::with_capacity(self.frame_len());
        let mut word = |v: u64| out.extend_from_slice(&v.to_le_bytes());
        let r = resumed(&self.regs);
        word(restorer);
        word(UC_FLAGS);
        word(0); // uc_link
        // An alternate stack that cannot be: `rt_sigreturn` ignores it and leaves the thread's own as it is.
        word(0);
        word(u64::from(SS_FLAGS_INVALID));
        word(0);
        for v in [r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15] {
            word(v);
        }
        for v in [r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags] {
            word(v);
        }
        word((r.cs & 0xffff) | (r.ss & 0xffff) << 48);
        for _ in 0..4 {
            word(0); // err, trapno, oldmask, cr2
        }
        word(base + XSTATE_AT as u64);
        for _ in 0..8 {
            word(0);
        }
        word(self.sigmask);
        out.resize(XSTATE_AT, 0); // siginfo is not read back
        self.push_xstate(&mut out);
        out
    }

    fn push_xstate(&self, out: &mut Vec<u8>) {
        let len = self.xstate_len();
        let start = out.len();
        out.extend_from_slice(&self.xstate[..len]);
        let sw = &mut out[start + SW_BYTES_AT..start + 512];
        let features = u64::from_le_bytes(sw[..8].try_into().expect("eight bytes"));
        let kept = if len == self.xstate.len() { features } else { features & !DYNAMIC_FEATURES };
        sw.fill(0);
        sw[..4].copy_from_slice(&MAGIC1.to_le_bytes());
        sw[4..8].copy_from_slice(&(len as u32 + 4).to_le_bytes());
        sw[8..16].copy_from_slice(&kept.to_le_bytes());
        sw[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        out.extend_from_slice(&MAGIC2.to_le_bytes());
    }

    /// The kernel refuses a frame larger than the features that the thread may use: the tile data are left out where the
    /// thread has none.
    fn xstate_len(&self) -> usize {
        let used = u64::from_le_bytes(self.xstate[XSTATE_BV_AT..XSTATE_BV_AT + 8].try_into().expect("eight bytes"));
        if used & DYNAMIC_FEATURES == 0 {
            self.xstate.len().min(crate::sys::cpu::xstate_len_without(DYNAMIC_FEATURES))
        } else {
            self.xstate.len()
        }
    }
}

/// The registers with an interrupted system call set up to start again, as the kernel does on the way to user space.
///
/// What the kernel remembers for `restart_syscall` does not survive `rt_sigreturn`; such a call is started anew, with its
/// whole time: late rather than never, and only where the controller died within these microseconds.
pub fn resumed(regs: &Regs) -> Regs {
    let mut r = *regs;
    let interrupted = matches!(r.rax as i64, restart::SYS | restart::NOINTR | restart::NOHAND | restart::RESTARTBLOCK);
    if r.orig_rax as i64 >= 0 && interrupted {
        r.rax = r.orig_rax;
        r.rip -= 2;
        r.orig_rax = u64::MAX;
    }
    r
}
