//! The file that makes a directory a store, and the rules for making one.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::disk::Disk;
use crate::image::JobId;
use crate::seal::{self, Secret, StoreKey, Wrapped};

/// Name of the marker.
pub const MARKER: &str = "cr-store.json";
/// Under this name it is written; whoever holds the lock on it makes the store.
const UNFINISHED: &str = "cr-store.json.tmp";
/// The version of the directory's layout.
const FORMAT: u64 = 1;
/// That of a sealed store, which a reader that knows of no keys must leave alone.
const SEALED_FORMAT: u64 = 2;
/// A marker has less bytes than this, also one of a newer format.
const LONGEST: u64 = 1 << 16;

/// The marker's contents.
#[derive(Serialize, Deserialize)]
struct Marker {
    format: u64,
    job: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<Wrapped>,
}

/// What a marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marked {
    /// The job of the store.
    pub(super) job: JobId,
    /// Its key, if it is sealed.
    pub(super) seal: Option<Wrapped>,
}

/// The marker's format alone, which must be readable whatever else a newer one holds.
#[derive(Deserialize)]
struct Format {
    format: u64,
}

/// What the marker of the store in `dir` says; none if there is no marker (or no directory).
pub(super) fn read(dir: &Path) -> Result<Option<Marked>> {
    let path = dir.join(MARKER);
    let text = match read_start(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(source) => return Err(Error::io(&path, "read", source)),
    };
    let bad = |what: String| Error::BadMarker { path: path.clone(), what };
    let Format { format } = serde_json::from_slice(&text).map_err(|why| bad(why.to_string()))?;
    if format != FORMAT && format != SEALED_FORMAT {
        return Err(Error::OtherFormat { path, found: format, known: SEALED_FORMAT });
    }
    let Marker { job, seal, .. } = serde_json::from_slice(&text).map_err(|why| bad(why.to_string()))?;
    if seal.is_some() != (format == SEALED_FORMAT) {
        return Err(bad(format!("only a store of format {SEALED_FORMAT} is sealed, and each of these is")));
    }
    Ok(Some(Marked { job: job.parse().map_err(|why| bad(format!("{why}, not `{job}`")))?, seal }))
}

/// The first bytes of a regular file: as many as a marker can have. Something else is refused, without waiting for the other end
/// of a FIFO.
fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// What the marker of the store in `dir` says, which becomes a store if it is missing or empty: a sealed one, given a secret.
pub(super) fn create_or_read(disk: &Disk, dir: &Path, secret: Option<&Secret>) -> Result<Marked> {
    if let Some(marked) = read(dir)? {
        return Ok(marked);
    }
    create_dir(disk, dir)?;
    refuse_foreign(disk, dir)?;
    sync_above(disk, dir)?;
    let unfinished = dir.join(UNFINISHED);
    let failed = |source| Error::io(&unfinished, "write", source);
    let file = disk.create(&unfinished).map_err(failed)?;
    // Two that make the same store: one gets the lock first, the other then finds the marker there.
    file.file().lock().map_err(failed)?;
    if let Some(marked) = read(dir)? {
        return Ok(marked);
    }
    let random = |source| Error::io(dir, "make a key for", source);
    let job = JobId(seal::random().map_err(random)?);
    let wrap = |secret| StoreKey::generate().and_then(|key| Wrapped::wrap(&key, &job.0, secret));
    let seal = secret.map(wrap).transpose().map_err(random)?;
    let format = if seal.is_some() { SEALED_FORMAT } else { FORMAT };
    let marker = Marker { format, job: job.to_string(), seal: seal.clone() };
    let text = serde_json::to_string(&marker).expect("a plain structure");
    file.set_len(0).map_err(failed)?;
    file.write_all_at(text.as_bytes(), 0).map_err(failed)?;
    file.sync_data().map_err(failed)?;
    disk.rename(&unfinished, &dir.join(MARKER)).map_err(failed)?;
    super::sync_dir(disk, dir)?;
    Ok(Marked { job, seal })
}

/// Makes the directory and those above it, or makes an existing one private.
fn create_dir(disk: &Disk, dir: &Path) -> Result<()> {
    let failed = |source| Error::io(dir, "create", source);
    let above = dir.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty() && !above.is_dir());
    for above in above.collect::<Vec<_>>().into_iter().rev() {
        match disk.create_dir(above, 0o777) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && above.is_dir() => (),
            other => other.map_err(failed)?,
        }
    }
    match disk.create_dir(dir, 0o700) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::NotADirectory { path: dir.to_owned() }),
        other => other.map_err(failed),
    }
}

/// Makes the directory's own name durable, and those of all directories above it: who made them, and whether he came to do
/// so himself, cannot be seen. It is done before there is a marker, so a store that has one cannot vanish as a whole.
fn sync_above(disk: &Disk, dir: &Path) -> Result<()> {
    let failed = |source| Error::io(dir, "find the directories above", source);
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let real = fs::canonicalize(dir).map_err(failed)?;
    let here = device(&real).map_err(failed)?;
    for above in real.ancestors().skip(1) {
        if device(above).map_err(failed)? != here {
            // Somebody else has mounted this file system, and the place where he did so is his affair.
            break;
        }
        match disk.sync_dir(above) {
            // We may pass through it, but not open it.
            Err(why) if why.kind() == ErrorKind::PermissionDenied => {
                let synced = disk.sync_all_around(dir);
                return synced.map_err(|source| Error::io(dir, "make durable the file system of", source));
            }
            other => other.map_err(|source| Error::io(above, "make durable the names in", source))?,
        }
    }
    Ok(())
}

/// Only an empty directory, or one in which the making of a store was cut short, may become a store.
fn refuse_foreign(disk: &Disk, dir: &Path) -> Result<()> {
    let failed = |source| Error::io(dir, "list", source);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // The marker: somebody else has just made the store.
        if name != UNFINISHED && name != MARKER {
            return Err(Error::Foreign { dir: dir.to_owned(), found: name.to_string_lossy().into_owned() });
        }
    }
    disk.set_mode(dir, 0o700).map_err(|source| Error::io(dir, "make private (mode 0700)", source))
}
