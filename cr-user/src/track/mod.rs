//! Which pages changed since the last checkpoint.

pub mod oracle;

pub use oracle::Oracle;
