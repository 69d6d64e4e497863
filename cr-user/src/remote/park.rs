//! Parking: whatever becomes of us, a stopped thread touches nothing for a while.
//!
//! What we do to the job can be undone by another process when we die ([`crate::sys::tcp::Guard`]), but the kernel lets the job go at
//! the same moment. So a thread that must not be there before it is undone is parked first: its registers lead it into one call that
//! waits, with every signal blocked, and from there by `rt_sigreturn` to where it is. Whoever undoes it also has the thread go on
//! earlier, and as if nothing had been ([`crate::sys::parked`]): what remains is for the case that it may not, or dies too.
//!
//! The frame lies where the kernel would put one: on the thread's alternate signal stack, or below its stack. What was there is put
//! back.

use std::collections::HashSet;
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, Refusal, Result};
use crate::procfs::{Status, Vma};
use crate::remote::frame::Context;
use crate::remote::{Call, Confinement, Gadgets};
use crate::sys::parked::Parked;
use crate::sys::{ptrace, vm};

/// How long a parked thread that nobody helps waits until it goes back.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The System V ABI lets a leaf function use this much below its stack pointer.
const RED_ZONE: u64 = 128;
/// Room below the frame, for the time to wait.
const TIME: u64 = 64;
const SS_DISABLE: i32 = 2;
const TRAP_FLAG: u64 = 1 << 8;

/// A process whose threads are to be parked.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The process.
    pub pid: i32,
    /// The process whose memory it has: itself, unless it shares that.
    pub memory: i32,
    /// The mappings of that.
    pub vmas: &'a [Vma],
    /// Instructions there.
    pub gadgets: Gadgets,
}

/// A stopped thread that is to be parked.
#[derive(Clone, Debug)]
pub struct Thread {
    /// The thread.
    pub tid: i32,
    /// What it goes back to. In no restartable sequence: of those the kernel forgets where a thread was.
    pub own: Context,
    /// The number of the call that was interrupted.
    pub call: u64,
    /// Its alternate signal stack (`sigaltstack(2)`: first byte, flags, bytes).
    pub alternate: (u64, i32, u64),
}

impl Thread {
    /// What it goes back to by itself: what the kernel remembers for `restart_syscall` is lost then.
    fn late(&self) -> Context {
        let mut late = self.own.clone();
        if late.regs.orig_rax == libc::SYS_restart_syscall as u64 {
            late.regs.orig_rax = self.call;
        }
        late
    }
}

/// Threads that are parked. [`Lot::end`] has them go back; dropping it without that (an error on the way) does too.
#[derive(Debug, Default)]
pub struct Lot {
    parked: Vec<Parked>,
    /// Frames by memory and address.
    taken: HashSet<(i32, u64)>,
}

impl Lot {
    /// Parks a stopped thread.
    ///
    /// # Errors
    /// [`Error::Refused`] when it could not wait, or not come back.
    pub fn park(&mut self, ground: &Ground<'_>, thread: &Thread) -> Result<()> {
        let (pid, tid, own) = (ground.pid, thread.tid, &thread.own);
        let failed = |e: std::io::Error| Error::system(format!("parking thread {tid} of pid {pid}"), e);
        let Some((call_at, restorer)) = ground.gadgets.safe else {
            let why = "has neither `syscall; ret` nor a return from signal handlers in its code";
            return Err(refused(pid, tid, why, "link the program with a C library"));
        };
        let Some(at) = self.place(ground, own, thread.alternate) else {
            let why = "has no room for a signal on its stack";
            return Err(refused(pid, tid, why, "give it a larger stack, or try again"));
        };
        let status = Status::read(pid, tid).map_err(failed)?;
        let Some(call) = wait_for(at - TIME, Confinement::read(pid, tid, &status)?.as_ref()) else {
            let why = "runs under a seccomp filter that forbids rt_sigreturn, or every call that only waits";
            return Err(refused(pid, tid, why, "have the filter allow rt_sigreturn and ppoll"));
        };

        let mut bytes = Vec::with_capacity(TIME as usize + own.frame_len());
        bytes.extend_from_slice(&PATIENCE.as_secs().to_le_bytes());
        bytes.resize(TIME as usize, 0);
        bytes.extend_from_slice(&thread.late().frame(at, restorer));
        let mut before = vec![0; bytes.len()];
        let range = vm::Range { start: at - TIME, len: bytes.len() as u64 };
        if vm::read(tid, &[range], &mut before).map_err(failed)? != before.len() {
            return Err(failed(Errno::EFAULT.into()));
        }
        let mut regs = own.regs;
        regs.rip = call_at;
        regs.rsp = at;
        regs.rax = call.number as u64;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = call.args;
        regs.orig_rax = u64::MAX;
        regs.eflags &= !TRAP_FLAG;
        self.taken.insert((ground.memory, at));
        self.parked.push(Parked {
            tid,
            call: call_at,
            stack: at,
            regs: own.regs,
            sigmask: own.sigmask,
            lent: (at - TIME, before),
        });
        vm::write(tid, at - TIME, &bytes).map_err(failed)?;
        // The mask last: should we die in between, the frame brings it back.
        ptrace::set_regs(tid, &regs).and_then(|()| ptrace::set_sigmask(tid, u64::MAX)).map_err(|e| failed(e.into()))
    }

    /// The address of a frame: on the alternate stack if the thread is not on it, since its own may be a small one that is only
    /// used by calls (as those of goroutines).
    fn place(&self, ground: &Ground<'_>, own: &Context, (low, flags, len): (u64, i32, u64)) -> Option<u64> {
        let rsp = own.regs.rsp;
        let alternate = (flags & SS_DISABLE == 0 && len > 0).then(|| low..low.saturating_add(len));
        let is_on_it = alternate.as_ref().is_some_and(|a| a.start < rsp && rsp <= a.end);
        let below = rsp.checked_sub(RED_ZONE)?;
        let candidates = match alternate {
            Some(stack) if is_on_it => [None, Some(stack.start..below)],
            alternate => [alternate, Some(0..below)],
        };
        candidates.into_iter().flatten().find_map(|stack| {
            let at = stack.end.checked_sub(own.frame_len() as u64)? & !63;
            let start = at.checked_sub(TIME)?;
            let writable = libc::PROT_READ | libc::PROT_WRITE;
            let holds = |v: &Vma| v.start <= start && stack.end <= v.end && v.prot & writable == writable && !v.shared;
            let is_free = start >= stack.start && !self.taken.contains(&(ground.memory, at));
            (is_free && ground.vmas.iter().any(holds)).then_some(at)
        })
    }

    /// Those that are parked.
    pub fn parked(&self) -> &[Parked] {
        &self.parked
    }

    /// Has all go back.
    ///
    /// # Errors
    /// When one could not; the others did.
    pub fn end(mut self) -> Result<()> {
        self.empty()
    }

    fn empty(&mut self) -> Result<()> {
        let mut first = None;
        for parked in self.parked.drain(..) {
            // One that was killed needs nothing any more.
            if let Err(e) = parked.give_back()
                && e != Errno::ESRCH
            {
                let what = format!("giving thread {} its registers back", parked.tid);
                first = first.or(Some(Error::system(what, e)));
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Drop for Lot {
    fn drop(&mut self) {
        if let Err(e) = self.empty() {
            log::error!("{e}");
        }
    }
}

/// A call that waits for the time at `at`, and that the thread may make. The first one leaves what the kernel remembers of an
/// interrupted call as it is, so that it can still go on with its time left.
fn wait_for(at: u64, confinement: Option<&Confinement>) -> Option<Call> {
    let monotonic = libc::CLOCK_MONOTONIC as u64;
    let calls = [
        Call::new(libc::SYS_ppoll, &[0, 0, at, 0, 0]),
        Call::new(libc::SYS_pselect6, &[0, 0, 0, 0, at, 0]),
        Call::new(libc::SYS_clock_nanosleep, &[monotonic, 0, at, 0]),
        Call::new(libc::SYS_nanosleep, &[at, 0]),
        Call::new(libc::SYS_poll, &[0, 0, PATIENCE.as_millis() as u64]),
    ];
    let Some(confinement) = confinement else { return calls.into_iter().next() };
    calls.into_iter().find(|call| confinement.spares_return() && confinement.allows(call))
}

fn refused(pid: i32, tid: i32, why: &str, todo: &str) -> Error {
    Error::Refused(vec![Refusal {
        pid,
        place: format!("thread {tid}"),
        why: format!("{why}: it could be disturbed, should cr die while it reads what is queued in TCP connections"),
        todo: format!("{todo}, or wait until the job has read what was sent"),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: std::ops::Range<u64> = 0x10_0000..0x12_0000;
    const OTHER: (u64, i32, u64) = (0x20_0000, 0, 0x8000);

    fn vma(range: std::ops::Range<u64>) -> Vma {
        let (start, end) = (range.start, range.end);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        Vma {
            start,
            end,
            prot,
            shared: false,
            offset: 0,
            dev: (0, 0),
            inode: 0,
            name: String::new(),
            flags: Vec::new(),
            page_size: 0,
        }
    }

    fn place(lot: &Lot, rsp: u64, alternate: (u64, i32, u64)) -> Option<u64> {
        let vmas = [vma(STACK), vma(OTHER.0..OTHER.0 + OTHER.2)];
        let gadgets = Gadgets { syscall: 0, safe: None };
        let mut own = Context { regs: ptrace::no_regs(), xstate: vec![0; 2048], sigmask: 0 };
        own.regs.rsp = rsp;
        lot.place(&Ground { pid: 1, memory: 1, vmas: &vmas, gadgets }, &own, alternate)
    }

    #[test]
    fn frames_lie_where_the_kernel_would_put_them() {
        let (rsp, none) = (STACK.end - 0x1000, (0, SS_DISABLE, 0));
        let mut lot = Lot::default();
        let below = place(&lot, rsp, none).expect("there is room");
        assert!(below.is_multiple_of(64) && STACK.contains(&below) && below + 2048 < rsp - RED_ZONE);
        let other = place(&lot, rsp, OTHER).expect("there is an alternate stack");
        assert!(other > OTHER.0 && other + 2048 < OTHER.0 + OTHER.2);
        let on_it = place(&lot, OTHER.0 + 0x4000, OTHER).expect("there is room below");
        assert!(on_it > OTHER.0 && on_it < OTHER.0 + 0x4000);
        lot.taken.insert((1, other));
        assert_eq!(place(&lot, rsp, OTHER), Some(below), "another thread has its frame there");
    }

    #[test]
    fn without_room_there_is_no_place() {
        let (lot, none) = (Lot::default(), (0, SS_DISABLE, 0));
        assert_eq!(place(&lot, STACK.start + 0x200, none), None, "the stack ends");
        assert_eq!(place(&lot, 0x40, none), None, "there is no stack");
        assert_eq!(place(&lot, OTHER.0 + 0x200, OTHER), None, "the alternate stack is in use, and ends");
        let too_small = (OTHER.0, 0, 0x400);
        assert!(place(&lot, STACK.end, too_small).is_some_and(|at| STACK.contains(&at)));
    }
}
