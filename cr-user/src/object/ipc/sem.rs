//! Sets of semaphores: their values, who operated on each last, and what is undone when a process ends (`SEM_UNDO`).
//!
//! What will be undone is told by no system call; an eBPF program reads it (`track/undo.rs`). Without it nobody knows, and a
//! job with semaphores is refused: to lose an adjustment would leave others waiting for ever for what a dead process held.
//!
//! An adjustment can only be made by the process whose it is, by an operation with `SEM_UNDO`; and to set a value clears all
//! adjustments of that semaphore. So a restore begins with 0 (see [`Set::steps`]): each process whose adjustment is `a`
//! operates by `-a` with `SEM_UNDO`, and takes that back without. At last whoever operated last adds the value.

use super::table::{Plan, Wanted};
use super::{Findings, Found, Ipc, Kind, Object, Row, Usage, Users};
use crate::error::{Error, Refusal, Result};
use crate::sys::ipc::{self as calls, Ask};

/// A set.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Set {
    /// What it has in common with other objects.
    pub object: Object,
    /// By semaphore, its value.
    pub values: Vec<u16>,
    /// By semaphore, who operated on it last; 0 for nobody yet.
    pub last: Vec<i32>,
    /// What is undone.
    pub undo: Vec<Undone>,
}

/// What is added to a semaphore when a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Undone {
    /// The process.
    pub pid: i32,
    /// The set.
    pub set: i32,
    /// The semaphore in it.
    pub number: u16,
    /// What is added.
    pub adjustment: i16,
}

/// How many semaphores each set of the namespace has, by id.
///
/// # Errors
/// When the list cannot be read.
pub fn sizes() -> Result<std::collections::HashMap<i32, usize>> {
    Ok(Kind::Semaphores.rows()?.into_iter().map(|row| (row.id, row.get("nsems") as usize)).collect())
}

/// That nobody can tell what is undone.
pub fn not_seen(pid: i32, id: i32, why: &str) -> Refusal {
    Refusal {
        pid,
        place: format!("{} {id}", Kind::Semaphores.name()),
        why: format!("may have adjustments (SEM_UNDO), which only eBPF programs can see ({why})"),
        todo: "run cr where it can load eBPF programs (see cr check), or have the job remove the set".to_owned(),
    }
}

/// That tasks share their adjustments in a way that cannot be made again.
pub fn strange_sharing(pid: i32, other: i32) -> Refusal {
    Refusal {
        pid,
        place: "the process".to_owned(),
        why: format!(
            "has semaphore adjustments (SEM_UNDO) that are not those of all its threads, or also of pid {other}"
        ),
        todo: "have the job share them as threads do (CLONE_SYSVSEM), or operate without SEM_UNDO".to_owned(),
    }
}

/// Who operated last on each semaphore; `None` if there is no such set any more.
fn last_of(row: &Row) -> Option<Vec<i32>> {
    (0..row.get("nsems") as usize).map(|n| calls::ask_semaphore(row.id, n, Ask::Pid).ok()).collect()
}

/// The job's sets.
pub(super) fn find(users: &Users<'_>) -> Result<Findings> {
    let undone = |row: &Row| users.undo.iter().find(|u| u.set == row.id).map(|u| u.pid);
    super::find(Kind::Semaphores, users, |row| {
        let mut usage = Usage::by(last_of(row)?, &users.pids, row);
        usage.last.extend(undone(row));
        Some(usage)
    })
}

/// The id of any set of the job.
///
/// # Errors
/// When the list cannot be read.
pub fn first_of(users: &Users<'_>) -> Result<Option<i32>> {
    let found = find(users)?.found;
    // Nobody can tell whose it is only probably.
    Ok(found.iter().find(|f| !f.object.probably).map(|f| f.row.id))
}

pub(super) fn capture(found: Found, undo: &[Undone]) -> Result<Set> {
    let Found { row, object, mut usage } = found;
    let values = calls::semaphore_values(row.id, row.get("nsems") as usize)
        .map_err(|e| Error::system(format!("reading {} {}", Kind::Semaphores.name(), row.id), e))?;
    usage.last.truncate(values.len());
    let undo = undo.iter().filter(|u| u.set == row.id).copied().collect();
    Ok(Set { object, values, last: usage.last, undo })
}

/// One operation on one semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The semaphore.
    pub number: u16,
    /// What is added.
    pub add: i16,
    /// Whether that is undone at the end of whoever does it.
    pub undo: bool,
}

impl Operation {
    /// As `semop(2)` takes it (`struct sembuf`). None of these ever waits.
    pub fn bytes(self) -> [u8; 6] {
        let flags = libc::IPC_NOWAIT as i16 | if self.undo { 0x1000 } else { 0 };
        let mut bytes = [0; 6];
        bytes[..2].copy_from_slice(&self.number.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.add.to_le_bytes());
        bytes[4..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }
}

impl Set {
    /// What a restore does about it.
    ///
    /// # Errors
    /// [`Error::NotHere`] when it, or its key, is somebody else's.
    pub fn plan(&self, ipc: &Ipc) -> Result<Plan> {
        let usage_of = |row: &Row| {
            let mut usage = Usage::by(last_of(row).unwrap_or_default(), &ipc.pids, row);
            let waits = |n: &usize| {
                let count = |what| calls::ask_semaphore(row.id, *n, what).unwrap_or(0);
                count(Ask::WaitToGrow) + count(Ask::WaitForZero) > 0
            };
            if usage.stranger.is_none() && (0..self.values.len()).any(|n| waits(&n)) {
                usage.stranger = Some(0);
            }
            usage
        };
        let same = |row: &Row| {
            calls::semaphore_values(row.id, self.values.len()).is_ok_and(|now| now == self.values)
                && last_of(row).is_some_and(|now| now == self.last)
        };
        let size = ("nsems", self.values.len() as u64);
        Wanted { kind: Kind::Semaphores, object: &self.object, size }.plan(ipc, usage_of, same)
    }

    /// What brings a set whose semaphores are all 0, without adjustments, to where it was: who does what, in this order.
    /// Any process may stand in for one that has ended, or for 0.
    pub fn steps(&self) -> Vec<(i32, Vec<Operation>)> {
        let mut steps = Vec::new();
        for undone in &self.undo {
            let (number, change) = (undone.number, undone.adjustment.saturating_neg());
            let with = Operation { number, add: change, undo: true };
            let without = Operation { number, add: undone.adjustment, undo: false };
            // The value must never be less than 0.
            steps.push((undone.pid, if change > 0 { vec![with, without] } else { vec![without, with] }));
        }
        for (number, (value, last)) in self.values.iter().zip(&self.last).enumerate() {
            let add = Operation { number: number as u16, add: *value as i16, undo: false };
            if *last != 0 || *value != 0 || self.undo.iter().any(|u| usize::from(u.number) == number) {
                steps.push((*last, vec![add]));
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel does it.
    fn apply(steps: &[(i32, Vec<Operation>)], count: usize) -> (Vec<i32>, Vec<Undone>) {
        let (mut values, mut undo) = (vec![0i32; count], Vec::new());
        for (pid, operations) in steps {
            for op in operations {
                let value = &mut values[usize::from(op.number)];
                *value += i32::from(op.add);
                assert!((0..=32767).contains(value), "{steps:?}");
                if op.undo {
                    undo.push(Undone { pid: *pid, set: 1, number: op.number, adjustment: -op.add });
                }
            }
        }
        (values, undo)
    }

    #[test]
    fn steps_lead_to_values_and_adjustments_within_bounds() {
        let object = Object { id: 1, key: 0, mode: 0o600, uid: 0, gid: 0, cuid: 0, cgid: 0, probably: false };
        let undone = |pid, number, adjustment| Undone { pid, set: 1, number, adjustment };
        let undo = vec![undone(7, 0, 32767), undone(8, 0, -32767), undone(7, 2, -5), undone(9, 2, 1)];
        let set = Set { object, values: vec![32767, 0, 0, 9], last: vec![7, 0, 8, 0], undo };
        let (values, undo) = apply(&set.steps(), 4);
        assert_eq!(values, [32767, 0, 0, 9]);
        assert_eq!(undo, set.undo);
        assert!(!set.steps().iter().flat_map(|(_, all)| all).any(|op| op.number == 1), "nobody has used it");
    }

    #[test]
    fn an_operation_is_as_the_kernel_reads_it() {
        let op = Operation { number: 0x0102, add: -1, undo: true };
        assert_eq!(op.bytes(), [2, 1, 0xff, 0xff, 0, 0x18]);
    }
}
