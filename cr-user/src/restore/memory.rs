//! The address space: mappings where they were, filled straight from the images.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Error, Result};
use crate::image;
use crate::object::memory::backing::{Backing, Object, ObjectKind};
use crate::object::memory::mapping::{self, BackingFds, Mapping};
use crate::object::omitted::Omitted;
use crate::object::spaces::Spaces;
use crate::ranges::RangeSet;
use crate::remote::Call;
use crate::restore::aio;
use crate::restore::body::Body;
use crate::restore::inherit::{self, Patch};
use crate::restore::unpack::{self, Packed};
use crate::store::{Chain, Finder, PageReader, Source};
use crate::sys::{PAGE, fd, vm};

/// Descriptors that the new process inherits for its mappings, numbered above all of its own.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Kept open until the process has mapped them.
    held: Vec<OwnedFd>,
    /// Their numbers.
    pub fds: BackingFds,
    /// Image files, by position in the chain.
    images: Vec<i32>,
}

impl Prepared {
    /// Opens what stands behind the mappings, and fills stored objects. `existing` gives objects that the file table has
    /// opened already.
    ///
    /// # Errors
    /// When a file cannot be opened or an object not be filled.
    pub fn open<'m>(
        mappings: impl Iterator<Item = &'m Mapping>,
        chain: &Chain,
        base: i32,
        put_back: bool,
        existing: impl Fn(u64) -> Option<i32>,
        omitted: &Omitted,
    ) -> Result<Self> {
        let mut prepared = Self::default();
        let mut seen = HashSet::new();
        let mut finders = BTreeMap::new();
        for mapping in mappings {
            match &mapping.backing {
                Backing::File(stamp) if !prepared.fds.files.contains_key(&stamp.path) => {
                    let file = open(&stamp.path, OpenOptions::new().read(true))?;
                    let number = prepared.hold(&file, base)?;
                    prepared.fds.files.insert(stamp.path.clone(), number);
                }
                // These are attached when all processes are there.
                Backing::Object(Object { kind: ObjectKind::SystemV(_), .. }) => {}
                Backing::Object(Object { space, kind, size }) if seen.insert(*space) => {
                    if let Some(number) = existing(*space) {
                        prepared.fds.objects.insert(*space, number);
                        continue;
                    }
                    let file = make_object(kind, *size)?;
                    if !matches!(kind, ObjectKind::Written(_)) {
                        fill_object(chain, *space, &file)?;
                    }
                    let number = prepared.hold(&file, base)?;
                    prepared.fds.objects.insert(*space, number);
                }
                _ => {}
            }
            if let Backing::Object(Object { space, .. }) = &mapping.backing
                && mapping.is_read_only_object()
                && let Some(writable) = prepared.fds.objects.get(space)
                && !prepared.fds.read_only.contains_key(space)
            {
                let file = open(&format!("/proc/self/fd/{writable}"), OpenOptions::new().read(true))?;
                let number = prepared.hold(&file, base)?;
                prepared.fds.read_only.insert(*space, number);
            }
            if let Backing::Object(Object { space, kind: ObjectKind::Written(stamp), size }) = &mapping.backing
                && put_back
            {
                let file = open_to_write(&stamp.path)?;
                let range = mapping.offset.min(*size)..(mapping.offset + mapping.len()).min(*size);
                // A file may be mapped in many places.
                let finder = finders.entry(*space).or_insert_with(|| chain.finder(*space));
                put_back_file(chain, finder, &file, range, &omitted.pages_of(*space))?;
            }
        }
        for image in chain.images() {
            let file = image.open_file()?;
            let number = prepared.hold(&file, base)?;
            prepared.images.push(number);
        }
        Ok(prepared)
    }

    fn hold(&mut self, file: &File, base: i32) -> Result<i32> {
        let held = fd::dup_above(file.as_fd(), base).map_err(|e| Error::system("duplicating a descriptor", e))?;
        let number = held.as_raw_fd();
        self.held.push(held);
        Ok(number)
    }

    /// Tells which of our files the objects are now, so that the chain goes on with the same spaces.
    ///
    /// # Errors
    /// When one cannot be examined.
    pub fn adopt(&self, spaces: &mut Spaces) -> Result<()> {
        for (space, number) in &self.fds.objects {
            let meta = std::fs::metadata(format!("/proc/self/fd/{number}"))
                .map_err(|e| Error::system("examining a restored memory object", e))?;
            spaces.adopt(meta.dev(), meta.ino(), *space);
        }
        Ok(())
    }

    /// Makes the mappings of a process and has it fill them, which goes on afterwards ([`Body::settle`]). With `parent`, the process is a copy of one that was just built from
    /// these mappings: what both have in common stays as it is, and pages with the same content stay shared between them.
    ///
    /// # Errors
    /// When the kernel refuses a mapping, or an image cannot be read.
    pub fn build(
        &self,
        body: &mut Body,
        mappings: &[Mapping],
        parent: Option<(i32, &[Mapping])>,
        chain: &Chain,
    ) -> Result<()> {
        let (parent, theirs) = parent.unwrap_or((0, &[]));
        let kept: HashSet<u64> =
            theirs.iter().filter(|m| m.is_inherited_as_any_of(mappings)).map(|m| m.start).collect();
        let mut calls: Vec<Call> = theirs
            .iter()
            .filter(|m| !kept.contains(&m.start))
            .map(|m| Call::new(libc::SYS_munmap, &[m.start, m.len()]))
            .collect();
        for mapping in mappings.iter().filter(|m| !kept.contains(&m.start)) {
            calls.extend(mapping::make(mapping, &self.fds)?);
        }
        calls.extend(
            kernel_pages(mappings).filter(|_| !mappings.iter().any(|m| m.is_kernel() && kept.contains(&m.start))),
        );
        body.run(0, calls, "making the mappings")?;
        aio::restore(body, mappings, self.images[0])?;
        let common = mappings.iter().filter(|m| kept.contains(&m.start) && m.has_own_content());
        let common = common.map(|m| m.start / PAGE..m.end / PAGE).collect();
        let space = Spaces::of_process(body.pid());
        let patches = inherit::patches(chain, space, Spaces::of_process(parent), &common);
        self.fill(body, mappings, &patches, chain)
    }

    fn fill(&self, body: &mut Body, mappings: &[Mapping], patches: &[Patch], chain: &Chain) -> Result<()> {
        const MADV_POPULATE_WRITE: u64 = 23;
        /// Where a run is shorter, letting the kernel back each page as it is filled is as fast.
        const WORTH_POPULATING: u64 = 16;
        /// One read gives at most 2 GiB.
        const MOST: u64 = 1 << 18;
        let private: Vec<&Mapping> = mappings.iter().filter(|m| m.has_own_content()).collect();
        let (mut calls, mut zeroed, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        for patch in patches {
            let mut at = patch.first_page;
            let end = patch.first_page + patch.pages;
            while at < end {
                let count = (end - at).min(MOST);
                let (address, len) = (at * PAGE, count * PAGE);
                match patch.source.advanced(at - patch.first_page) {
                    Source::Stored { image, offset } => {
                        if count >= WORTH_POPULATING {
                            if patch.over && is_anonymous(&private, address) {
                                // Or else the parent's pages would be copied first.
                                calls.push(Call::new(libc::SYS_madvise, &[address, len, libc::MADV_DONTNEED as u64]));
                            }
                            calls.push(Call::new(libc::SYS_madvise, &[address, len, MADV_POPULATE_WRITE]));
                        }
                        if chain.images()[image].is_packed() {
                            packed.push(Packed { page: at, pages: count, image, offset });
                            at += count;
                            continue;
                        }
                        let from = self.images[image] as u64;
                        calls.push(Call::new(libc::SYS_pread64, &[from, address, len, offset]));
                    }
                    // Only a private file mapping shows something else than zeroes by itself.
                    Source::Zero if !is_anonymous(&private, address) => zeroed.push((address, len)),
                    Source::Zero | Source::Absent if patch.over => {
                        calls.push(Call::new(libc::SYS_madvise, &[address, len, libc::MADV_DONTNEED as u64]));
                    }
                    Source::Zero | Source::Absent => {}
                }
                at += count;
            }
        }
        body.start(calls, "filling the memory")?;
        if !zeroed.is_empty() || !packed.is_empty() {
            body.settle()?;
        }
        unpack::put(chain, body.pid(), &packed)?;
        for (address, len) in zeroed {
            vm::write(body.pid(), address, &vec![0; len as usize])
                .map_err(|e| Error::system(format!("filling the memory at {address:#x}"), e))?;
        }
        Ok(())
    }
}

fn is_anonymous(private: &[&Mapping], address: u64) -> bool {
    let at = private.partition_point(|m| m.end <= address);
    private.get(at).is_some_and(|m| m.is_anonymous())
}

fn open(path: &str, options: &OpenOptions) -> Result<File> {
    options.open(path).map_err(|e| Error::system(format!("opening the mapped file {path}"), e))
}

/// By a path on which there is no symbolic link, as there was none at the checkpoint: nobody shall have us write elsewhere.
fn open_to_write(path: &str) -> Result<File> {
    let opened = fd::open_without_links(Path::new(path), libc::O_RDWR);
    opened.map_err(|e| Error::system(format!("opening the mapped file {path}"), e))
}

/// A memory object of the same kind and size, empty.
fn make_object(kind: &ObjectKind, size: u64) -> Result<File> {
    let failed = |e: std::io::Error| Error::system("making a shared memory object", e);
    let file = match kind {
        ObjectKind::SharedAnonymous => return crate::sys::mmap::shared_anonymous(size).map_err(failed),
        ObjectKind::Memfd(name) => {
            File::from(memfd_create(name.as_str(), MFdFlags::empty()).map_err(|e| failed(e.into()))?)
        }
        ObjectKind::Deleted(path) => nameless(Path::new(path)).map_err(failed)?,
        ObjectKind::Written(stamp) => return open_to_write(&stamp.path),
        ObjectKind::SystemV(_) => return Err(failed(nix::errno::Errno::EINVAL.into())),
    };
    file.set_len(size).map_err(failed)?;
    Ok(file)
}

/// A file without a name in the directory where it was, or else in memory.
fn nameless(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let directory = path.parent().filter(|p| p.is_dir()).unwrap_or(Path::new("/tmp"));
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)
        .or_else(|_| memfd_create("deleted", MFdFlags::empty()).map(File::from).map_err(Into::into))
}

/// Writes the stored content of an object into a new, empty file.
///
/// # Errors
/// When the file cannot be written.
pub fn fill_object(chain: &Chain, space: u64, file: &File) -> Result<()> {
    let size = file.metadata().map_err(|e| Error::system("examining a new file", e))?.len();
    let mut reader = PageReader::new(chain);
    for run in chain.resolve(space) {
        let Source::Stored { .. } = run.source else { continue };
        for done in (0..run.pages).step_by(PageReader::USUAL as usize) {
            if let Source::Stored { image, offset } = run.source.advanced(done) {
                let bytes = reader.get(image, offset, PageReader::USUAL.min(run.pages - done))?;
                write_within(file, (run.first_page + done) * PAGE, bytes, size)?;
            }
        }
    }
    Ok(())
}

/// Brings a part of a file, whose pages `finder` finds, back to what it was at the checkpoint; what is the same already is not
/// written, nor are pages that the checkpoint leaves out.
///
/// # Errors
/// When it cannot be read or written.
pub fn put_back_file(
    chain: &Chain,
    finder: &Finder,
    file: &File,
    range: std::ops::Range<u64>,
    left_out: &RangeSet,
) -> Result<()> {
    const ZEROES: [u8; image::PAGE_SIZE] = [0; image::PAGE_SIZE];
    let failed = |e| Error::system("putting a mapped file back", e);
    let mut now = [0; image::PAGE_SIZE];
    let mut reader = PageReader::new(chain);
    let pages = RangeSet::from(range.start / PAGE..range.end.div_ceil(PAGE)).difference(left_out);
    for page in pages.iter().flatten() {
        let was = match finder.find(page) {
            Source::Stored { image, offset } => reader.get(image, offset, 1)?,
            Source::Zero | Source::Absent => &ZEROES,
        };
        let len = (range.end - page * PAGE).min(PAGE) as usize;
        file.read_exact_at(&mut now[..len], page * PAGE).map_err(failed)?;
        if now[..len] != was[..len] {
            file.write_all_at(&was[..len], page * PAGE).map_err(failed)?;
        }
    }
    Ok(())
}

fn write_within(file: &File, at: u64, bytes: &[u8], size: u64) -> Result<()> {
    let len = (size.saturating_sub(at) as usize).min(bytes.len());
    file.write_all_at(&bytes[..len], at).map_err(|e| Error::system("filling a restored file", e))
}

/// The vdso and its data, at their old address.
fn kernel_pages(mappings: &[Mapping]) -> Option<Call> {
    const ARCH_MAP_VDSO_64: u64 = 0x2003;
    let first = mappings.iter().find(|m| matches!(m.backing, Backing::Kernel(_)))?;
    Some(Call::new(libc::SYS_arch_prctl, &[ARCH_MAP_VDSO_64, first.start]))
}

/// Gives the mappings, once they are filled and the process has made its children, their protection, advice and names.
///
/// # Errors
/// When the kernel refuses something.
pub fn finish(body: &mut Body, mappings: &[Mapping]) -> Result<()> {
    let (mut calls, mut bytes) = (Vec::new(), Vec::new());
    for mapping in mappings {
        let mut name_at = None;
        if let Some(name) = mapping.name.as_ref().filter(|_| mapping.is_anonymous()) {
            if bytes.len() + name.len() + 1 > Body::ROOM {
                body.put(&bytes)?;
                body.run(0, std::mem::take(&mut calls), "finishing the mappings")?;
                bytes.clear();
            }
            name_at = Some(body.data() + bytes.len() as u64);
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
        }
        calls.extend(mapping::finish(mapping, name_at));
    }
    body.put(&bytes)?;
    body.run(0, calls, "finishing the mappings").map(drop)
}
