//! Processes that have ended, and whose parents have not noticed: only how they ended is left of them.

use std::fs;

use crate::error::{Error, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::procfs::{self, Status};

/// The record of the job's zombies.
pub const KIND: RecordKind = RecordKind { id: 12, version: 1, name: "zombies" };

/// One zombie.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Zombie {
    /// Its pid.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// The signal that its parent got, or will get; 0 for none.
    pub exit_signal: i32,
    /// How it ended, as `wait(2)` tells.
    pub status: i32,
    /// The user that it ran as.
    pub uid: u32,
    /// Its name, at most 15 bytes.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub name: Vec<u8>,
}

/// Captures a zombie whose parent stands still.
///
/// # Errors
/// When it is gone.
pub fn capture(pid: i32) -> Result<Zombie> {
    let failed = |e| Error::system(format!("examining the ended process {pid}"), e);
    let stat = procfs::stat(pid).map_err(failed)?;
    // Numbers are those of proc(5), which counts from 1 and has two fields before the state.
    let field = |n: usize| stat.get(n - 3).and_then(|v| v.parse::<i32>().ok()).unwrap_or(0);
    let status = Status::read(pid, pid).map_err(failed)?;
    let name = fs::read(format!("/proc/{pid}/comm")).map_err(failed)?;
    Ok(Zombie {
        pid,
        ppid: field(4),
        pgid: field(5),
        sid: field(6),
        exit_signal: field(38),
        status: field(52),
        uid: status.numbers("Uid").first().copied().unwrap_or(0),
        name: name.strip_suffix(b"\n").unwrap_or(&name).to_vec(),
    })
}

impl Sound for Zombie {}
