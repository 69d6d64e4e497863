//! What seccomp would do to the system calls that a thread makes in our name, were we to die in the middle.
//!
//! While we trace a thread its seccomp can be suspended (`PTRACE_O_SUSPEND_SECCOMP`): it makes any call for us. Once we are
//! gone its filters are in force again, and it runs the rest of a table under them. So each table is first run through the
//! thread's own filters here. Semantics: `kernel/seccomp.c` and `net/core/filter.c`.

use nix::errno::Errno;

use crate::error::{Error, Refusal, Result};
use crate::procfs::Status;
use crate::remote::runner::Call;
use crate::sys::ptrace;

/// One filter: a classic BPF program, each instruction as the eight bytes of a `struct sock_filter`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Filter {
    /// Its instructions.
    pub program: Vec<u64>,
    /// Whether what it does is logged (`SECCOMP_FILTER_FLAG_LOG`).
    pub log: bool,
}

/// How a thread is confined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// `SECCOMP_MODE_STRICT`: `read`, `write`, `exit` and `rt_sigreturn`, and nothing else.
    Strict,
    /// `SECCOMP_MODE_FILTER`: filters, oldest first.
    Filters(Vec<Filter>),
}

/// Answers of a filter: the upper half of what it returns.
mod action {
    pub const MASK: u32 = 0xffff_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
}

const RET: u16 = 0x06;
const RET_A: u16 = 0x16;
const NATIVE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64

impl Confinement {
    /// How a stopped thread of ours is confined; `None` if it is not.
    ///
    /// # Errors
    /// [`Error::Refused`] when its filters may not be read.
    pub fn read(pid: i32, tid: i32, status: &Status) -> Result<Option<Self>> {
        match status.get("Seccomp") {
            "" | "0" => return Ok(None),
            "1" => return Ok(Some(Self::Strict)),
            _ => {}
        }
        let mut filters = Vec::new();
        loop {
            let index = filters.len();
            let filter = ptrace::seccomp_filter(tid, index)
                .and_then(|program| Ok(Filter { program, log: ptrace::seccomp_flags(tid, index)? & LOG != 0 }));
            match filter {
                Ok(filter) => filters.push(filter),
                Err(Errno::ENOENT) => return Ok(Some(Self::Filters(filters))),
                Err(Errno::ESRCH) => return Err(Error::JobGone { pid, during: "a look at its seccomp filters" }),
                Err(e) => return Err(Error::Refused(vec![unreadable(pid, tid, e)])),
            }
        }
    }

    /// Whether the thread would survive to make this call by itself.
    pub fn spares(&self, call: &Call) -> bool {
        match self {
            Self::Strict => {
                matches!(call.number, libc::SYS_read | libc::SYS_write | libc::SYS_exit | libc::SYS_rt_sigreturn)
            }
            Self::Filters(all) => {
                let data = Data::of(call);
                all.iter().all(|f| {
                    let answer = run(&f.program, &data);
                    let harmless = [action::ALLOW, action::LOG, action::ERRNO, action::TRACE];
                    answer.is_some_and(|a| harmless.contains(&(a & action::MASK)))
                })
            }
        }
    }

    /// Whether it can return from a signal handler, which is how it goes on by itself if we die.
    pub fn spares_return(&self) -> bool {
        self.allows(&Call::new(libc::SYS_rt_sigreturn, &[]))
    }

    /// Whether this call, made by itself, would do what it is for.
    pub fn allows(&self, call: &Call) -> bool {
        match self {
            Self::Strict => self.spares(call),
            Self::Filters(all) => all.iter().all(|f| {
                let answer = run(&f.program, &Data::of(call)).map(|a| a & action::MASK);
                matches!(answer, Some(action::ALLOW | action::LOG))
            }),
        }
    }

    /// Whether a filter hands calls to a listener in another process, or may do so.
    pub fn may_notify(&self) -> bool {
        let notifies = |instruction: &u64| {
            let (code, k) = (*instruction as u16, (*instruction >> 32) as u32);
            code == RET_A || code == RET && k & action::MASK == action::USER_NOTIF
        };
        matches!(self, Self::Filters(all) if all.iter().any(|f| f.program.iter().any(notifies)))
    }
}

const LOG: u64 = 1 << 1;

fn unreadable(pid: i32, tid: i32, e: Errno) -> Refusal {
    let (why, todo) = match e {
        Errno::EACCES => (
            "runs under a seccomp filter, which only root may read who is under none himself".to_owned(),
            "run cr as root, outside of any seccomp filter",
        ),
        Errno::EMEDIUMTYPE => (
            "runs under a seccomp filter that was not written in classic BPF".to_owned(),
            "start the job without that filter",
        ),
        e => (
            format!("runs under a seccomp filter that the kernel does not show ({e})"),
            "start the job without the filter, or use a kernel with CONFIG_CHECKPOINT_RESTORE",
        ),
    };
    Refusal { pid, place: format!("thread {tid}"), why, todo: todo.to_owned() }
}

/// Lets a stopped thread of ours make any call, for as long as we trace it; `options` are those that it is traced with.
///
/// # Errors
/// [`Error::Refused`] when we may not.
pub fn suspend(pid: i32, tid: i32, options: i32) -> Result<()> {
    match ptrace::set_options(tid, options | ptrace::O_SUSPEND_SECCOMP) {
        Ok(()) => Ok(()),
        Err(Errno::ESRCH) => Err(Error::JobGone { pid, during: "a call on its behalf" }),
        Err(_) => Err(Error::Refused(vec![Refusal {
            pid,
            place: format!("thread {tid}"),
            why: "runs under seccomp, which only root may suspend who is under none himself".to_owned(),
            todo: "run cr as root, outside of any seccomp filter".to_owned(),
        }])),
    }
}

/// What a filter is told of a call, as far as we know it beforehand (`struct seccomp_data` in words of four bytes).
struct Data([Option<u32>; 16]);

impl Data {
    /// The address of the instruction is not known, nor is an argument that is another call's result.
    fn of(call: &Call) -> Self {
        let mut words = [None; 16];
        words[0] = Some(call.number as u32);
        words[1] = Some(NATIVE);
        for (i, arg) in call.args.iter().enumerate() {
            if i > 0 || call.first_from.is_none() {
                words[4 + 2 * i] = Some(*arg as u32);
                words[5 + 2 * i] = Some((*arg >> 32) as u32);
            }
        }
        Self(words)
    }
}

/// Runs a filter. `None`: its answer depends on what is not known beforehand, or it is no filter that the kernel takes.
fn run(program: &[u64], data: &Data) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0;
    loop {
        let instruction = *program.get(at)?;
        let (code, k) = (instruction as u16, (instruction >> 32) as u32);
        let (jump_true, jump_false) = ((instruction >> 16) as u8, (instruction >> 24) as u8);
        let operand = if code & 0x08 == 0 { k } else { x };
        at += 1;
        match code & 0x07 {
            // LD and LDX: absolute (of the call), immediate, from memory, or the length of what is told of a call.
            0x00 | 0x01 => {
                let value = match code & 0xe0 {
                    0x20 => (*data.0.get(k as usize / 4)?)?,
                    0x00 => k,
                    0x60 => *memory.get(k as usize)?,
                    0x80 => 64,
                    _ => return None,
                };
                *(if code & 0x01 == 0 { &mut a } else { &mut x }) = value;
            }
            0x02 => *memory.get_mut(k as usize)? = a,
            0x03 => *memory.get_mut(k as usize)? = x,
            0x04 => {
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(operand),
                    0x10 => a.wrapping_sub(operand),
                    0x20 => a.wrapping_mul(operand),
                    // By zero: the program ends with the answer 0.
                    0x30 => match a.checked_div(operand) {
                        Some(quotient) => quotient,
                        None => return Some(0),
                    },
                    0x40 => a | operand,
                    0x50 => a & operand,
                    0x60 => a.wrapping_shl(operand),
                    0x70 => a.wrapping_shr(operand),
                    0x80 => a.wrapping_neg(),
                    0xa0 => a ^ operand,
                    _ => return None,
                }
            }
            0x05 => {
                let taken = match code & 0xf0 {
                    0x00 => {
                        at += k as usize;
                        continue;
                    }
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if taken { jump_true } else { jump_false });
            }
            0x06 => return Some(if code == RET_A { a } else { k }),
            _ if code & 0xf8 == 0 => x = a,
            _ => a = x,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct sock_filter` as it lies in memory.
    fn op(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
        u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
    }

    /// Kills on `mmap`, refuses `prctl(15, …)`, and looks at the address of each `brk`.
    fn filter() -> Confinement {
        let program = vec![
            op(0x20, 0, 0, 4),
            op(0x15, 1, 0, NATIVE),
            op(0x06, 0, 0, 0x8000_0000),
            op(0x20, 0, 0, 0),
            op(0x15, 0, 1, libc::SYS_mmap as u32),
            op(0x06, 0, 0, 0),
            op(0x15, 0, 3, libc::SYS_prctl as u32),
            op(0x20, 0, 0, 16),
            op(0x15, 0, 1, 15),
            op(0x06, 0, 0, 0x0005_0001),
            op(0x20, 0, 0, 0),
            op(0x15, 0, 1, libc::SYS_brk as u32),
            op(0x20, 0, 0, 8),
            op(0x06, 0, 0, 0x7fff_0000),
        ];
        Confinement::Filters(vec![Filter { program, log: false }])
    }

    #[test]
    fn what_a_filter_does_to_a_call_is_known_before() {
        let filter = filter();
        assert!(!filter.spares(&Call::new(libc::SYS_mmap, &[0])));
        assert!(filter.spares(&Call::new(libc::SYS_prctl, &[15])));
        assert!(!filter.allows(&Call::new(libc::SYS_prctl, &[15])), "it is refused");
        assert!(filter.allows(&Call::new(libc::SYS_ppoll, &[0, 0, 4096])));
        assert!(filter.spares(&Call::new(libc::SYS_getpid, &[])));
        assert!(!filter.spares(&Call::new(libc::SYS_prctl, &[15]).first_from(0)), "it looks at what is not known");
        assert!(!filter.spares(&Call::new(libc::SYS_brk, &[0])), "it looks at the address of the instruction");
        assert!(filter.spares_return() && !filter.may_notify());
    }

    #[test]
    fn strict_mode_spares_next_to_nothing() {
        assert!(!Confinement::Strict.spares(&Call::new(libc::SYS_prctl, &[15])));
        assert!(Confinement::Strict.spares(&Call::new(libc::SYS_write, &[1])) && Confinement::Strict.spares_return());
    }

    #[test]
    fn listeners_are_noticed() {
        let answering = |code, k| {
            Confinement::Filters(vec![Filter { program: vec![op(0x20, 0, 0, 0), op(code, 0, 0, k)], log: false }])
        };
        assert!(answering(RET, action::USER_NOTIF).may_notify());
        assert!(answering(RET_A, 0).may_notify());
        assert!(!answering(RET, action::ALLOW | 3).may_notify());
    }

    #[test]
    fn arithmetic_is_the_kernels() {
        let answer = |ops: &[u64]| run(ops, &Data::of(&Call::new(7, &[1 << 33])));
        let ret_a = op(RET_A, 0, 0, 0);
        // Index 5 is the high half of argument 0.
        assert_eq!(answer(&[op(0x20, 0, 0, 20), op(0x04, 0, 0, 5), ret_a]), Some(7));
        assert_eq!(
            answer(&[op(0x00, 0, 0, 9), op(0x02, 0, 0, 3), op(0x61, 0, 0, 3), op(0x0c, 0, 0, 0), ret_a]),
            Some(18)
        );
        assert_eq!(answer(&[op(0x00, 0, 0, 9), op(0x34, 0, 0, 0), ret_a]), Some(0));
        assert_eq!(
            answer(&[op(0x80, 0, 0, 0), op(0x07, 0, 0, 0), op(0x00, 0, 0, 1), op(0x87, 0, 0, 0), ret_a]),
            Some(64)
        );
        assert_eq!(answer(&[op(0x05, 0, 0, 1), ret_a, op(0x06, 0, 0, 42)]), Some(42));
        assert_eq!(answer(&[]), None);
    }
}
