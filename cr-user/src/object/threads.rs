//! Threads: registers, extended state, and what the kernel keeps for each.

use crate::error::{Error, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::procfs::{self, Status};
use crate::remote::{Answers, Call, Questions, freeze, restart};
use crate::sys::ptrace::{self, Regs};
use crate::sys::{task, vm};
use crate::track::iters::TaskHidden;

/// The record of a process's threads.
pub const KIND: RecordKind = RecordKind { id: 2, version: 2, name: "threads" };

/// All living threads of one process, the main one first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Threads {
    /// The process.
    pub pid: i32,
    /// Its threads.
    pub all: Vec<Thread>,
    /// Its main thread, if that has ended before these.
    pub head: Option<Head>,
}

/// A main thread that has ended: what is still seen of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Head {
    /// Its name, at most 15 bytes.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub name: Vec<u8>,
    /// What it gave to `exit(2)`.
    pub code: u8,
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Thread {
    /// Its number.
    pub tid: i32,
    /// Its name, at most 15 bytes.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub name: Vec<u8>,
    /// General registers, in the order of `struct user_regs_struct`.
    pub regs: [u64; 27],
    /// Extended state in the standard XSAVE format, without the zeroes at its end.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub xstate: Vec<u8>,
    /// Bytes of the extended state with them.
    pub xstate_len: u32,
    /// Restartable sequences: address, bytes, signature. Address 0: none.
    pub rseq: (u64, u32, u32),
    /// Robust futexes: head and length.
    pub robust_list: (u64, u64),
    /// Where the kernel writes 0 and wakes when the thread ends; 0 for nowhere.
    pub clear_child_tid: u64,
    /// Alternate signal stack: first byte, flags, bytes.
    pub altstack: (u64, i32, u64),
    /// An interrupted timed wait with the time that was left; none when the call restarts from its arguments.
    pub wait: Option<Wait>,
    /// `PR_SET_PDEATHSIG`.
    pub parent_death_signal: i32,
}

/// A wait of which only the kernel knows how long it still is to take. Times are what is left, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Wait {
    /// `nanosleep` or `clock_nanosleep` with a relative time.
    Sleep(Sleep),
    /// `futex` with a time limit.
    Futex(u64),
    /// `poll`, with its time limit or `u64::MAX`.
    Poll(u64),
    /// The kernel was not asked: the call with this number starts again with its whole time.
    Anew(u64),
}

/// An interrupted sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Sleep {
    /// The clock.
    pub clock: i32,
    /// Where the time left is reported; 0 for nowhere.
    pub report: u64,
    /// The time left in nanoseconds.
    pub left: u64,
}

const REGISTERS: usize = 27;
const _: () = assert!(size_of::<Regs>() == REGISTERS * 8);

impl Thread {
    /// The general registers.
    pub fn registers(&self) -> Regs {
        let r = &self.regs;
        Regs {
            r15: r[0],
            r14: r[1],
            r13: r[2],
            r12: r[3],
            rbp: r[4],
            rbx: r[5],
            r11: r[6],
            r10: r[7],
            r9: r[8],
            r8: r[9],
            rax: r[10],
            rcx: r[11],
            rdx: r[12],
            rsi: r[13],
            rdi: r[14],
            orig_rax: r[15],
            rip: r[16],
            cs: r[17],
            eflags: r[18],
            rsp: r[19],
            ss: r[20],
            fs_base: r[21],
            gs_base: r[22],
            ds: r[23],
            es: r[24],
            fs: r[25],
            gs: r[26],
        }
    }

    /// The whole extended state.
    pub fn extended_state(&self) -> Vec<u8> {
        let mut all = self.xstate.clone();
        all.resize(self.xstate_len as usize, 0);
        all
    }

    /// The mask of extended-state features that the CPU must have (XCR0 at the checkpoint).
    pub fn xstate_features(&self) -> u64 {
        self.xstate.get(464..472).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
    }

    /// The mask of features that the thread really used.
    pub fn xstate_in_use(&self) -> u64 {
        self.xstate.get(512..520).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
    }
}

/// Whether a call was interrupted that the kernel can only resume with what it remembers of it.
pub fn has_restart_block(regs: &Regs) -> bool {
    regs.orig_rax as i64 >= 0 && regs.rax as i64 == restart::RESTARTBLOCK
}

/// The wait that a thread was in, from what the kernel remembers of it (`hidden`), or else from its code.
pub fn wait(pid: i32, regs: &Regs, hidden: Option<&TaskHidden>, functions: &RestartFunctions) -> Option<Wait> {
    if !has_restart_block(regs) {
        return None;
    }
    let known = hidden.and_then(|task| functions.wait(regs, task));
    known.or_else(|| Some(Wait::Anew(call_number(pid, regs))))
}

/// Whether a thread of the running process is in a call of which, interrupted, only the kernel knows the time left.
pub fn any_timed_wait(pid: i32) -> bool {
    let timed = |tid: &i32| {
        let Ok(text) = procfs::text(&format!("/proc/{pid}/task/{tid}/syscall")) else { return false };
        let mut words = text.split_whitespace();
        let number = words.next().and_then(|w| w.parse::<i64>().ok());
        let args: Vec<u64> =
            words.filter_map(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok()).take(6).collect();
        match number {
            Some(libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_restart_syscall) => true,
            Some(libc::SYS_poll) => args.get(2).is_some_and(|ms| (*ms as i32) > 0),
            Some(libc::SYS_futex) => args.get(3).is_some_and(|timeout| *timeout != 0),
            _ => false,
        }
    };
    procfs::threads(pid).unwrap_or_default().iter().any(timed)
}

/// The number of the call by which a thread's interrupted wait could begin anew, with its whole time.
pub fn number_of_wait(thread: &Thread) -> u64 {
    let regs = thread.registers();
    // A pointer is no clock.
    let names_clock = regs.rdi < crate::sys::PAGE;
    let number = match thread.wait {
        None => return regs.orig_rax,
        _ if regs.orig_rax != libc::SYS_restart_syscall as u64 => return regs.orig_rax,
        Some(Wait::Anew(number)) => return number,
        Some(Wait::Sleep(_)) if names_clock => libc::SYS_clock_nanosleep,
        Some(Wait::Sleep(_)) => libc::SYS_nanosleep,
        Some(Wait::Futex(_)) => libc::SYS_futex,
        Some(Wait::Poll(_)) => libc::SYS_poll,
    };
    number as u64
}

/// The number of the interrupted call. Once resumed it is `restart_syscall`, and the first number stands only in the code.
fn call_number(pid: i32, regs: &Regs) -> u64 {
    const MOV_EAX: u8 = 0xb8;
    let mut code = [0; 7];
    let range = vm::Range { start: regs.rip.wrapping_sub(7), len: 7 };
    let read = regs.orig_rax == libc::SYS_restart_syscall as u64
        && vm::read(procfs::voice(pid), &[range], &mut code).is_ok_and(|n| n == 7);
    match code {
        [MOV_EAX, a, b, c, d, 0x0f, 0x05] if read => u64::from(u32::from_le_bytes([a, b, c, d])),
        _ => regs.orig_rax,
    }
}

/// Kernel functions that resume waits (`struct restart_block`), by address.
#[derive(Clone, Debug, Default)]
pub struct RestartFunctions {
    sleep: u64,
    futex: u64,
    poll: u64,
}

impl RestartFunctions {
    /// From `/proc/kallsyms`; all unknown where the kernel does not tell addresses.
    pub fn read() -> Self {
        let mut all = Self::default();
        for line in std::fs::read_to_string("/proc/kallsyms").unwrap_or_default().lines() {
            let Some((address, name)) = line.split_once(' ') else { continue };
            let known = match name.get(2..) {
                Some("hrtimer_nanosleep_restart") => &mut all.sleep,
                Some("futex_wait_restart") => &mut all.futex,
                Some("do_restart_poll") => &mut all.poll,
                _ => continue,
            };
            *known = u64::from_str_radix(address, 16).unwrap_or(0);
        }
        all
    }

    fn wait(&self, regs: &Regs, task: &TaskHidden) -> Option<Wait> {
        const CLOCK_MONOTONIC: i32 = libc::CLOCK_MONOTONIC;
        let function = u64::from_le_bytes(task.restart_block()[8..16].try_into().expect("eight bytes"));
        let number = regs.orig_rax as i64;
        let is = |address: u64, numbers: &[i64]| (address != 0 && function == address) || numbers.contains(&number);
        let left = |clock: i32, end: u64| end.saturating_sub(now(clock));
        if is(self.sleep, &[libc::SYS_nanosleep, libc::SYS_clock_nanosleep]) {
            let sleep = task.restart_sleep();
            let report = if sleep.report == 0 { 0 } else { sleep.remaining };
            let left = left(sleep.clock, sleep.expires_ns);
            return Some(Wait::Sleep(Sleep { clock: sleep.clock, report, left }));
        }
        if is(self.futex, &[libc::SYS_futex]) {
            return Some(Wait::Futex(left(CLOCK_MONOTONIC, task.restart_futex().expires_ns)));
        }
        if is(self.poll, &[libc::SYS_poll]) {
            let poll = task.restart_poll();
            let end = poll.end_s * 1_000_000_000 + poll.end_ns;
            return Some(Wait::Poll(if poll.limited { left(CLOCK_MONOTONIC, end) } else { u64::MAX }));
        }
        None
    }
}

fn now(clock: i32) -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock));
    now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

fn words(r: &Regs) -> [u64; REGISTERS] {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
        r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ]
}

/// Questions that only the thread itself may ask, and where their answers go.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    altstack: u64,
    tid_address: u64,
    death_signal: u64,
}

const PR_GET_TID_ADDRESS: u64 = 40;

/// Adds this file's questions for one thread.
pub fn ask(questions: &mut Questions) -> Asked {
    let (altstack, tid_address, death_signal) = (questions.room(24), questions.room(8), questions.room(4));
    questions.ask(libc::SYS_sigaltstack, &[0, altstack]);
    questions.ask(libc::SYS_prctl, &[PR_GET_TID_ADDRESS, tid_address]);
    questions.ask(libc::SYS_prctl, &[libc::PR_GET_PDEATHSIG as u64, death_signal]);
    Asked { altstack, tid_address, death_signal }
}

/// Captures a stopped thread. `regs` and `xstate` are its own, not those of a call made on its behalf; `name` is its name, if that is
/// known already.
///
/// # Errors
/// When the thread is gone.
pub fn capture(
    pid: i32,
    tid: i32,
    name: Option<Vec<u8>>,
    (regs, mut xstate): (&Regs, Vec<u8>),
    asked: Asked,
    answers: &Answers,
    wait: Option<Wait>,
) -> Result<Thread> {
    let failed = |what: &str, e: std::io::Error| Error::system(format!("reading {what} of thread {tid}"), e);
    let name = match name {
        Some(name) => name,
        None => name_of(pid, tid).map_err(|e| failed("the name", e))?,
    };
    let rseq = ptrace::rseq(tid).unwrap_or_default();
    let xstate_len = xstate.len() as u32;
    xstate.truncate(used(&xstate));
    let mut regs = *regs;
    leave_critical_section(pid, &mut regs, &rseq);
    Ok(Thread {
        tid,
        name,
        regs: words(&regs),
        xstate,
        xstate_len,
        rseq: (rseq.address, rseq.size, rseq.signature),
        robust_list: task::robust_list(tid).map_err(|e| failed("the robust list", e.into()))?,
        clear_child_tid: answers.word(asked.tid_address),
        altstack: (answers.word(asked.altstack), answers.int(asked.altstack + 8), answers.word(asked.altstack + 16)),
        wait,
        parent_death_signal: answers.int(asked.death_signal),
    })
}

/// Bytes without the zeroes at their end, most of which are passed over many at a time.
fn used(bytes: &[u8]) -> usize {
    const MANY: usize = 64;
    let zeroes = bytes.rchunks_exact(MANY).take_while(|chunk| **chunk == [0; MANY]).count() * MANY;
    let rest = &bytes[..bytes.len() - zeroes];
    rest.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

fn name_of(pid: i32, tid: i32) -> std::io::Result<Vec<u8>> {
    let name = procfs::bytes(&format!("/proc/{pid}/task/{tid}/comm"))?;
    Ok(name.strip_suffix(b"\n").unwrap_or(&name).to_vec())
}

/// Captures the main thread of a stopped process, which has ended.
///
/// # Errors
/// When the process is gone.
pub fn capture_head(pid: i32) -> Result<Head> {
    let failed = |e| Error::system(format!("examining the ended main thread of pid {pid}"), e);
    let name = name_of(pid, pid).map_err(failed)?;
    let text = procfs::text(&format!("/proc/{pid}/task/{pid}/stat")).map_err(failed)?;
    // The last field of proc(5)'s `stat`, as wait(2) would tell of it.
    let status = text.split_whitespace().next_back().and_then(|word| word.parse::<i32>().ok()).unwrap_or(0);
    Ok(Head { name, code: (status >> 8) as u8 })
}

/// A thread stopped inside a restartable sequence goes on at its abort handler, as after any preemption: the kernel forgets
/// the section when the restored thread registers again. `struct rseq_cs` of `include/uapi/linux/rseq.h`.
fn leave_critical_section(pid: i32, regs: &mut Regs, rseq: &ptrace::Rseq) {
    let word = |at: u64| {
        let mut buf = [0; 8];
        let range = vm::Range { start: at, len: 8 };
        vm::read(procfs::voice(pid), &[range], &mut buf).is_ok_and(|n| n == 8).then(|| u64::from_le_bytes(buf))
    };
    if rseq.address == 0 {
        return;
    }
    let Some(section) = word(rseq.address + 8).filter(|s| *s != 0) else { return };
    if let (Some(start), Some(len), Some(abort)) = (word(section + 8), word(section + 16), word(section + 24))
        && (start..start.wrapping_add(len)).contains(&regs.rip)
    {
        regs.rip = abort;
    }
}

/// Before anything is restored: the CPU must have the extended state that the threads use.
///
/// # Errors
/// [`Error::NotHere`] that names the missing features.
pub fn check(threads: &Threads) -> Result<()> {
    let here = crate::sys::cpu::enabled_features();
    let used = threads.all.iter().fold(0, |all, t| all | t.xstate_in_use());
    let layout_differs = threads
        .all
        .iter()
        .any(|t| t.xstate_features() != here && t.xstate_len as usize != crate::sys::cpu::xstate_len_without(0));
    let missing = used & !here;
    if missing == 0 && !layout_differs {
        return Ok(());
    }
    let why = if missing == 0 {
        "the CPU that it was taken on lays out its extended state differently".to_owned()
    } else {
        format!("this CPU lacks extended-state features that the job was using (XCR0 bits {missing:#x})")
    };
    Err(Error::NotHere {
        what: "the checkpoint".to_owned(),
        why,
        todo: "restore it on the same kind of CPU".to_owned(),
    })
}

/// Calls that a restored thread makes for itself. Its alternate stack is read from `altstack_at`, where
/// [`altstack_bytes`] lie.
pub fn restore_calls(thread: &Thread, altstack_at: u64) -> Vec<Call> {
    let mut calls = vec![
        Call::new(libc::SYS_set_tid_address, &[thread.clear_child_tid]),
        Call::new(libc::SYS_sigaltstack, &[altstack_at, 0]),
        Call::new(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, thread.parent_death_signal as u64]),
    ];
    if thread.robust_list.0 != 0 {
        calls.push(Call::new(libc::SYS_set_robust_list, &[thread.robust_list.0, thread.robust_list.1]));
    }
    let (address, len, signature) = thread.rseq;
    if address != 0 {
        calls.push(Call::new(libc::SYS_rseq, &[address, u64::from(len), 0, u64::from(signature)]));
    }
    calls
}

/// The thread's alternate stack as a `stack_t`. `SS_ONSTACK` only says where the thread was, and may not be set.
pub fn altstack_bytes(thread: &Thread) -> [u8; 24] {
    let (sp, flags, size) = thread.altstack;
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&sp.to_le_bytes());
    bytes[8..12].copy_from_slice(&(flags & !libc::SS_ONSTACK).to_le_bytes());
    bytes[16..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// Whether the thread is one that the kernel will not let us reproduce.
pub fn refusals(pid: i32, tid: i32, status: &Status) -> Vec<crate::error::Refusal> {
    let mut refusals = Vec::new();
    let mut refuse = |why: &str, todo: &str| {
        let place = format!("thread {tid}");
        refusals.push(crate::error::Refusal { pid, place, why: why.to_owned(), todo: todo.to_owned() });
    };
    if let Some(tracer) = freeze::other_tracer(status) {
        refuse(&format!("is traced by {tracer}"), "let that one detach first");
    }
    if status.get("x86_Thread_features").contains("shstk") {
        refuse("uses a shadow stack", "start the job with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off");
    }
    refusals
}

impl Sound for Threads {
    fn fault(&self) -> Option<String> {
        /// Far more than any CPU has.
        const MOST: u32 = 1 << 20;
        let wrong = self.all.iter().find(|t| t.xstate_len > MOST || t.xstate.len() > t.xstate_len as usize);
        wrong
            .map(|t| format!("the extended state of thread {} has {} of {} bytes", t.tid, t.xstate.len(), t.xstate_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_at_the_end_are_not_counted() {
        for (len, last) in
            [(0, None::<usize>), (64, None), (200, None), (200, Some(0)), (200, Some(71)), (2696, Some(2695))]
        {
            let mut bytes = vec![0; len];
            if let Some(at) = last {
                bytes[at] = 1;
            }
            assert_eq!(used(&bytes), last.map_or(0, |at| at + 1), "{len} bytes, {last:?}");
        }
    }
}
