//! What stands behind a mapping, found out from `/proc/PID/map_files`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::error::{Error, Refusal, Result};
use crate::object::memory::advice;
use crate::object::memory::aio::{self, AioRing};
use crate::object::spaces::Spaces;
use crate::procfs::{self, Vma};

/// What a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Backing {
    /// Memory of the process's own.
    Anonymous,
    /// A page that the kernel gives to every process: its name (`[vdso]`, `[vvar]`, …).
    Kernel(String),
    /// A file that is not stored: it must be the same at restore.
    File(FileStamp),
    /// A file or memory object whose content is stored.
    Object(Object),
    /// The ring of a Linux AIO context.
    Aio(AioRing),
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Object {
    /// The content space.
    pub space: u64,
    /// What it is.
    pub kind: ObjectKind,
    /// Its size in bytes.
    pub size: u64,
}

/// A memory object or file whose bytes are in the image.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ObjectKind {
    /// `MAP_SHARED | MAP_ANONYMOUS`.
    SharedAnonymous,
    /// `memfd_create`: its name.
    Memfd(String),
    /// A file without a name any more: where it was.
    Deleted(String),
    /// A file that the job writes through the mapping: put back as it was at the checkpoint.
    Written(FileStamp),
    /// A System V shared memory segment: its id.
    SystemV(i32),
}

/// By what a file is known again.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct FileStamp {
    /// Its path.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Seconds of its last modification.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_ns: i64,
}

impl FileStamp {
    /// The stamp of the file that metadata are of.
    pub fn new(path: &str, meta: &fs::Metadata) -> Self {
        Self { path: path.to_owned(), size: meta.size(), mtime: meta.mtime(), mtime_ns: meta.mtime_nsec() }
    }

    /// Whether the file at the path is still this one.
    ///
    /// # Errors
    /// [`Error::NotHere`] that says what changed.
    pub fn check(&self, role: &str) -> Result<()> {
        let not_here = |why: String, todo: &str| Error::NotHere {
            what: format!("{role} {}", self.path),
            why,
            todo: todo.to_owned(),
        };
        let meta = fs::metadata(&self.path)
            .map_err(|e| not_here(format!("it cannot be opened ({e})"), "put the file back where it was"))?;
        if !meta.is_file() {
            return Err(not_here("it is no longer a regular file".to_owned(), "put the file back where it was"));
        }
        let now = Self::new(&self.path, &meta);
        if now == *self {
            return Ok(());
        }
        let why = if now.size == self.size {
            "it was modified after the checkpoint".to_owned()
        } else {
            format!("its size was {} bytes at the checkpoint and is {} now", self.size, now.size)
        };
        Err(not_here(
            why,
            "reinstall the version that the job was running (the same bytes with the same modification time)",
        ))
    }
}

/// Files that are not stored, as they were found in one look at the job: most of its mappings are of the same few.
#[derive(Debug, Default)]
pub struct Files(HashMap<((u32, u32), u64, String), FileStamp>);

impl Files {
    fn recall(&self, vma: &Vma) -> Option<&FileStamp> {
        // What may be written through the mapping is stored.
        let written = vma.shared && advice::of(vma) & advice::MAY_WRITE != 0;
        if written { None } else { self.0.get(&(vma.dev, vma.inode, vma.name.clone())) }
    }

    fn learn(&mut self, vma: &Vma, stamp: FileStamp) -> FileStamp {
        self.0.insert((vma.dev, vma.inode, vma.name.clone()), stamp.clone());
        stamp
    }
}

/// Where to read the bytes of a stored object.
#[derive(Debug)]
pub struct Source {
    /// Its content space.
    pub space: u64,
    /// The object, open for reading.
    pub file: fs::File,
    /// The part that the image must hold, in bytes.
    pub range: std::ops::Range<u64>,
}

fn refusal(pid: i32, vma: &Vma, why: String, todo: &str) -> Refusal {
    Refusal { pid, place: format!("{:#x}", vma.start), why, todo: todo.to_owned() }
}

/// What stands behind a mapping of no file, or why it cannot be restored; none where there is a file.
pub fn without_file(pid: i32, vma: &Vma) -> Option<std::result::Result<Backing, Refusal>> {
    let refuse = |why: String, todo: &str| Some(Err(refusal(pid, vma, why, todo)));
    if matches!(vma.name.as_str(), "[vdso]" | "[vvar]" | "[vvar_vclock]") {
        return Some(Ok(Backing::Kernel(vma.name.clone())));
    }
    if vma.has("io") || vma.has("pf") {
        let why = format!("maps the device memory of {}", vma.name);
        return refuse(why, "close the device before the checkpoint");
    }
    if vma.has("ss") {
        return refuse("is a shadow stack".to_owned(), "start the job with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off");
    }
    if vma.has("um") || vma.has("ui") {
        let why = "is registered with a userfaultfd, whose holder answers its faults".to_owned();
        return refuse(why, "unregister it, or checkpoint the job without it");
    }
    // The first segment of a namespace has the id 0, and so this inode.
    if vma.inode != 0 || vma.name.starts_with("/SYSV") {
        return None;
    }
    let own =
        vma.name.is_empty() || matches!(vma.name.as_str(), "[heap]" | "[stack]") || vma.name.starts_with("[anon:");
    if own {
        Some(Ok(Backing::Anonymous))
    } else {
        refuse(format!("maps {}, which cr does not know", vma.name), "unmap it before the checkpoint")
    }
}

/// What stands behind a mapping, or why it cannot be restored. Stored objects give their [`Source`].
pub fn identify(
    pid: i32,
    vma: &Vma,
    spaces: &mut Spaces,
    files: &mut Files,
) -> std::result::Result<(Backing, Option<Source>), Refusal> {
    if let Some(known) = without_file(pid, vma) {
        return known.map(|backing| (backing, None));
    }
    let refuse = |why: String, todo: &str| refusal(pid, vma, why, todo);
    if aio::is_ring(vma) {
        return aio::capture(pid, vma).map(|ring| (Backing::Aio(ring), None));
    }
    if vma.has("ht") {
        return if !vma.shared && vma.name.starts_with("/anon_hugepage") {
            Ok((Backing::Anonymous, None))
        } else {
            let why = format!("is shared huge-page memory ({})", vma.name);
            Err(refuse(why, "use private huge pages (MAP_PRIVATE | MAP_HUGETLB) or ordinary shared memory"))
        };
    }
    if let Some(stamp) = files.recall(vma) {
        return Ok((Backing::File(stamp.clone()), None));
    }
    let link = procfs::path(pid, &format!("map_files/{:x}-{:x}", vma.start, vma.end));
    let meta = fs::metadata(&link).map_err(|e| {
        let todo = if e.kind() == io::ErrorKind::PermissionDenied {
            "run cr as root or with CAP_CHECKPOINT_RESTORE"
        } else {
            "try again"
        };
        refuse(format!("maps {}, which cannot be examined ({e})", vma.name), todo)
    })?;
    if vma.name.starts_with("/secretmem") {
        let why = "is secret memory (memfd_secret), which nobody else can read".to_owned();
        return Err(refuse(why, "start the job without it"));
    }
    if !meta.is_file() {
        let kind = if meta.file_type().is_char_device() { "the device" } else { "the special file" };
        return Err(refuse(format!("maps {kind} {}", vma.name), "unmap it before the checkpoint"));
    }
    if vma.name.starts_with("/SYSV") {
        return attachment(vma, &link, &meta, spaces).map_err(|why| refuse(why, "detach it (shmdt)"));
    }
    let kind = match object_kind(vma, &meta) {
        Ok(Some(kind)) => kind,
        Ok(None) => return Ok((Backing::File(files.learn(vma, FileStamp::new(&vma.name, &meta))), None)),
        Err(why) => return Err(refuse(why, "put the file back under its old name, or unmap it")),
    };
    if !matches!(kind, ObjectKind::SharedAnonymous) && procfs::has_write_lease(meta.dev(), meta.ino()) {
        let why = format!("maps {}, on which there is a write lease that reading it would break", vma.name);
        return Err(refuse(why, "have the job give the lease up, or unmap the file"));
    }
    let space = spaces.of_file(meta.dev(), meta.ino());
    let file = fs::File::open(&link)
        .map_err(|e| refuse(format!("maps {}, which cannot be read ({e})", vma.name), "run cr as root"))?;
    let range = match kind {
        ObjectKind::Deleted(_) | ObjectKind::Memfd(_) => 0..meta.size(),
        _ => vma.offset.min(meta.size())..(vma.offset + vma.len()).min(meta.size()),
    };
    Ok((Backing::Object(Object { space, kind, size: meta.size() }), Some(Source { space, file, range })))
}

/// An attached segment: the kernel gives its id for the inode.
fn attachment(
    vma: &Vma,
    link: &str,
    meta: &fs::Metadata,
    spaces: &mut Spaces,
) -> std::result::Result<(Backing, Option<Source>), String> {
    if !vma.shared {
        return Err(format!("is a private mapping of System V shared memory ({})", vma.name));
    }
    let file = fs::File::open(link).map_err(|e| format!("is System V shared memory that cannot be read ({e})"))?;
    let id = vma.inode as i32;
    let space = spaces.of_segment(id);
    let object = Object { space, kind: ObjectKind::SystemV(id), size: meta.size() };
    Ok((Backing::Object(object), Some(Source { space, file, range: 0..meta.size() })))
}

/// What kind of stored object the mapped file is; `None` when it stays a file.
fn object_kind(vma: &Vma, meta: &fs::Metadata) -> std::result::Result<Option<ObjectKind>, String> {
    let name = vma.name.strip_suffix(" (deleted)").unwrap_or(&vma.name);
    if let Some(name) = name.strip_prefix("/memfd:") {
        return Ok(Some(ObjectKind::Memfd(name.to_owned())));
    }
    if meta.nlink() == 0 {
        let anonymous = name == "/dev/zero" || name.starts_with("[anon_shmem:");
        return Ok(Some(if anonymous { ObjectKind::SharedAnonymous } else { ObjectKind::Deleted(name.to_owned()) }));
    }
    if !leads_to(&vma.name, meta).unwrap_or(false) {
        return Err(format!("maps {}, but another file has that name now", vma.name));
    }
    let written = vma.shared && advice::of(vma) & advice::MAY_WRITE != 0;
    Ok(written.then(|| ObjectKind::Written(FileStamp::new(name, meta))))
}

fn leads_to(path: &str, meta: &fs::Metadata) -> io::Result<bool> {
    let there = fs::metadata(Path::new(path))?;
    Ok((there.dev(), there.ino()) == (meta.dev(), meta.ino()))
}
