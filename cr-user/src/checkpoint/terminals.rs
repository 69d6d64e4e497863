//! What is queued in the pseudo-terminals of a stopped job.

use std::time::{Duration, Instant};

use crate::checkpoint::member::{self, Member};
use crate::checkpoint::watch::Watch;
use crate::error::Result;
use crate::object::files::{Files, pty};
use crate::procfs;
use crate::track::hints::HintsError;
use crate::track::tty::TtyQueues;

/// Whether a process has the master of one.
pub fn has_any(pid: i32) -> bool {
    let is_master = |fd: i32| procfs::link(pid, &format!("fd/{fd}")).is_ok_and(|l| l.ends_with("ptmx"));
    procfs::descriptors(pid).unwrap_or_default().into_iter().any(is_master)
}

/// Reads all queues, and takes nothing out.
///
/// # Errors
/// [`Error::Refused`](crate::error::Error::Refused) when something is queued that cannot be put back, or that only the eBPF
/// programs could read.
pub fn read_queues(members: &[Member], files: &mut Files, watch: &mut Option<Watch>) -> Result<()> {
    for index in 0..files.ptys.len() {
        let Some((pid, fd)) = pty::master(files, index) else { continue };
        if watch.is_none() {
            *watch = Watch::look_only().inspect_err(|e| log::info!("no eBPF programs: {e}")).ok();
        }
        let told = watch.as_mut().and_then(|w| settled(w, pid, fd).inspect_err(|e| log::info!("{e}")).ok().flatten());
        match told {
            Some(told) => pty::set_queues(files, index, (pid, fd), &told)?,
            None => pty::refuse_unread(files, index, (pid, fd), &member::holders(members))?,
        }
    }
    Ok(())
}

/// The queues once nothing is on its way any more: what is written waits until a worker of the kernel comes to it.
fn settled(watch: &mut Watch, pid: i32, fd: i32) -> std::result::Result<Option<TtyQueues>, HintsError> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let records = watch.descriptors(pid).unwrap_or_default();
    let Some(file) = records.iter().find(|r| r.fd == fd as u32).map(|r| r.file) else { return Ok(None) };
    let started = Instant::now();
    let mut before = watch.hints.tty_queues(file)?;
    loop {
        let now = watch.hints.tty_queues(file)?;
        if now == before && (!now.is_on_its_way() || started.elapsed() > PATIENCE) {
            return Ok(Some(now));
        }
        before = now;
        std::thread::sleep(Duration::from_micros(200));
    }
}
