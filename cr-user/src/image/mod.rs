//! The archive: one checkpoint is one file of page segments, records, checksums and an index.
//!
//! ```text
//! header │ pages, 4096-aligned │ records, each 16-aligned │ page checksums │ table of blocks │ index │ signature │ footer
//! ```
//!
//! There are blocks, and a table of them, only where pages are compressed, encrypted or signed. All between header and footer may be
//! encrypted.
//!
//! The layout is described byte by byte in `docs/image-format.md`. This module knows how images are written
//! ([`ImageWriter`]) and read ([`Image`]), and nothing of what the records mean: a record is the rkyv archive of one
//! kind of kernel object, which its owner names by a [`RecordKind`].
//!
//! What it does *not* do: it does not know of chains ([`crate::store`] does). Unless an image is sealed or signed ([`crate::seal`]), it
//! is not authenticated: the hashes find damage and mix-ups; somebody who can write to the store can write a consistent image.

mod blocks;
mod codec;
mod error;
mod index;
mod layout;
mod page;
mod pages;
mod reader;
mod sealed;
mod validate;
mod verify;
mod writer;

pub use codec::Compression;
pub use error::{Error, Result};
pub use index::{ArchivedExtent, ArchivedIndex, Content, Extent, Index, IndexInfo, Parent, Space, Statistics};
pub use layout::{BLOCK_PAGES, BadJobId, FORMAT_VERSION, HEADER_BYTES, JobId, MetadataHash, PAGE_SIZE, RecordKind};
pub use page::{is_zero_page, page_checksum, page_checksums, page_digests};
pub use reader::{Image, Summary};
pub(crate) use verify::{Run, verify_runs};
pub use writer::{Finished, Form, HeaderInfo, ImageWriter};
