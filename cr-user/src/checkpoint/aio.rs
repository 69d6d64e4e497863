//! Linux AIO operations of a stopped job: they go on by themselves, and are waited for.

use std::time::{Duration, Instant};

use crate::checkpoint::watch::Watch;
use crate::error::{Error, Result};
use crate::object::memory::aio;
use crate::procfs::{self, Vma};

/// Whether a process has contexts.
pub fn has_rings(pid: i32) -> bool {
    procfs::maps(pid).is_ok_and(|vmas| vmas.iter().any(aio::is_ring))
}

/// Waits until no operation of a stopped process is under way: what they write is then in its memory, and what became of
/// them in its rings.
///
/// # Errors
/// [`Error::Refused`] when they do not end, or nobody can tell.
pub fn wait(pid: i32, vmas: &[Vma], watch: &mut Option<Watch>) -> Result<()> {
    /// A disk takes milliseconds. What waits for a pipe or for another process may take for ever.
    const PATIENCE: Duration = Duration::from_secs(1);
    let Some(ring) = vmas.iter().find(|v| aio::is_ring(v)).map(|v| v.start) else { return Ok(()) };
    let refuse = |why: &dyn std::fmt::Display| Error::Refused(vec![aio::not_seen(pid, ring, &why.to_string())]);
    let watch = match watch {
        Some(watch) => watch,
        None => watch.insert(Watch::look_only().map_err(|e| refuse(&e))?),
    };
    let started = Instant::now();
    loop {
        let contexts = watch.hints.aio_contexts(pid).map_err(|e| refuse(&e))?;
        if let Some(vma) = vmas.iter().filter(|v| aio::is_ring(v)).find(|v| contexts.iter().all(|c| c.id != v.start)) {
            let why = "it is not among the contexts that the kernel shows";
            return Err(Error::Refused(vec![aio::not_seen(pid, vma.start, why)]));
        }
        let Some(busy) = contexts.iter().find(|c| c.in_flight > 0) else { return Ok(()) };
        if started.elapsed() > PATIENCE {
            return Err(Error::Refused(vec![aio::busy(pid, busy.id, busy.in_flight)]));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
