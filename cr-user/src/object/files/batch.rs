//! Calls for a process to make, in batches whose bytes fit into what is mapped for them.

use crate::remote::{Call, Scratch};

/// Calls, and the bytes that they read.
#[derive(Debug, Default)]
pub struct Batch {
    /// The calls; every one must succeed.
    pub calls: Vec<Call>,
    /// What must lie at the address for which they were made.
    pub bytes: Vec<u8>,
}

/// Batches under construction, for one process.
pub(super) struct Batches {
    at: u64,
    done: Vec<Batch>,
    now: Batch,
}

impl Batches {
    /// For bytes that will lie at `at`.
    pub(super) fn new(at: u64) -> Self {
        Self { at, done: Vec::new(), now: Batch::default() }
    }

    /// Where `bytes` will lie in the process, for the next call alone.
    pub(super) fn put(&mut self, bytes: &[u8]) -> u64 {
        if self.now.bytes.len() + bytes.len() + 8 > Scratch::DATA_LEN as usize {
            self.done.push(std::mem::take(&mut self.now));
        }
        let at = self.now.bytes.len().next_multiple_of(8);
        self.now.bytes.resize(at, 0);
        self.now.bytes.extend_from_slice(bytes);
        self.at + at as u64
    }

    /// Adds a call; its place is for [`Call::first_from`], by a call before the next [`Self::put`].
    pub(super) fn call(&mut self, call: Call) -> usize {
        self.now.calls.push(call);
        self.now.calls.len() - 1
    }

    /// All of them, in order.
    pub(super) fn finish(mut self) -> Vec<Batch> {
        if !self.now.calls.is_empty() {
            self.done.push(self.now);
        }
        self.done
    }
}
