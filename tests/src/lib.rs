//! What the end-to-end tests share.
//!
//! A test starts a *guest* (a C program of `tests/guests`, built on demand) as a [`Job`], lets `cr` take checkpoints of it, kills it,
//! restores it, and lets the guest judge for itself whether anything changed. The guests' side of the conversation is described in
//! `tests/guests/guest.h`.
//!
//! The `cr` under test is `$CR_BIN`, or what `cargo build --package cr-user` builds for the profile that the tests run in
//! (see [`cr()`]). Nothing waits for ever: commands and waits have time limits, and a job that a test leaves behind is killed.
//! A test that cannot run says `skipped: why` on standard error, past the test harness's capture, so that skips can be counted.

mod build;
mod command;
mod job;
mod namespace;
mod network;
mod scenario;
mod stream;
mod tree;

pub use build::{cr, guest, guest_names, install, tool};
pub use command::{Finished, run, run_for};
pub use job::{Bucket, Checkpoint, Job, JobOptions, process_exists, wait_until};
pub use namespace::in_pid_namespace;
pub use network::{Network, enter_network_namespace, ip};
pub use scenario::{Pace, chain_and_back, full_and_back, work_through_a_chain};
pub use stream::{stream_client, stream_server};
pub use tree::{MARK, Tree};

use std::io::Write;
use std::sync::Once;
use std::time::Duration;

/// How long a single command or wait may take on a busy machine before the test gives up.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Whatever a test starts gets no descriptor that this program was itself started with: `cr` would rightly refuse a job that
/// holds a stray one.
pub fn close_inherited() {
    static ONCE: Once = Once::new();
    // Those of this program are closed by exec anyway.
    ONCE.call_once(|| cr::sys::fd::close_on_exec_from(3).expect("descriptors are marked close-on-exec"));
}

/// Prints `skipped: why` where the test harness does not swallow it. Use [`skip!`] to leave a test as well.
pub fn note_skip(why: &str) {
    // Not eprintln!: the harness would keep that from view for a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Leaves the test, saying why: `skip!("no hugetlb pages: {error}")`.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        $crate::note_skip(&format!($($why)*));
        return;
    }};
}
