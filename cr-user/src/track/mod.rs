//! Which pages changed since the last checkpoint.

pub mod heat;
pub mod oracle;

pub use heat::Heat;
pub use oracle::Oracle;
