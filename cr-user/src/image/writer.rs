//! Writes an image: pages as they come, then records, checksums, index and footer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rkyv::rancor;

use super::blocks::{Encoding, Entry, Packer};
use super::index::{Index, IndexInfo, Parent, RecordEntry, Statistics};
use super::layout::{ALIGNMENT, FOOTER_BYTES, Footer, HEADER_BYTES, Header};
use super::page::{page_checksums, zero_page_checksum};
use super::pages::Pages as Segments;
use super::sealed::{self, Units};
use super::validate::{check_parent, check_spaces};
use super::{Compression, Error, Image, JobId, MetadataHash, PAGE_SIZE, RecordKind, Result};
use crate::disk::{Disk, DiskFile};
use crate::seal::{self, ImageKey, Signer, StoreKey};

/// What an image's header says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderInfo {
    /// Number of the checkpoint within its store.
    pub id: u64,
    /// The job that it is of.
    pub job: JobId,
}

/// How an image is stored.
#[derive(Debug, Clone, Default)]
pub struct Form {
    /// Whether and how pages are compressed.
    pub compression: Compression,
    /// The key of the store, if it is a sealed one.
    pub key: Option<Arc<StoreKey>>,
    /// Who signs it.
    pub signer: Option<Arc<Signer>>,
}

/// How pages get into the file.
#[derive(Debug)]
enum Way {
    /// As they are, each at the place of its slot.
    Plain(Segments),
    /// In blocks.
    Packed(Box<Packer>),
}

/// An image in the making, under a temporary name. Dropped before it is published, it removes its file.
///
/// It can be shared between threads: allocation is atomic, and writes to different slots may overlap in time.
#[derive(Debug)]
pub struct ImageWriter {
    file: DiskFile,
    way: Way,
    temporary: Temporary,
    header: Header,
    signer: Option<Arc<Signer>>,
    pages: Mutex<Pages>,
    records: Mutex<Vec<(RecordKind, Vec<u8>)>>,
    /// Set by a failed write: what was to be stored is lost, so the image must not be finished.
    failed: AtomicBool,
}

/// A complete, durable image that is not yet published; [`StoreWriter::publish`](crate::store::StoreWriter::publish)
/// does that. Dropped before, it removes its file.
#[derive(Debug)]
#[must_use = "it is removed unless published"]
pub struct Finished {
    temporary: Temporary,
    /// Number of the checkpoint within its store.
    pub id: u64,
    /// The image's identity.
    pub hash: MetadataHash,
    /// Size of the file.
    pub file_bytes: u64,
    /// Page counts by content, with the caller's other figures.
    pub statistics: Statistics,
}

/// Checksums of all allocated slots.
#[derive(Debug)]
struct Pages {
    /// Little-endian, as they are written.
    checksums: Vec<u64>,
    /// What a slot has until it is written.
    unwritten: u64,
}

impl ImageWriter {
    /// Creates the file, mode 0600, which must not exist yet, and writes the header.
    pub fn create(path: &Path, info: HeaderInfo) -> Result<Self> {
        Self::create_on(&Disk::default(), path, info)
    }

    /// As [`create`](Self::create), on a disk that may have a witness.
    pub fn create_on(disk: &Disk, path: &Path, info: HeaderInfo) -> Result<Self> {
        Self::create_as_on(disk, path, info, &Form::default())
    }

    /// As [`create_on`](Self::create_on), in that form.
    pub fn create_as_on(disk: &Disk, path: &Path, info: HeaderInfo, form: &Form) -> Result<Self> {
        let salt = form.key.as_ref().map(|_| seal::random()).transpose();
        let salt = salt.map_err(|source| Error::io(path, "get a salt for", source))?;
        let file = disk.create_new(path).map_err(|source| Error::io(path, "create", source))?;
        let temporary = Temporary { path: Some(path.to_owned()), disk: disk.clone() };
        let packed = form.compression != Compression::None || form.key.is_some() || form.signer.is_some();
        let header = Header { id: info.id, job: info.job, packed, salt, signed: form.signer.is_some() };
        file.write_all_at(&header.encode(), 0).map_err(|source| Error::io(path, "write", source))?;
        let way = if packed {
            let key = form.key.as_ref().zip(salt).map(|(key, salt)| ImageKey::derive(key, &info.job.0, &salt));
            let encoding = Encoding { compression: form.compression, key, digests: header.signed };
            Way::Packed(Box::new(Packer::new(&file, encoding)))
        } else {
            Way::Plain(Segments::open(&file))
        };
        Ok(Self {
            file,
            way,
            temporary,
            header,
            signer: form.signer.clone(),
            pages: Mutex::new(Pages { checksums: Vec::new(), unwritten: zero_page_checksum().to_le() }),
            records: Mutex::default(),
            failed: AtomicBool::new(false),
        })
    }

    /// Number of the checkpoint within its store.
    pub fn id(&self) -> u64 {
        self.header.id
    }

    /// Whether a slot can be written a second time. Where pages are compressed, sealed or signed it cannot.
    pub fn rewrites(&self) -> bool {
        matches!(self.way, Way::Plain(_))
    }

    /// From now on somebody waits for what is written, or no longer: meanwhile nothing is compressed.
    pub fn hurry(&self, hurried: bool) {
        if let Way::Packed(packer) = &self.way {
            packer.hurry(hurried);
        }
    }

    /// Reserves `pages` consecutive slots and returns the first. A slot that is never written reads as zeros and takes
    /// no room on file systems with holes.
    pub fn allocate(&self, pages: u64) -> u64 {
        let mut state = self.pages();
        let first = state.checksums.len();
        let (len, unwritten) = (first + pages as usize, state.unwritten);
        state.checksums.resize(len, unwritten);
        first as u64
    }

    /// Stores whole pages in consecutive allocated slots from `first_slot` on, in place of what was there. Large runs that are aligned
    /// to a page go to the disk as they lie, without a copy.
    ///
    /// Two writes to one slot must not overlap in time. Where pages are compressed, sealed or signed, slots are written once, in ascending order (those
    /// that are passed over stay zeros); else it is an error. Panics if `pages` is not whole pages, or a slot not allocated.
    pub fn write_at(&self, first_slot: u64, pages: &[u8]) -> Result<()> {
        self.write_summed(first_slot, pages, &page_checksums(pages))
    }

    /// As [`write_at`](Self::write_at), with the pages' checksums, which another thread may have made.
    pub fn write_summed(&self, first_slot: u64, pages: &[u8], checksums: &[u64]) -> Result<()> {
        assert_eq!(pages.len(), checksums.len() * PAGE_SIZE, "one checksum a page");
        let first = first_slot as usize;
        let slots = first..first + checksums.len();
        for (slot, checksum) in self.pages().checksums[slots].iter_mut().zip(checksums) {
            *slot = checksum.to_le();
        }
        let written = match &self.way {
            Way::Plain(segments) => {
                segments.write(&self.file, pages, HEADER_BYTES + first_slot * PAGE_SIZE as u64).map(|()| true)
            }
            Way::Packed(packer) => packer.write(&self.file, first_slot, pages),
        };
        if written.map_err(|source| self.fail(source))? {
            return Ok(());
        }
        self.failed.store(true, Ordering::Release);
        Err(self.inconsistent(format!("slot {first_slot} is in a block that is written already")))
    }

    /// As [`write_summed`](Self::write_summed), but has the file system share the pages with another file, in which they are from byte
    /// `offset` on. False: it cannot do that, and nothing was written.
    pub(crate) fn share(&self, first_slot: u64, from: &File, offset: u64, checksums: &[u64]) -> Result<bool> {
        let Way::Plain(segments) = &self.way else { return Ok(false) };
        let len = (checksums.len() * PAGE_SIZE) as u64;
        match segments.share(&self.file, from, offset, len, Image::slot_offset(first_slot)) {
            Err(error) if cannot_share(&error) => return Ok(false),
            shared => shared.map_err(|source| self.fail(source))?,
        }
        let first = first_slot as usize;
        for (slot, checksum) in self.pages().checksums[first..first + checksums.len()].iter_mut().zip(checksums) {
            *slot = checksum.to_le();
        }
        Ok(true)
    }

    /// Makes durable what went into the page cache until now, so that [`finish`](Self::finish) has less to wait for.
    pub(crate) fn sync_pages(&self) -> Result<()> {
        let synced = match &self.way {
            Way::Plain(segments) => segments.sync(&self.file),
            Way::Packed(packer) => packer.sync(&self.file),
        };
        synced.map_err(|source| self.fail(source))
    }

    /// The checksum of what was last written to an allocated slot.
    pub fn checksum(&self, slot: u64) -> u64 {
        u64::from_le(self.pages().checksums[slot as usize])
    }

    /// Stores whole pages in new consecutive slots and returns the first.
    pub fn put(&self, pages: &[u8]) -> Result<u64> {
        let slot = self.allocate((pages.len() / PAGE_SIZE) as u64);
        self.write_at(slot, pages)?;
        Ok(slot)
    }

    /// Adds the record of one kind, an rkyv archive; it is kept in memory until [`finish`](Self::finish).
    ///
    /// A second record of one kind is an error.
    pub fn record(&self, kind: RecordKind, archive: Vec<u8>) -> Result<()> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.iter().any(|(other, _)| other.id == kind.id) {
            return Err(self.inconsistent(format!("two records have the id {} (`{}`)", kind.id, kind.name)));
        }
        records.push((kind, archive));
        Ok(())
    }

    /// As [`finish`](Self::finish), with another number than the one that it began with.
    pub(crate) fn finish_as(mut self, id: u64, info: IndexInfo) -> Result<Finished> {
        self.header.id = id;
        self.complete(info, true)
    }

    /// Writes everything but the pages, and makes the whole file durable (`fdatasync`).
    ///
    /// Fails if any earlier write has failed, or if `info` names slots that do not exist, extents that overlap or are
    /// out of order, or a parent that is not older.
    pub fn finish(self, info: IndexInfo) -> Result<Finished> {
        self.complete(info, false)
    }

    fn complete(mut self, mut info: IndexInfo, renumbered: bool) -> Result<Finished> {
        if self.failed.load(Ordering::Acquire) {
            return Err(self.inconsistent("an earlier write to it had failed"));
        }
        check_parent(self.header.id, info.parent).map_err(|what| self.inconsistent(what))?;
        info.spaces.sort_by_key(|space| space.id);
        let checksums = std::mem::take(&mut self.pages().checksums);
        let spaces = info.spaces.iter().map(|space| (space.id, space.extents.iter().copied()));
        let counts = check_spaces(spaces, checksums.len() as u64).map_err(|what| self.inconsistent(what))?;
        let statistics = Statistics {
            dirty_pages: info.dirty_pages,
            stored_pages: counts.stored,
            zero_pages: counts.zero,
            absent_pages: counts.absent,
            frozen_ns: info.frozen_ns,
            total_ns: info.total_ns,
        };
        let slots = checksums.len() as u64;
        let (pages_end, blocks) = match &self.way {
            Way::Plain(segments) => {
                segments.settle(&self.file).map(|()| (HEADER_BYTES + slots * PAGE_SIZE as u64, None))
            }
            Way::Packed(packer) => packer.settle(&self.file, slots).map(|(end, blocks)| (end, Some(blocks))),
        }
        .map_err(|source| self.fail(source))?;
        // Only now: buffered and direct writes must not meet.
        if renumbered {
            self.file.write_all_at(&self.header.encode(), 0).map_err(|source| self.fail(source))?;
        }
        let (hash, file_bytes) = self.write_metadata(&checksums, pages_end, blocks, info, statistics)?;
        self.file.sync_data().map_err(|source| self.fail(source))?;
        let temporary = self.temporary.take();
        Ok(Finished { temporary, id: self.header.id, hash, file_bytes, statistics })
    }

    fn write_metadata(
        &self,
        checksums: &[u64],
        records_offset: u64,
        blocks: Option<Vec<Entry>>,
        info: IndexInfo,
        statistics: Statistics,
    ) -> Result<(MetadataHash, u64)> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.header.encode());
        let units = Units::new(self.key());
        let mut tail = Tail { writer: self, offset: records_offset, at: records_offset, units, hasher };

        let mut records = std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner));
        records.sort_by_key(|(kind, _)| kind.id);
        let mut entries = Vec::with_capacity(records.len());
        for (kind, archive) in records {
            let offset = tail.append(&archive)?;
            entries.push(RecordEntry { id: kind.id, version: kind.version, offset, len: archive.len() as u64 });
        }
        let checksums_offset = tail.append(bytemuck::cast_slice(checksums))?;
        let blocks = blocks.map(|blocks| blocks.into_iter().flat_map(Entry::encode).collect::<Vec<u8>>());
        let blocks_offset = blocks.map(|table| tail.append(&table)).transpose()?;
        let index = Index {
            id: self.header.id,
            job: self.header.job.0,
            parent: info.parent,
            taken_at: info.taken_at,
            statistics,
            widened: info.widened,
            records: entries,
            spaces: info.spaces,
        };
        let index = rkyv::to_bytes::<rancor::Error>(&index).map_err(|why| self.inconsistent(why.to_string()))?;
        let index_offset = tail.append(&index)?;
        tail.end()?;
        let end = tail.at;
        let mut footer = Footer {
            id: self.header.id,
            parent: info.parent,
            slots: checksums.len() as u64,
            records_offset,
            checksums_offset,
            index_offset,
            index_len: index.len() as u64,
            file_bytes: end + self.header.signature_bytes() + FOOTER_BYTES,
            hash: *tail.hasher.finalize().as_bytes(),
            blocks_offset,
            mac: [0; 32],
        };
        sealed::authenticate(&self.header, &mut footer, self.key());
        let mut last = Vec::new();
        last.extend(self.signer.iter().flat_map(|signer| sealed::sign(&self.header, &footer, signer)));
        last.extend(footer.encode());
        self.file.write_all_at(&last, end).map_err(|source| self.fail(source))?;
        Ok((footer.hash, footer.file_bytes))
    }

    fn key(&self) -> Option<&ImageKey> {
        match &self.way {
            Way::Plain(_) => None,
            Way::Packed(packer) => packer.key(),
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, source: std::io::Error) -> Error {
        self.failed.store(true, Ordering::Release);
        Error::io(self.temporary.path(), "write", source)
    }

    fn inconsistent(&self, what: impl Into<String>) -> Error {
        Error::Inconsistent { path: self.temporary.path().to_owned(), what: what.into() }
    }
}

impl Finished {
    /// The name under which the image waits to be published.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// What the next delta names as its parent.
    pub fn as_parent(&self) -> Parent {
        Parent { id: self.id, hash: self.hash }
    }

    /// The file now has another name: do not remove it.
    pub(crate) fn keep(mut self) {
        self.temporary.path = None;
    }
}

/// Whether the file system cannot share these pages, as opposed to having failed.
fn cannot_share(error: &std::io::Error) -> bool {
    let never = [libc::EOPNOTSUPP, libc::ENOTTY, libc::EXDEV, libc::EINVAL, libc::ENOSYS, libc::EPERM, libc::ETXTBSY];
    error.kind() == std::io::ErrorKind::Unsupported || error.raw_os_error().is_some_and(|errno| never.contains(&errno))
}

/// Writes one area after the other, each aligned, encrypts it if need be, and hashes what it writes.
struct Tail<'w> {
    writer: &'w ImageWriter,
    /// Where the next area goes, were nothing encrypted.
    offset: u64,
    /// Where the next bytes go.
    at: u64,
    units: Units<'w>,
    hasher: blake3::Hasher,
}

impl Tail<'_> {
    /// Returns the offset at which `bytes` begin.
    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let start = self.offset;
        self.put(bytes)?;
        let padding = self.offset.next_multiple_of(ALIGNMENT) - self.offset;
        self.put(&[0; ALIGNMENT as usize][..padding as usize])?;
        Ok(start)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.offset += bytes.len() as u64;
        let Self { writer, at, units, hasher, .. } = self;
        units.take(bytes, |stored| writer.write_tail(at, hasher, stored))
    }

    /// All areas are there.
    fn end(&mut self) -> Result<()> {
        let Self { writer, at, units, hasher, .. } = self;
        units.end(|stored| writer.write_tail(at, hasher, stored))
    }
}

impl ImageWriter {
    fn write_tail(&self, at: &mut u64, hasher: &mut blake3::Hasher, bytes: &[u8]) -> Result<()> {
        hasher.update(bytes);
        self.file.write_all_at(bytes, *at).map_err(|source| self.fail(source))?;
        *at += bytes.len() as u64;
        Ok(())
    }
}

/// A file that is removed unless it is published.
#[derive(Debug)]
struct Temporary {
    path: Option<PathBuf>,
    disk: Disk,
}

impl Temporary {
    fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Leaves the removal to somebody else.
    fn take(&mut self) -> Self {
        Self { path: self.path.take(), disk: self.disk.clone() }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(why) = self.disk.remove(path)
        {
            log::warn!("cannot remove {}: {why}; the next `cr` that writes to this store will", path.display());
        }
    }
}
