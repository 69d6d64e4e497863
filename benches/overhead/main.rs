//! Overhead.
fn main() {}
