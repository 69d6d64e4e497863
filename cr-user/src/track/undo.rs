//! What the kernel will undo in System V semaphores when a process ends (`SEM_UNDO`): no system call tells it. See `ipc/sem.c`.

use std::collections::HashMap;

use super::btf::{Btf, BtfError};
use super::hints::HintsError;

/// What is undone for a task, or for all tasks that share the list (`CLONE_SYSVSEM`, as threads do).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoList {
    /// The kernel's address of the list: only a name for it.
    pub name: u64,
    /// By set, in the order of its semaphores, what is added to each; sets that are gone are left out.
    pub sets: Vec<(i32, Vec<i16>)>,
}

/// Where the fields are in this kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct UndoLayout {
    list_head: u64,
    undo_entry: u64,
    undo_set: u64,
    undo_adjustments: u64,
    /// The adjustments are somewhere else, where a pointer leads; since Linux 6.11 they end the structure.
    by_pointer: bool,
}

impl UndoLayout {
    pub(super) fn of(kernel: &Btf) -> Result<Self, BtfError> {
        let at = |structure: &str, path: &str| kernel.offset(structure, path).map(u64::from);
        // Where a task has the name of its list: `iter/task` tells it.
        at("task_struct", "sysvsem.undo_list")?;
        let undo_adjustments = at("sem_undo", "semadj")?;
        Ok(Self {
            list_head: at("sem_undo_list", "list_proc")?,
            undo_entry: at("sem_undo", "list_proc")?,
            undo_set: at("sem_undo", "semid")?,
            undo_adjustments,
            by_pointer: undo_adjustments % 8 == 0 && undo_adjustments + 8 <= u64::from(kernel.size("sem_undo")?),
        })
    }
}

/// The list at `name`; `sizes` tells of each set how many semaphores it has.
pub(super) fn list(
    name: u64,
    layout: UndoLayout,
    sizes: &HashMap<i32, usize>,
    mut peek: impl FnMut(&[u64]) -> Result<Vec<u64>, HintsError>,
) -> Result<UndoList, HintsError> {
    /// A list that does not end is none.
    const MOST: usize = 1 << 16;
    let head = name + layout.list_head;
    let mut sets = Vec::new();
    let mut entry = peek(&[head])?[0];
    for _ in 0..MOST {
        if entry == head {
            return Ok(UndoList { name, sets });
        }
        if entry == 0 {
            break;
        }
        let undo = entry - layout.undo_entry;
        let told = peek(&[entry, undo + layout.undo_set, undo + layout.undo_adjustments])?;
        entry = told[0];
        let Some(size) = sizes.get(&(told[1] as i32)) else { continue };
        let first = if layout.by_pointer { told[2] } else { undo + layout.undo_adjustments };
        let words: Vec<u64> = (0..size.div_ceil(4)).map(|n| first + 8 * n as u64).collect();
        let bytes: Vec<u8> = peek(&words)?.into_iter().flat_map(u64::to_le_bytes).collect();
        let all = bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]]));
        sets.push((told[1] as i32, all.take(*size).collect()));
    }
    Err(HintsError::Map { map: "PEEK", why: "a list of semaphore adjustments cannot be followed".into() })
}
