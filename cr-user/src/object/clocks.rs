//! The clocks that count from the machine's start: a job that goes on after a reboot, or on another machine, must not see
//! them jump back. Deadlines that it had set by them would lie days ahead.
//!
//! Where the clocks here do not go on where the job's had got to, the job is put into a time namespace whose clocks do
//! (`time_namespaces(7)`). They then show the time that passed in between, as if the machine had been on all along.

use std::fs;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::gettid;

use crate::error::{Error, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::procfs::{self, clock_offsets};

/// The record of a process's clocks.
pub const KIND: RecordKind = RecordKind { id: 9, version: 1, name: "clocks" };

const SECOND: i64 = 1_000_000_000;

/// Clocks of one process at the checkpoint, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Clocks {
    /// The process.
    pub pid: i32,
    /// The boot that the clocks count from.
    pub boot_id: String,
    /// `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` outside any time namespace.
    pub since_boot: [i64; 2],
    /// What the process's time namespace adds to them.
    pub offsets: [i64; 2],
    /// `CLOCK_REALTIME`.
    pub realtime: i64,
}

/// Captures the clocks of a process.
///
/// # Errors
/// When they cannot be read.
pub fn capture(pid: i32) -> Result<Clocks> {
    Ok(Clocks {
        pid,
        boot_id: boot_id(),
        since_boot: since_boot()?,
        offsets: clock_offsets(&procfs::voice(pid).to_string()),
        realtime: read(ClockId::CLOCK_REALTIME)?,
    })
}

/// Offsets that the restored process's clocks need here; none when ours will do.
///
/// # Errors
/// When our clocks cannot be read.
pub fn needed(saved: &Clocks) -> Result<Option<[i64; 2]>> {
    // What this thread's children would get, which after a shift is not what it has itself.
    let ours = clock_offsets(&gettid().to_string());
    let wanted = if saved.boot_id == boot_id() {
        saved.offsets
    } else {
        let passed = (read(ClockId::CLOCK_REALTIME)? - saved.realtime).max(0);
        let now = since_boot()?;
        [0, 1].map(|i| saved.since_boot[i] + saved.offsets[i] + passed - now[i])
    };
    Ok((wanted != ours).then_some(wanted))
}

/// Has processes that the calling thread makes from now on be in a time namespace with these offsets. A thread of several
/// cannot go back; [`needed`] knows that.
///
/// # Errors
/// When the kernel has no time namespaces, or we may not make one.
pub fn shift(offsets: [i64; 2]) -> Result<()> {
    let failed = |e: std::io::Error| Error::NotHere {
        what: "the job's clocks".to_owned(),
        why: format!("they must go on where they had got to, which takes a time namespace ({e})"),
        todo: "run cr as root, on a kernel with time namespaces (Linux 5.6)".to_owned(),
    };
    unshare(CLONE_NEWTIME).map_err(|e| failed(e.into()))?;
    let line = |clock: &str, ns: i64| format!("{clock} {} {}\n", ns.div_euclid(SECOND), ns.rem_euclid(SECOND));
    let text = line("monotonic", offsets[0]) + &line("boottime", offsets[1]);
    fs::write(format!("/proc/{}/timens_offsets", gettid()), text).map_err(failed)
}

/// Not in `nix` yet.
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

fn boot_id() -> String {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    let read = || procfs::text("/proc/sys/kernel/random/boot_id").map(|t| t.trim().to_owned()).unwrap_or_default();
    BOOT_ID.get_or_init(read).clone()
}

/// Our own clocks without what our time namespace adds to them.
fn since_boot() -> Result<[i64; 2]> {
    let ours = clock_offsets("self");
    Ok([read(ClockId::CLOCK_MONOTONIC)? - ours[0], read(ClockId::CLOCK_BOOTTIME)? - ours[1]])
}

fn read(clock: ClockId) -> Result<i64> {
    let now = clock_gettime(clock).map_err(|e| Error::system("reading a clock", e))?;
    Ok(now.tv_sec() * SECOND + now.tv_nsec())
}

impl Sound for Clocks {}
