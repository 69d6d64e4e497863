//! Timers: the three interval timers and POSIX timers.

use std::fs;

use crate::error::{Error, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::procfs;
use crate::remote::{Answers, Call, Questions};

/// The record of a process's timers.
pub const KIND: RecordKind = RecordKind { id: 5, version: 1, name: "timers" };

/// Timers of one process. Times are those left at the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Timers {
    /// The process.
    pub pid: i32,
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`: interval and time left, each as seconds and microseconds.
    pub interval: [[u64; 4]; 3],
    /// POSIX timers, by id.
    pub posix: Vec<PosixTimer>,
}

/// One POSIX timer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PosixTimer {
    /// Its id.
    pub id: i32,
    /// Its clock.
    pub clock: i32,
    /// `SIGEV_*`.
    pub notify: i32,
    /// The signal.
    pub signal: i32,
    /// The value that the signal carries.
    pub value: u64,
    /// The thread notified, with `SIGEV_THREAD_ID`.
    pub tid: i32,
    /// Interval and time left, each as seconds and nanoseconds.
    pub time: [u64; 4],
}

/// Where the answers to [`ask`] go.
#[derive(Debug)]
pub struct Asked {
    interval: u64,
    posix: Vec<(PosixTimer, u64)>,
}

/// Adds this file's questions for the process.
///
/// # Errors
/// When `/proc/PID/timers` cannot be read.
pub fn ask(pid: i32, questions: &mut Questions) -> Result<Asked> {
    let interval = questions.room(3 * 32);
    for which in 0..3 {
        questions.ask(libc::SYS_getitimer, &[which, interval + which * 32]);
    }
    let mut posix = Vec::new();
    for timer in listed(pid)? {
        let at = questions.room(32);
        questions.ask(libc::SYS_timer_gettime, &[timer.id as u64, at]);
        posix.push((timer, at));
    }
    Ok(Asked { interval, posix })
}

/// What the kernel answered.
pub fn capture(pid: i32, asked: &Asked, answers: &Answers) -> Timers {
    let four = |at: u64| [0, 1, 2, 3].map(|i| answers.word(at + i * 8));
    let posix = asked.posix.iter().map(|(timer, at)| PosixTimer { time: four(*at), ..timer.clone() }).collect();
    Timers { pid, interval: [0, 1, 2].map(|i| four(asked.interval + i * 32)), posix }
}

/// Timers as `/proc/PID/timers` lists them, without their times.
fn listed(pid: i32) -> Result<Vec<PosixTimer>> {
    let path = format!("/proc/{pid}/timers");
    let text = match procfs::text(&path) {
        Ok(text) => text,
        // Built without CONFIG_POSIX_TIMERS: then there are none.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && fs::exists(format!("/proc/{pid}")).unwrap_or(false) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::system(format!("reading {path}"), e)),
    };
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else { continue };
        if key == "ID" {
            let id = value.trim().parse().unwrap_or(0);
            timers.push(PosixTimer { id, clock: 0, notify: 0, signal: 0, value: 0, tid: 0, time: [0; 4] });
        }
        let Some(timer) = timers.last_mut() else { continue };
        match key {
            "signal" => {
                let (signal, carried) = value.split_once('/').unwrap_or((value, "0"));
                timer.signal = signal.trim().parse().unwrap_or(0);
                timer.value = u64::from_str_radix(carried.trim().trim_start_matches("0x"), 16).unwrap_or(0);
            }
            "notify" => {
                let (how, who) = value.split_once('/').unwrap_or((value, ""));
                timer.notify = match how.trim() {
                    "signal" => libc::SIGEV_SIGNAL,
                    "thread" => libc::SIGEV_THREAD,
                    _ => libc::SIGEV_NONE,
                };
                if let Some(tid) = who.trim().strip_prefix("tid.") {
                    timer.notify |= libc::SIGEV_THREAD_ID;
                    timer.tid = tid.parse().unwrap_or(0);
                }
            }
            "ClockID" => timer.clock = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    Ok(timers)
}

impl Timers {
    /// Whether the queued signal (its `siginfo_t`) tells of a periodic timer. It is not queued again as it is: how often the
    /// timer ran over meanwhile is found out only when the signal is taken, and only for the timer's own signal.
    pub fn own(&self, info: &[u8]) -> Option<i32> {
        let int = |at: usize| info.get(at..at + 4).map(|b| i32::from_le_bytes(b.try_into().expect("four bytes")));
        let (code, id) = (int(8)?, int(16)?);
        let periodic = |t: &&PosixTimer| t.id == id && t.time[..2] != [0, 0];
        (code == libc::SI_TIMER).then(|| self.posix.iter().find(periodic).map(|t| t.id))?
    }
}

/// Calls that make every timer again, armed with the time that was left, and the bytes that they read at `at` in the process.
/// Timers in `expired` had a signal waiting: they expire at once, and go on from there.
pub fn restore_calls(timers: &Timers, expired: &[i32], at: u64) -> (Vec<Call>, Vec<u8>) {
    const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
    let (mut calls, mut bytes) = (Vec::new(), Vec::<u8>::new());
    let mut put = |words: &[u64]| {
        let here = at + bytes.len() as u64;
        bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        here
    };
    for (which, time) in timers.interval.iter().enumerate() {
        let mut time = *time;
        if which == libc::ITIMER_REAL as usize && time[..2] != [0, 0] && time[2..] == [0, 0] {
            // Expired, its signal waits, and only the signal's delivery would start it again: it expires now (the signal is
            // waiting already, and cannot wait twice) and goes on from there. A time of 0 would switch it off.
            time[3] = 1;
        }
        if time.iter().any(|w| *w != 0) {
            let here = put(&time);
            calls.push(Call::new(libc::SYS_setitimer, &[which as u64, here, 0]));
        }
    }
    if !timers.posix.is_empty() {
        calls.push(Call::new(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 1]));
    }
    for timer in &timers.posix {
        // `struct sigevent`: value, signal and how, thread, and padding to 64 bytes; then the id that it must get.
        let how = u64::from(timer.signal as u32) | u64::from(timer.notify as u32) << 32;
        let event = put(&[timer.value, how, u64::from(timer.tid as u32), 0, 0, 0, 0, 0]);
        let id = put(&[u64::from(timer.id as u32)]);
        calls.push(Call::new(libc::SYS_timer_create, &[timer.clock as u64, event, id]));
        if timer.time.iter().any(|w| *w != 0) {
            let left = if expired.contains(&timer.id) { [0, 1] } else { [timer.time[2], timer.time[3]] };
            let here = put(&[timer.time[0], timer.time[1], left[0], left[1]]);
            calls.push(Call::new(libc::SYS_timer_settime, &[timer.id as u64, 0, here, 0]));
        }
    }
    if !timers.posix.is_empty() {
        calls.push(Call::new(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 0]));
    }
    (calls, bytes)
}

impl Sound for Timers {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_interval_timer_is_not_switched_off() {
        let interval = [[0, 50_000, 0, 0], [0; 4], [1, 0, 0, 7]];
        let (calls, bytes) = restore_calls(&Timers { pid: 1, interval, posix: Vec::new() }, &[], 0x1000);
        let numbers: Vec<u64> = calls.iter().map(|c| c.args[0]).collect();
        assert_eq!(numbers, [0, 2]);
        assert_eq!(bytes[24..32], 1u64.to_le_bytes());
        assert_eq!(bytes[56..64], 7u64.to_le_bytes());
    }
}
