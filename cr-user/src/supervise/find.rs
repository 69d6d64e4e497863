//! Which controller holds a process. Nobody keeps a list that could be wrong: a controller is a process with a thread of the
//! engine's name and an open lock file of a store, and is asked what it holds.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::client::status;
use super::engine;
use crate::error::{Error, Result};
use crate::procfs;
use crate::store::{LOCK, MARKER};

/// The store of the controller that holds `pid`: the root of its job, a descendant of that, or the controller itself.
///
/// # Errors
/// [`Error::NoSuchJob`], [`Error::NotHeld`], or why a controller that may hold it does not answer.
pub fn store_of(pid: i32) -> Result<PathBuf> {
    if pid <= 0 || procfs::stat(pid).is_err() {
        return Err(Error::NoSuchJob { pid });
    }
    let ancestors: Vec<i32> = std::iter::successors(Some(pid), |pid| procfs::parent(*pid).filter(|p| *p > 1)).collect();
    let mut silent = None;
    for controller in procfs::processes().filter(|p| is_controller(*p)) {
        for dir in stores_locked_by(controller) {
            match status(&dir) {
                Ok(Some(held)) if controller == pid || ancestors.contains(&held.pid) => return Ok(dir),
                Ok(_) => {}
                // Perhaps another one holds it.
                Err(e) => silent = Some(e),
            }
        }
    }
    Err(silent.unwrap_or(Error::NotHeld { pid }))
}

/// Whether this process works as a controller, and counts pids as we do.
fn is_controller(pid: i32) -> bool {
    let namespace = |pid: &str| std::fs::metadata(format!("/proc/{pid}/ns/pid")).map(|m| (m.dev(), m.ino())).ok();
    let is_engine = |tid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"))
            .is_ok_and(|name| name.trim_end() == engine::NAME)
    };
    procfs::threads(pid).unwrap_or_default().into_iter().any(is_engine)
        && namespace(&pid.to_string()).is_some_and(|theirs| Some(theirs) == namespace("self"))
}

/// Those of another user cannot be seen: then there are none.
fn stores_locked_by(pid: i32) -> Vec<PathBuf> {
    let fds = procfs::descriptors(pid).unwrap_or_default();
    let files = fds.into_iter().filter_map(|fd| std::fs::read_link(procfs::fd_path(pid, fd)).ok());
    let stores = files.filter(|file| file.file_name().is_some_and(|name| name == LOCK));
    let dirs = stores.filter_map(|file| file.parent().map(PathBuf::from));
    dirs.filter(|dir| dir.join(MARKER).exists()).collect()
}
