//! How a job ended.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::Outcome;
use crate::procfs;
use crate::sys::{process, task};

/// How long the parent of somebody else's child may take to reap it, before which nobody else learns how it ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// How our child `pid`, which has ended, did so.
pub(super) fn of_child(pid: i32) -> Outcome {
    code_of_child(pid).map_or(Outcome::EndedUnknown, Outcome::Ended)
}

/// The exit code of our child `pid`, which has ended: 128 and the signal's number if one ended it.
pub(super) fn code_of_child(pid: i32) -> Option<u8> {
    let reaped = task::reap(pid).inspect_err(|e| log::info!("cannot reap pid {pid}: {e}")).ok().flatten();
    reaped.map(|(code, status)| from_siginfo(code, status))
}

/// Reaps orphans of the job `root` that became our children and have ended. Nothing may be traced meanwhile.
pub(super) fn reap_orphans(root: i32) {
    for child in procfs::children(std::process::id() as i32).unwrap_or_default() {
        if child != root && procfs::stat(child).is_ok_and(|s| s.first().is_some_and(|state| state == "Z")) {
            let _ = task::reap(child);
        }
    }
}

/// How a process that is not our child, and has ended, did so. The kernel tells since Linux 6.15.
pub(super) async fn of_other(pidfd: BorrowedFd<'_>) -> Outcome {
    let until = Instant::now() + PATIENCE;
    loop {
        match process::exit_status(pidfd) {
            Ok(Some(status)) => return Outcome::Ended(from_wait_status(status)),
            Ok(None) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(5)).await,
            Ok(None) | Err(_) => return Outcome::EndedUnknown,
        }
    }
}

/// From `si_code` and `si_status` of SIGCHLD.
fn from_siginfo(code: i32, status: i32) -> u8 {
    if code == libc::CLD_EXITED { status as u8 } else { 128 + (status as u8 & 0x7f) }
}

/// From the status of `wait(2)`.
fn from_wait_status(status: i32) -> u8 {
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) as u8 } else { 128 + libc::WTERMSIG(status) as u8 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;
    use crate::sys::fd;

    #[test]
    fn codes_are_those_of_shells() {
        assert_eq!(from_siginfo(libc::CLD_EXITED, 3), 3);
        assert_eq!(from_siginfo(libc::CLD_KILLED, libc::SIGKILL), 137);
        assert_eq!(from_siginfo(libc::CLD_DUMPED, libc::SIGSEGV), 139);
        assert_eq!(from_wait_status(0x300), 3);
        assert_eq!(from_wait_status(0x80 | libc::SIGABRT), 134);
    }

    #[test]
    fn a_child_is_reaped_with_its_code() {
        #[expect(clippy::zombie_processes, reason = "reaping it is what is tested")]
        let child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = child.id() as i32;
        task::wait_change(pid).unwrap();
        assert_eq!(of_child(pid), Outcome::Ended(7));
        assert_eq!(of_child(pid), Outcome::EndedUnknown);
    }

    #[tokio::test]
    async fn the_kernel_tells_how_another_process_ended() {
        let mut child = Command::new("sh").args(["-c", "kill -9 $$"]).spawn().unwrap();
        let pidfd = fd::pidfd_open(child.id() as i32).unwrap();
        child.wait().unwrap();
        if process::exit_status(pidfd.as_fd()).is_err() {
            println!("skipped: this kernel tells only the parent (Linux 6.15 tells everybody)");
            return;
        }
        assert_eq!(of_other(pidfd.as_fd()).await, Outcome::Ended(137));
    }
}
