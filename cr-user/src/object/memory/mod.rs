//! Memory: mappings ([`mapping`]), what backs them, and the content that nobody else keeps.

pub mod advice;
pub mod aio;
pub mod backing;
pub mod mapping;
pub mod read;

pub use mapping::{KIND, Mapping, Mappings};
