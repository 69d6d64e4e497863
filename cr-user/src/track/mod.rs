//! Which pages changed since the last checkpoint: the oracle (page tables) and the hints (eBPF programs).

pub mod aio;
pub mod btf;
pub mod datagrams;
pub mod glimpse;
pub mod heat;
pub mod hints;
pub mod iters;
pub mod oracle;
pub mod tty;
pub mod undo;

pub use glimpse::Glimpse;
pub use heat::Heat;
pub use hints::Hints;
pub use oracle::Oracle;
