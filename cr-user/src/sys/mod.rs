//! The only home of `unsafe`: thin, safe, documented wrappers over kernel interfaces that no kept crate covers.
#![expect(unsafe_code, reason = "this is the one module that may hold it")]

pub mod mmap;
