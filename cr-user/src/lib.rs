//! Incremental checkpoint and restart of running, unmodified Linux jobs.
//!
//! The three stories are `checkpoint`, `restore` and `supervise`; everything else serves them.

pub mod error;
pub mod fault;
pub mod procfs;
pub mod remote;
pub mod sys;
