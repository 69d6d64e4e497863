//! Threads of a stopped job that would only wait, should their tracer die ([`crate::remote::park`]), and how anybody who may trace
//! them has them go on.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::sys::ptrace::{self, Regs};
use crate::sys::task::{self, Change};
use crate::sys::vm;

/// How long a thread that is seized may take to stop.
const LET_GO_PATIENCE: Duration = Duration::from_secs(1);

/// A thread, where it waits, and what it goes back to.
#[derive(Clone, Debug)]
pub struct Parked {
    /// The thread.
    pub tid: i32,
    /// Address of the `syscall` instruction by which it waits.
    pub call: u64,
    /// Its stack pointer there.
    pub stack: u64,
    /// Its own registers.
    pub regs: Regs,
    /// Its own mask of blocked signals.
    pub sigmask: u64,
    /// Where its memory was written to, and what was there.
    pub lent: (u64, Vec<u8>),
}

impl Parked {
    /// Gives a stopped thread everything back. The mask first, its memory last: should we die in between, it still comes back by
    /// itself.
    ///
    /// # Errors
    /// When it is gone.
    pub fn give_back(&self) -> nix::Result<()> {
        ptrace::set_sigmask(self.tid, self.sigmask)?;
        ptrace::set_regs(self.tid, &self.regs)?;
        let (at, bytes) = &self.lent;
        vm::write(self.tid, *at, bytes).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EFAULT)))
    }

    /// Has a thread go on whose tracer has died: as if it had been let go. One that has come back by itself is left alone, and so is
    /// one that we may not trace.
    ///
    /// Allocates nothing: it is called in a child of a process that has other threads.
    fn let_go(&self, until: Instant) {
        loop {
            match ptrace::seize(self.tid, 0) {
                Ok(()) => break,
                // The tracer is about to die.
                Err(Errno::EPERM) if Instant::now() < until => std::thread::sleep(Duration::from_micros(200)),
                Err(_) => return,
            }
        }
        if ptrace::interrupt(self.tid).is_err() {
            return;
        }
        // One that is killed may never be told of.
        let Ok(Some(Change::Trapped { signal, event })) = task::wait_change_for(self.tid, LET_GO_PATIENCE) else {
            return;
        };
        let waits = |r: Regs| r.rsp == self.stack && (r.rip == self.call || r.rip == self.call + 2);
        if ptrace::regs(self.tid).is_ok_and(waits) {
            let _ = self.give_back();
        }
        let _ = ptrace::detach(self.tid, if event == 0 { signal } else { 0 });
    }
}

/// Has all of them go on, once their tracer is dead; until then it is tried for so long.
pub fn let_go(all: &[Parked], patience: Duration) {
    let until = Instant::now() + patience;
    for parked in all {
        parked.let_go(until);
    }
}
