//! The command `cr`.
fn main() {}
