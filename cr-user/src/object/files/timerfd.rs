//! Timers that are read from (`timerfd_create(2)`). A relative timer goes on with the time that it had left; an absolute one
//! keeps its point in time, by the clock that the job sees, and expires at once where that has passed.
//!
//! cr makes the timer; the job's own process sets it, just before it goes on: absolute times are those of its time namespace.

use std::os::fd::{AsFd, OwnedFd};

use nix::time::{ClockId, clock_gettime};

use super::batch::Batches;
use super::survey::{self, Info, Seen};
use super::{Holder, No, not_here, set_flags};
use crate::error::{Error, Result};
use crate::procfs;
use crate::remote::Call;
use crate::sys::events;

/// What `/proc/PID/fd` shows of one.
pub(super) const LINK: &str = "anon_inode:[timerfd]";
const SECOND: u64 = 1_000_000_000;
/// A relative timer that has ticks to give besides is never set to less than this, so that it does not expire before those are
/// put back.
const LEAST: u64 = 1_000_000;
const ABSOLUTE: u32 = libc::TFD_TIMER_ABSTIME as u32;
const CANCEL_ON_SET: u32 = libc::TFD_TIMER_CANCEL_ON_SET as u32;
/// `TFD_IOC_SET_TICKS` of `linux/timerfd.h`: `_IOW('T', 0, __u64)`.
const SET_TICKS: u64 = 0x4008_5400;

/// A timer. Times are in nanoseconds.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Timerfd {
    /// Its clock.
    pub clock: i32,
    /// Access mode and status flags (`O_*`).
    pub flags: i32,
    /// How it was set: `TFD_TIMER_*`.
    pub how: u32,
    /// How often it expired since it was read or set.
    pub ticks: u64,
    /// The time until it expires; 0 when it does not.
    pub left: u64,
    /// When that is by the job's clock, for one that was set to a point in time; else 0.
    pub end: u64,
    /// The time between its ticks; 0 when it expires once.
    pub interval: u64,
}

/// One look at `fdinfo`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Reading {
    clock: i32,
    how: u32,
    ticks: u64,
    left: u64,
    interval: u64,
}

impl Reading {
    fn of(info: &Info) -> std::result::Result<Self, No> {
        let number = |key: &str, radix: u32| info.get(key).and_then(|v| u64::from_str_radix(v, radix).ok());
        // `(seconds, nanoseconds)`
        let time = |key: &str| {
            let (seconds, nanoseconds) = info.get(key)?.strip_prefix('(')?.strip_suffix(')')?.split_once(", ")?;
            Some(seconds.parse::<u64>().ok()? * SECOND + nanoseconds.parse::<u64>().ok()?)
        };
        let all = || {
            Some(Self {
                clock: number("clockid:", 10)? as i32,
                how: number("settime flags:", 8)? as u32,
                ticks: number("ticks:", 10)?,
                left: time("it_value:")?,
                interval: time("it_interval:")?,
            })
        };
        all().ok_or_else(|| No::new("is a timerfd whose state the kernel does not tell".to_owned(), "try again"))
    }

    /// Whether it ticks, and the kernel has not counted since the last tick: it only does so when somebody asks, and until then does
    /// not tell when the next one is due.
    fn is_uncounted(&self) -> bool {
        self.interval > 0 && self.left == 0 && self.ticks > 0
    }

    /// Looks until time and ticks belong together: the kernel takes one after the other, and a tick may come between having them
    /// counted and looking. For the job nothing changes by it.
    fn consistent(holders: &[Holder<'_>], seen: &Seen) -> std::result::Result<Self, No> {
        const TRIES: usize = 100;
        let mut last = Self::of(&seen.info()?)?;
        for _ in 0..TRIES {
            if last.is_uncounted() {
                let asked = survey::fetch(holders, seen.pid, seen.fd).and_then(|fd| events::count_ticks(fd.as_fd()));
                asked.map_err(|e| No::new(format!("is a timerfd that cannot be asked ({e})"), "try again"))?;
            }
            let now = Self::of(&seen.info()?)?;
            if !now.is_uncounted() && (now.ticks, now.left == 0) == (last.ticks, last.left == 0) {
                return Ok(now);
            }
            last = now;
        }
        // It ticks faster than one can look: the next tick is now.
        Ok(Self { left: if last.is_uncounted() { 1 } else { last.left }, ..last })
    }
}

/// The record.
pub(super) fn describe(holders: &[Holder<'_>], seen: &Seen) -> std::result::Result<Timerfd, No> {
    let Reading { clock, how, ticks, left, interval } = Reading::consistent(holders, seen)?;
    // One that can only have been told that the clock was set: it has ticks, and is still to expire for the first time.
    if how & CANCEL_ON_SET != 0 && ticks > 0 && left > 0 {
        let why = "is a timerfd that may have been told that the clock was set (TFD_TIMER_CANCEL_ON_SET)".to_owned();
        return Err(No::new(why, "wait until the job has read it"));
    }
    let end = if how & ABSOLUTE != 0 && left > 0 { now(clock, seen.pid)? + left } else { 0 };
    Ok(Timerfd { clock, flags: seen.flags, how, ticks, left, end, interval })
}

/// What the job's clock shows now. Offsets in its time namespace are those that its children have.
fn now(clock: i32, pid: i32) -> std::result::Result<u64, No> {
    let (id, offset) = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => (ClockId::CLOCK_REALTIME, None),
        libc::CLOCK_MONOTONIC => (ClockId::CLOCK_MONOTONIC, Some(0)),
        _ => (ClockId::CLOCK_BOOTTIME, Some(1)),
    };
    let time = clock_gettime(id)
        .map_err(|e| No::new(format!("is a timerfd of clock {clock}, which cannot be read ({e})"), "try again"))?;
    let ours = time.tv_sec() as u64 * SECOND + time.tv_nsec() as u64;
    let offsets = |of: &str| offset.map_or(0, |which: usize| procfs::clock_offsets(of)[which]);
    Ok(ours.saturating_add_signed(offsets(&pid.to_string()) - offsets("self")))
}

impl Timerfd {
    /// Whether it can be made.
    pub(super) fn check(&self) -> Result<()> {
        self.open().map(drop)
    }

    /// Makes it; it is set by [`Self::set`].
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let fd = events::timerfd(self.clock, libc::TFD_CLOEXEC).map_err(|e| {
            let why = format!("no such timer can be made ({e})");
            not_here(format!("a timerfd of clock {}", self.clock), why, "run cr as root, on a kernel with that clock")
        })?;
        set_flags(fd.as_fd(), self.flags).map_err(|e| Error::system("making a timerfd of the job", e))?;
        Ok(fd)
    }

    /// Calls with which the process that has it as `fd` sets it.
    pub(super) fn set(&self, fd: i32, out: &mut Batches) {
        let (mut value, mut ticks) = (self.left, self.ticks);
        if self.how & ABSOLUTE != 0 && self.left > 0 {
            value = self.end;
            if self.interval > 0 {
                // Set to when the first of its ticks was due, it counts them all by itself, with those that pass until it is read.
                value = value.saturating_sub(ticks.saturating_mul(self.interval)).max(1);
                ticks = 0;
            }
        } else if self.left > 0 && ticks > 0 {
            value = value.max(LEAST);
        }
        set_time(fd, self.how, self.interval, value, out);
        if ticks > 0 {
            let at = out.put(&ticks.to_le_bytes());
            out.call(Call::new(libc::SYS_ioctl, &[fd as u64, SET_TICKS, at]));
        }
    }
}

/// Calls that have the timer that is `fd` expire at once.
pub(super) fn expire(fd: i32, out: &mut Batches) {
    set_time(fd, ABSOLUTE, 0, 1, out);
}

fn set_time(fd: i32, how: u32, interval: u64, value: u64, out: &mut Batches) {
    let words = [interval / SECOND, interval % SECOND, value / SECOND, value % SECOND];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = out.put(&bytes);
    out.call(Call::new(libc::SYS_timerfd_settime, &[fd as u64, how.into(), at, 0]));
}
