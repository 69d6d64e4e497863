//! A witness that keeps a record of what is changed, and makes changes fail.

use std::io::Error;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use cr::disk::{Operation, Verdict, Witness};

/// A change that was made. Paths begin below the root.
#[derive(Debug, Clone)]
pub enum Change {
    CreateDir(PathBuf),
    Create(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    SetLen(PathBuf, u64),
    SyncData(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
}

/// How a change fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Io,
    Full,
    /// Half of it is written, and the other half by the next write.
    Short,
    /// Half of it is written, and then the disk is full.
    ShortThenFull,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::Io, Self::Full, Self::Short, Self::ShortThenFull];
}

/// The next change of that kind fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    SyncDir,
    Remove,
}

#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    changes: Vec<Change>,
    asked: usize,
    fault: Option<(usize, Fault)>,
    /// How many changes there were when it struck.
    struck: Option<usize>,
    traps: Vec<Trap>,
}

impl Recorder {
    pub fn new(root: &Path, fault: Option<(usize, Fault)>) -> Self {
        Self { root: root.to_owned(), state: Mutex::new(State { fault, ..State::default() }) }
    }

    pub fn changes(&self) -> Vec<Change> {
        self.state().changes.clone()
    }

    /// How many changes there were so far.
    pub fn position(&self) -> usize {
        self.state().changes.len()
    }

    pub fn asked(&self) -> usize {
        self.state().asked
    }

    pub fn struck(&self) -> Option<usize> {
        self.state().struck
    }

    pub fn set_traps(&self, traps: &[Trap]) {
        self.state().traps = traps.to_vec();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic in here")
    }

    /// None for what is not below the root.
    fn change(&self, operation: &Operation<'_>) -> Option<Change> {
        let below = |path: &Path| path.strip_prefix(&self.root).ok().map(Path::to_owned);
        Some(match *operation {
            Operation::CreateDir(path) => Change::CreateDir(below(path)?),
            Operation::SetMode(_) => return None,
            Operation::Create(path) => Change::Create(below(path)?),
            Operation::Write { path, offset, bytes } => Change::Write(below(path)?, offset, bytes.to_vec()),
            Operation::SetLen { path, len } => Change::SetLen(below(path)?, len),
            Operation::SyncData(path) => Change::SyncData(below(path)?),
            Operation::Rename { from, to } => Change::Rename(below(from)?, below(to)?),
            Operation::Remove(path) => Change::Remove(below(path)?),
            Operation::SyncDir(path) => Change::SyncDir(below(path)?),
        })
    }
}

impl Witness for Recorder {
    fn judge(&self, operation: &Operation<'_>) -> Verdict {
        let mut state = self.state();
        let at = state.asked;
        state.asked += 1;
        if let Some((when, fault)) = state.fault
            && (at == when || at == when + 1)
        {
            let full = || Error::from_raw_os_error(libc::ENOSPC);
            let verdict = match (fault, operation, at - when) {
                (Fault::Io, _, 0) => Some(Verdict::Fail(Error::from_raw_os_error(libc::EIO))),
                (Fault::Full, _, 0) => Some(Verdict::Fail(full())),
                (Fault::Short | Fault::ShortThenFull, Operation::Write { bytes, .. }, 0) if bytes.len() > 1 => {
                    Some(Verdict::Short(bytes.len() / 2))
                }
                (Fault::ShortThenFull, _, 1) if state.struck.is_some() => Some(Verdict::Fail(full())),
                _ => None,
            };
            if let Some(verdict) = verdict {
                let position = state.changes.len();
                state.struck.get_or_insert(position);
                return verdict;
            }
        }
        let trap = match operation {
            Operation::SyncDir(_) => Trap::SyncDir,
            Operation::Remove(_) => Trap::Remove,
            _ => return Verdict::Proceed,
        };
        match state.traps.iter().position(|set| *set == trap) {
            Some(at) => {
                state.traps.remove(at);
                Verdict::Fail(Error::from_raw_os_error(libc::EIO))
            }
            None => Verdict::Proceed,
        }
    }

    fn done(&self, operation: &Operation<'_>) {
        self.state().changes.extend(self.change(operation));
    }
}
