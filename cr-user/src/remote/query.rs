//! Asking the kernel, in the name of a stopped thread, for what only the thread itself may ask.

use crate::error::{Error, Result};
use crate::remote::puppet::Puppet;
use crate::remote::runner::Call;
use crate::sys::vm;

/// Calls to be made in one go, and room in the job's memory for what they write.
#[derive(Debug)]
pub struct Questions {
    base: u64,
    room: u64,
    used: u64,
    calls: Vec<Call>,
}

/// What the calls returned and wrote.
#[derive(Debug)]
pub struct Answers {
    base: u64,
    calls: Vec<Call>,
    bytes: Vec<u8>,
}

impl Questions {
    /// Questions whose results go to the puppet's scratch mapping.
    pub fn new(puppet: &Puppet) -> Self {
        let (base, room) = puppet.data();
        Self { base, room, used: 0, calls: Vec::new() }
    }

    /// Room for `len` bytes of results: its address in the process.
    pub fn room(&mut self, len: u64) -> u64 {
        let at = self.base + self.used;
        self.used += len.next_multiple_of(16);
        assert!(self.used <= self.room, "more questions than fit into the scratch mapping");
        at
    }

    /// Adds a call; its number is for [`Answers::outcome`].
    pub fn ask(&mut self, number: i64, args: &[u64]) -> usize {
        self.calls.push(Call::new(number, args));
        self.calls.len() - 1
    }

    /// Makes the calls on the thread in use.
    ///
    /// # Errors
    /// When the thread dies.
    pub fn put(mut self, puppet: &mut Puppet) -> Result<Answers> {
        puppet.batch(&mut self.calls, &[])?;
        let mut bytes = vec![0; self.used as usize];
        let range = vm::Range { start: self.base, len: self.used };
        if self.used > 0 {
            vm::read(puppet.tid(), &[range], &mut bytes)
                .map_err(|e| Error::system(format!("reading what thread {} was told", puppet.tid()), e))?;
        }
        Ok(Answers { base: self.base, calls: self.calls, bytes })
    }
}

impl Answers {
    /// The outcome of call `index`.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn outcome(&self, index: usize) -> nix::Result<u64> {
        self.calls[index].outcome()
    }

    /// `len` bytes that were written at `at`.
    pub fn bytes(&self, at: u64, len: usize) -> &[u8] {
        let start = (at - self.base) as usize;
        &self.bytes[start..start + len]
    }

    /// The 64-bit word at `at`.
    pub fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().expect("eight bytes"))
    }

    /// The 32-bit word at `at`.
    pub fn int(&self, at: u64) -> i32 {
        i32::from_le_bytes(self.bytes(at, 4).try_into().expect("four bytes"))
    }
}
