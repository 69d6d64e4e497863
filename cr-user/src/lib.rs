//! Incremental checkpoint and restart of running, unmodified Linux jobs.
//!
//! The three stories are `checkpoint`, `restore` and `supervise`; everything else serves them.

pub mod bucket;
pub mod checkpoint;
pub mod compact;
pub mod describe;
pub mod disk;
pub mod error;
pub mod export;
pub mod family;
pub mod fault;
mod hex;
pub mod image;
pub mod integrity;
pub mod netlink;
pub mod netlock;
pub mod object;
pub mod phases;
pub mod policy;
pub mod probe;
pub mod procfs;
pub mod ranges;
pub mod recorded;
pub mod remote;
pub mod restore;
pub mod seal;
pub mod store;
pub mod supervise;
pub mod sys;
pub mod track;

pub use error::{Error, Refusal, Result};
