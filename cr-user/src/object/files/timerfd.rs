//! Timers as files (`timerfd`). One that was set to a point in time keeps it, by the job's clock; any other goes on with the
//! time that was left. Expirations that nobody has read yet stay.
//!
//! It is set by a process of the job itself, whose clocks may differ from ours (see [`clocks`](crate::object::clocks)).

use std::os::fd::OwnedFd;

use nix::time::{ClockId, clock_gettime};

use super::survey::Seen;
use crate::error::{Error, Result};
use crate::remote::Call;
use crate::sys::anon;

const SECOND: i128 = 1_000_000_000;

/// A timer.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Timerfd {
    /// Its clock (`CLOCK_*`).
    pub clock: i32,
    /// `TFD_TIMER_*`.
    pub set_flags: i32,
    /// Expirations that were not read.
    pub ticks: u64,
    /// Nanoseconds between expirations; 0 for one expiration.
    pub interval: u64,
    /// Nanoseconds until the next expiration; 0 when it is not armed.
    pub left: u64,
    /// What its clock showed the job then, in nanoseconds.
    pub now: i64,
    /// Status flags (`O_*`).
    pub flags: i32,
}

/// The record, from what `fdinfo` says. `offsets`: what the job's time namespace adds to `CLOCK_MONOTONIC` and
/// `CLOCK_BOOTTIME`, compared with ours.
pub(super) fn describe(seen: &Seen, info: &str, offsets: [i64; 2]) -> Timerfd {
    let value = |key: &str| info.lines().find_map(|l| l.strip_prefix(key)).map_or("", str::trim);
    // `(seconds, nanoseconds)`
    let time = |key: &str| {
        let text = value(key).trim_matches(['(', ')']);
        let mut parts = text.split(',').filter_map(|p| p.trim().parse::<u64>().ok());
        parts.next().unwrap_or(0) * SECOND as u64 + parts.next().unwrap_or(0)
    };
    let clock = value("clockid:").parse().unwrap_or(0);
    let ours = clock_gettime(ClockId::from_raw(clock)).map_or(0, |t| t.tv_sec() * SECOND as i64 + t.tv_nsec());
    let offset = match clock {
        libc::CLOCK_MONOTONIC => offsets[0],
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => offsets[1],
        _ => 0,
    };
    Timerfd {
        clock,
        set_flags: i32::from_str_radix(value("settime flags:"), 8).unwrap_or(0),
        ticks: value("ticks:").parse().unwrap_or(0),
        interval: time("it_interval:"),
        left: time("it_value:"),
        now: ours + offset,
        flags: seen.flags,
    }
}

impl Timerfd {
    /// A new one for the same clock, not set yet.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let flags = libc::TFD_CLOEXEC | if self.flags & libc::O_NONBLOCK != 0 { libc::TFD_NONBLOCK } else { 0 };
        anon::timerfd(self.clock, flags).map_err(|e| Error::system("making a timer of the job", e))
    }

    /// The calls by which a process that has it as `fd` sets it. Their bytes will lie at `at`.
    pub(super) fn set_calls(&self, fd: i32, at: u64) -> (Vec<Call>, Vec<u8>) {
        /// `_IOW('T', 0, __u64)` of `linux/timerfd.h`.
        const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
        let (mut calls, mut bytes) = (Vec::new(), Vec::new());
        if self.left != 0 {
            let absolute = self.set_flags & libc::TFD_TIMER_ABSTIME != 0;
            let end = i128::from(self.now) + i128::from(self.left);
            let first = if absolute { end.max(1) } else { self.left.into() };
            let interval = i128::from(self.interval);
            for part in [interval / SECOND, interval % SECOND, first / SECOND, first % SECOND] {
                bytes.extend_from_slice(&(part as u64).to_le_bytes());
            }
            calls.push(Call::new(libc::SYS_timerfd_settime, &[fd as u64, self.set_flags as u64, at, 0]));
        }
        if self.ticks != 0 {
            let here = at + bytes.len() as u64;
            bytes.extend_from_slice(&self.ticks.to_le_bytes());
            calls.push(Call::new(libc::SYS_ioctl, &[fd as u64, TFD_IOC_SET_TICKS, here]));
        }
        (calls, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_in_time_stays_and_a_duration_goes_on() {
        let mut timer =
            Timerfd { clock: 1, set_flags: 1, ticks: 0, interval: 0, left: 1_500_000_000, now: 10, flags: 0 };
        let (calls, bytes) = timer.set_calls(7, 0x1000);
        assert_eq!((calls.len(), calls[0].args[..3].to_vec()), (1, vec![7, 1, 0x1000]));
        assert_eq!(bytes[16..32], [1u64.to_le_bytes(), 500_000_010u64.to_le_bytes()].concat());
        timer.set_flags = 0;
        timer.ticks = 3;
        let (calls, bytes) = timer.set_calls(7, 0x1000);
        assert_eq!(bytes[16..40], [1u64.to_le_bytes(), 500_000_000u64.to_le_bytes(), 3u64.to_le_bytes()].concat());
        assert_eq!(calls[1].args[2], 0x1000 + 32);
    }
}
