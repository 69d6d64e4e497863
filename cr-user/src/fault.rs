//! Named points at which a test can make `cr` fail or die.
//!
//! `CR_FAULT=freeze:kill` ends `cr` by SIGKILL when it passes the point `freeze`; `CR_FAULT=freeze:error` makes the step
//! fail with an error instead. A number (`freeze:kill:3`) picks the pass. Nothing happens without the variable.

use std::sync::atomic::{AtomicU32, Ordering};

/// Every point, in the order in which a first checkpoint, a restore, a compaction and then a pruning pass them.
pub const POINTS: &[&str] = &[
    "preflight",
    "attach.frozen",
    "remote.scratch",
    "remote.batch",
    "remote.uffd-open",
    "remote.end",
    "arm",
    "precopy",
    "precopy.still",
    "freeze",
    "ask.process",
    "ask.threads",
    "collect.process",
    "collect.threads",
    "lock",
    "locked",
    "collect.sockets",
    "rearm",
    "collect.memory",
    "thaw",
    "write.segments",
    "write.metadata",
    "publish",
    "published",
    "hold",
    "held",
    "restore.sockets",
    "restore.process",
    "restore.memory",
    "restore.tracking",
    "restore.threads",
    "restore.run",
    "compact.copy",
    "compact.publish",
    "compact.published",
    "prune.remove",
    "prune.removed",
];

/// A step that failed because `CR_FAULT` asked for it.
#[derive(Debug, thiserror::Error)]
#[error("the step `{0}` was made to fail by CR_FAULT; unset it")]
pub struct Injected(&'static str);

static PASSES: AtomicU32 = AtomicU32::new(0);

/// Passes the point `name`.
///
/// # Errors
/// [`Injected`] when `CR_FAULT` says `name:error`.
pub fn point(name: &'static str) -> Result<(), Injected> {
    debug_assert!(POINTS.contains(&name), "{name} is not listed");
    let Ok(wish) = std::env::var("CR_FAULT") else { return Ok(()) };
    let mut parts = wish.split(':');
    if parts.next() != Some(name) {
        return Ok(());
    }
    let action = parts.next();
    let wanted = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    if PASSES.fetch_add(1, Ordering::Relaxed) + 1 != wanted {
        return Ok(());
    }
    match action {
        Some("kill") => {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            unreachable!("SIGKILL does not return")
        }
        Some("error") => Err(Injected(name)),
        _ => Ok(()),
    }
}
