//! Incremental checkpoint and restart of running, unmodified Linux jobs.
//!
//! The three stories are [`checkpoint`], [`restore`] and [`supervise`]; everything else serves them.

pub mod image;
pub mod store;
pub mod sys;
