//! What a process must do by itself, once its table is in place: take POSIX locks and leases, and say who is signalled.

use super::Files;
use super::locks::Lock;
use crate::error::{Error, Result};
use crate::remote::Call;

/// Calls of a process.
#[derive(Debug)]
pub struct Own {
    /// The calls.
    pub calls: Vec<Call>,
    /// The bytes that they read at the address that was given.
    pub bytes: Vec<u8>,
    /// The lock that they take.
    lock: Option<Lock>,
}

impl Own {
    /// Whether all calls that were made succeeded.
    ///
    /// # Errors
    /// Why the first that did not has failed.
    pub fn judge(&self, files: &Files) -> Result<()> {
        let failed = self.calls.iter().find_map(|c| c.outcome().err().map(|e| (c, e)));
        match (failed, self.lock) {
            (None, _) => Ok(()),
            (Some((_, e)), Some(lock)) => Err(lock.failed(files, e)),
            (Some((call, e)), None) => {
                let what = format!("setting up its descriptors (system call {} with {:x?})", call.number, call.args);
                Err(Error::system(what, e))
            }
        }
    }
}

/// What process `pid` does for its descriptors; the bytes of each at `at`.
pub fn own_calls(files: &Files, pid: i32, at: u64) -> Vec<Own> {
    let locks = files.locks.iter().filter(|l| l.holder.0 == pid).filter_map(|lock| {
        let (call, bytes) = lock.own_call(at)?;
        Some(Own { calls: vec![call], bytes, lock: Some(*lock) })
    });
    let settings = files.settings.iter().filter_map(|settings| {
        let (first, fd) = files.holders(settings.description as usize).first().copied()?;
        let flags = files.descriptions[settings.description as usize].status_flags();
        let (calls, bytes) = settings.calls(files, fd, flags, at);
        (first == pid).then_some(Own { calls, bytes, lock: None })
    });
    locks.chain(settings).collect()
}
