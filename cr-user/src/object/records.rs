//! Records in and out of an image. Each holds the objects of one kind, of every process of the job.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::{self, Image, ImageWriter, RecordKind};
use crate::sys::PAGE;

/// Adds a record to an image under construction.
///
/// # Errors
/// When it cannot be archived.
pub fn put<T>(image: &ImageWriter, kind: RecordKind, record: &T) -> Result<()>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    Ok(image.record(kind, archive(kind, record)?)?)
}

/// A record as it is in an image.
///
/// # Errors
/// When it cannot be archived.
pub fn archive<T>(kind: RecordKind, record: &T) -> Result<Vec<u8>>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let bytes = rkyv::to_bytes::<rancor::Error>(record)
        .map_err(|e| Error::system(format!("archiving the record `{}` ({e})", kind.name), nix::errno::Errno::EINVAL))?;
    Ok(bytes.into_vec())
}

/// What a record can say that makes no sense, though it is a valid archive: numbers that lead nowhere, ranges that end before they
/// begin. Whoever reads a record need not look out for it any more.
pub trait Sound: Sized {
    /// What is wrong with it, as the end of a sentence.
    fn fault(&self) -> Option<String> {
        None
    }

    /// What is wrong with one of them, or with all of them together.
    fn fault_of_all(all: &[Self]) -> Option<String> {
        all.iter().find_map(Self::fault)
    }
}

impl<T: Sound> Sound for Vec<T> {
    fn fault(&self) -> Option<String> {
        T::fault_of_all(self)
    }
}

/// Whether all numbers of bytes from `start` to `end` make whole pages, not none, that an address space can have.
pub fn are_pages(start: u64, end: u64) -> bool {
    /// With five levels of page tables, user space ends at 2^56.
    const ADDRESSES: u64 = 1 << 56;
    start < end && end <= ADDRESSES && (start | end).is_multiple_of(PAGE)
}

/// Reads a record of an image, validated.
///
/// # Errors
/// When the image has no such record, or it is not what it should be.
pub fn get<T>(image: &Image, kind: RecordKind) -> Result<T>
where
    T: Archive + Sound,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let bytes = image.record(kind)?;
    let not_valid = |why: &str| {
        let what = format!("its record `{}` is not valid ({why})", kind.name);
        image::Error::damaged(image.path(), what).into()
    };
    let record = rkyv::from_bytes::<T, rancor::Error>(bytes).map_err(|e| not_valid(first_line(&e.to_string())))?;
    record.fault().map_or(Ok(record), |fault| Err(not_valid(&fault)))
}

/// What comes after the first line is where rkyv's code found it.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
