//! Which pages, mappings and tasks of a job changed.

pub mod btf;
pub mod hints;
pub mod iters;
pub mod oracle;

pub use hints::Hints;
pub use oracle::Oracle;
