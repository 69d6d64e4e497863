//! A store in a bucket: S3, the other backends of the `object_store` crate, or a directory by its `file://` URL.
//!
//! A job is never made to wait for a network. Its store is a local directory as ever, the *spool*, and here is what makes a bucket the
//! same: [`Mirror`] uploads what was published in the spool and removes what was pruned there; [`fetch()`] brings back what a restore
//! needs, which is much less than the chain. The objects are described in `docs/image-format.md`.
//!
//! What it does *not* do: it does not write images, and it does not know what is in their records.

mod error;
mod fetch;
mod gate;
mod location;
mod manifest;
mod mirror;
mod remote;
mod state;
mod upload;

#[cfg(test)]
mod tests;

use tokio::runtime::{Builder, Runtime};

pub use error::{Error, Result};
pub use fetch::{Fetched, Need, fetch};
pub use gate::{Gate, Shut};
pub use location::{Location, default_spool};
pub use mirror::{Mirror, Passed, Progress, Settled, contact, settle};
pub use state::{STATE, partial};

/// Where a store's images go, and how fast.
#[derive(Clone, Debug)]
pub struct Upload {
    /// The bucket.
    pub to: Location,
    /// Most bytes a second; none: as many as there can be.
    pub bandwidth: Option<u64>,
}

/// An event loop in the calling thread. When it is dropped, the threads that it made are gone.
fn runtime() -> Result<Runtime> {
    runtime_behind(&Gate::default())
}

/// The same, which does nothing while the gate is shut: all of it, connections and encryption too, happens in this thread.
fn runtime_behind(gate: &Gate) -> Result<Runtime> {
    let gate = gate.clone();
    // Between two waits it does little: a connection takes no more than a socket's buffer at once.
    let mut builder = Builder::new_current_thread();
    builder.enable_io().enable_time().on_thread_unpark(move || gate.pass());
    builder.build().map_err(|source| Error::Runtime { source })
}
