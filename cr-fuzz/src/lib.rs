//! What reads a store, fed with bytes that nobody wrote. Whatever they are, it must say what is wrong or make sense of them: no
//! panic, no allocation beyond what there is to read, no read outside the file.
//!
//! The same targets are run by `cargo fuzz` (`fuzz/`), with coverage and `AddressSanitizer`, and by this package's own tests, bounded
//! in time, without either. `fuzz/README.md` says how.
//!
//! Images protect themselves by hashes, which no mutation gets past. So a target's input is not an image but what one is made from:
//! `forge` puts header, page checksums, counts and hashes around it, unless the input says not to. Where the input says so, it encrypts
//! and signs it too, with `keys` that everybody knows: then what lies behind the authentication is read, whatever it is.

mod forge;
mod keys;
mod mutate;
mod scratch;
pub mod seeds;
mod targets;

pub use mutate::{Random, mutate};
pub use targets::TARGETS;

/// What the fuzzer feeds.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its corpus, and of the program that `cargo fuzz` runs.
    pub name: &'static str,
    /// Reads the bytes, and says whether they made sense. Panics if what is read contradicts itself.
    pub run: fn(&[u8]) -> bool,
}

impl Target {
    /// The target of that name.
    pub fn find(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }
}
