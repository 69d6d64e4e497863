//! Records in and out of an image. Each holds the objects of one kind, of every process of the job.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::{Image, ImageWriter, RecordKind};

/// Adds a record to an image under construction.
///
/// # Errors
/// When it cannot be archived.
pub fn put<T>(image: &ImageWriter, kind: RecordKind, record: &T) -> Result<()>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let bytes = rkyv::to_bytes::<rancor::Error>(record)
        .map_err(|e| Error::system(format!("archiving the record `{}` ({e})", kind.name), nix::errno::Errno::EINVAL))?;
    Ok(image.record(kind, bytes.into_vec())?)
}

/// Reads a record of an image, validated.
///
/// # Errors
/// When the image has no such record, or it is not what it should be.
pub fn get<T>(image: &Image, kind: RecordKind) -> Result<T>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let bytes = image.record(kind)?;
    rkyv::from_bytes::<T, rancor::Error>(bytes).map_err(|e| Error::NotHere {
        what: format!("checkpoint {}", image.id()),
        why: format!("its record `{}` is not valid ({e})", kind.name),
        todo: "run `cr verify`, and restore an older checkpoint with --id".to_owned(),
    })
}
