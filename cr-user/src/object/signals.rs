//! Signals: what the process does with each, what its threads block, and what waits to be taken.

use crate::error::{Error, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::remote::{Answers, Call, Questions};
use crate::sys::ptrace::{self, SigInfo};

/// The record of a process's signals.
pub const KIND: RecordKind = RecordKind { id: 4, version: 1, name: "signals" };

/// Signals that exist.
pub const COUNT: u64 = 64;
/// Bytes of the kernel's `struct sigaction`.
const ACTION_LEN: usize = 32;
const SIGSET_LEN: u64 = 8;

/// Signal state of one process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Signals {
    /// The process.
    pub pid: i32,
    /// Actions that are not the default.
    pub actions: Vec<Action>,
    /// Signals queued for the whole process, oldest first: the kernel's `siginfo_t`, 128 bytes each.
    #[serde(serialize_with = "crate::object::shown::lists")]
    pub queued: Vec<Vec<u8>>,
    /// By thread: what it blocks, and what is queued for it alone.
    pub threads: Vec<ThreadSignals>,
}

/// What the process does with one signal: the kernel's `struct sigaction`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Action {
    /// The signal.
    pub signal: i32,
    /// Handler, or `SIG_DFL` (0) or `SIG_IGN` (1).
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Code that returns from the handler.
    pub restorer: u64,
    /// Signals blocked meanwhile.
    pub mask: u64,
}

/// Signal state of one thread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ThreadSignals {
    /// The thread.
    pub tid: i32,
    /// Blocked signals, bit `n - 1` for signal `n`.
    pub mask: u64,
    /// Signals queued for it, oldest first.
    #[serde(serialize_with = "crate::object::shown::lists")]
    pub queued: Vec<Vec<u8>>,
}

/// Where the answers to [`ask`] go.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    first: u64,
}

/// Adds this file's questions for the process.
pub fn ask(questions: &mut Questions) -> Asked {
    let first = questions.room(COUNT * ACTION_LEN as u64);
    for signal in 1..=COUNT {
        questions.ask(libc::SYS_rt_sigaction, &[signal, 0, first + (signal - 1) * ACTION_LEN as u64, SIGSET_LEN]);
    }
    Asked { first }
}

/// The actions that are not the default.
pub fn actions(asked: Asked, answers: &Answers) -> Vec<Action> {
    (1..=COUNT)
        .filter_map(|signal| {
            let at = asked.first + (signal - 1) * ACTION_LEN as u64;
            let word = |i: u64| answers.word(at + i * 8);
            let action =
                Action { signal: signal as i32, handler: word(0), flags: word(1), restorer: word(2), mask: word(3) };
            (action.handler != 0 || action.flags != 0 || action.mask != 0).then_some(action)
        })
        .collect()
}

/// What is queued for the whole process of a stopped thread.
///
/// # Errors
/// When the process is gone.
pub fn queued_for_process(tid: i32) -> Result<Vec<Vec<u8>>> {
    queued(tid, true)
}

/// Signal state of one stopped thread; `mask` is its own, not that of a call made on its behalf.
///
/// # Errors
/// When the thread is gone.
pub fn capture_thread(tid: i32, mask: u64) -> Result<ThreadSignals> {
    Ok(ThreadSignals { tid, mask, queued: queued(tid, false)? })
}

fn queued(tid: i32, shared: bool) -> Result<Vec<Vec<u8>>> {
    let all = ptrace::queued_signals(tid, shared)
        .map_err(|e| Error::system(format!("reading the queued signals of thread {tid}"), e))?;
    Ok(all.iter().map(|info| info.to_vec()).collect())
}

/// A queued signal's information for the call that queues it again.
pub fn info(queued: &[u8]) -> SigInfo {
    let mut info = [0; 128];
    let len = queued.len().min(128);
    info[..len].copy_from_slice(&queued[..len]);
    info
}

/// Calls that set every action again, and the bytes that they read at `at` in the process.
pub fn restore_calls(signals: &Signals, at: u64) -> (Vec<Call>, Vec<u8>) {
    const SIG_IGN: [u64; 4] = [1, 0, 0, 0];
    let (mut calls, mut bytes) = (Vec::new(), Vec::<u8>::new());
    let ignore = at;
    bytes.extend(SIG_IGN.iter().flat_map(|w| w.to_le_bytes()));
    for signal in (1..=COUNT as i32).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        let action = signals.actions.iter().find(|a| a.signal == signal);
        // What came under this number while the job was built (that a child has ended, say) is forgotten.
        calls.push(Call::new(libc::SYS_rt_sigaction, &[signal as u64, ignore, 0, SIGSET_LEN]));
        let words = action.map_or([0; 4], |a| [a.handler, a.flags, a.restorer, a.mask]);
        calls.push(Call::new(libc::SYS_rt_sigaction, &[signal as u64, at + bytes.len() as u64, 0, SIGSET_LEN]));
        bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }
    (calls, bytes)
}

impl Sound for Signals {}
