//! A process of a checkpoint as an ELF core file, as the kernel writes one when a process is killed: a debugger opens it.
//!
//! The file is written as the kernel writes it where that is possible, and differs where a checkpoint knows more, or less:
//!
//! - no signal ended the process, so there is none in it (and no `NT_SIGINFO`);
//! - what the chain holds of a mapping is in the file, whatever `/proc/PID/coredump_filter` said, unless the process wanted it left
//!   out of core files (`MADV_DONTDUMP`);
//! - pages of a private mapping of a file that were never written are not in it, each of them: debuggers read them from the file,
//!   which `NT_FILE` names;
//! - pages that a partial checkpoint left out are not in it, and neither is what the kernel gives to every process (the vdso).
//!
//! It is written sparse, in one pass and without a copy in our memory; each page is compared with its checksum on the way.

mod elf;
mod notes;
mod segments;

use std::fs::{File, OpenOptions};
use std::io;
use std::iter::Peekable;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::image::{self, page_checksum};
use crate::object::credentials::{self, Credentials};
use crate::object::memory::{self, Mappings};
use crate::object::omitted::Omitted;
use crate::object::process::{self, Process};
use crate::object::records::get;
use crate::object::signals::{self, Signals};
use crate::object::spaces::Spaces;
use crate::object::threads::{self, Threads};
use crate::store::{Chain, PageReader, Resolve, Resolved, Source};
use crate::sys::PAGE;

use elf::Layout;
use notes::Notes;
use segments::Content;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The checkpoint.
    pub id: u64,
    /// The process.
    pub pid: i32,
    /// Its executable, which a debugger wants to be told.
    pub executable: String,
    /// How many threads it has.
    pub threads: usize,
    /// Bytes of the file, holes included.
    pub file_bytes: u64,
    /// Bytes of memory written.
    pub memory_bytes: u64,
}

/// What a checkpoint says of one process.
struct Subject {
    process: Process,
    threads: Threads,
    signals: Signals,
    credentials: Credentials,
    mappings: Mappings,
    /// The space in which its own pages are: that of the process whose address space it shares, or its own.
    space: u64,
}

/// Writes process `pid` of the newest checkpoint of a chain, or the job's root, to a new file (mode 0600). Of a file that is not
/// whole, nothing is left.
///
/// # Errors
/// When there is no such process, the file exists, cannot be written, or a page is damaged.
pub fn core(chain: &Chain, pid: Option<i32>, path: &Path) -> Result<Exported> {
    let subject = Subject::read(chain, pid)?;
    let omitted = Omitted::of_image(chain.newest())?;
    let segments = segments::of(chain, &subject.mappings, subject.space, &omitted);
    let notes = Notes { subject: &subject }.build();
    let layout = Layout::of(segments, notes.len() as u64);

    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::CoreExists { path: path.to_owned() },
        _ => failed("create", path, source),
    })?;
    let written = write(chain, &subject, &layout, &notes, &file, path);
    if written.is_err()
        && let Err(e) = std::fs::remove_file(path)
    {
        log::warn!("cannot remove {}, which is not whole: {e}", path.display());
    }
    Ok(Exported {
        id: chain.newest().id(),
        pid: subject.process.pid,
        executable: subject.process.exe.path.clone(),
        threads: subject.threads.all.len(),
        file_bytes: layout.file_bytes(),
        memory_bytes: written?,
    })
}

impl Subject {
    fn read(chain: &Chain, pid: Option<i32>) -> Result<Self> {
        let image = chain.newest();
        let mut processes: Vec<Process> = get(image, process::KIND)?;
        let all: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        let pid = pid.or(all.first().copied()).unwrap_or_default();
        let none = || Error::NotInCheckpoint { pid, id: image.id(), all: all.clone() };
        // Whose memory it has: one that was made by vfork has its parent's.
        let mut owner = pid;
        while let Some(process) = processes.iter().find(|process| process.pid == owner && process.sharing.memory) {
            owner = process.ppid;
        }
        let at = all.iter().position(|other| *other == pid).ok_or_else(none)?;
        let threads: Vec<Threads> = get(image, threads::KIND)?;
        let signals: Vec<Signals> = get(image, signals::KIND)?;
        let credentials: Vec<Credentials> = get(image, credentials::KIND)?;
        let mappings: Vec<Mappings> = get(image, memory::KIND)?;
        Ok(Self {
            process: processes.swap_remove(at),
            threads: threads.into_iter().find(|of| of.pid == pid).ok_or_else(none)?,
            signals: signals.into_iter().find(|of| of.pid == pid).ok_or_else(none)?,
            credentials: credentials.into_iter().find(|of| of.pid == pid).ok_or_else(none)?,
            mappings: mappings.into_iter().find(|of| of.pid == owner).ok_or_else(none)?,
            space: Spaces::of_process(owner),
        })
    }
}

fn write(chain: &Chain, subject: &Subject, layout: &Layout, notes: &[u8], file: &File, path: &Path) -> Result<u64> {
    let wrong = |source| failed("write", path, source);
    // Whatever is not written is a hole, and reads as zeroes.
    file.set_len(layout.file_bytes()).map_err(wrong)?;
    for (at, bytes) in layout.headers() {
        file.write_all_at(&bytes, at).map_err(wrong)?;
    }
    file.write_all_at(notes, layout.notes_at()).map_err(wrong)?;
    let mut copy = Copy { chain, file, path, over: false, written: 0, reader: PageReader::new(chain) };
    let mut own = Runs::new(chain, subject.space);
    for (segment, offset) in layout.with_content() {
        if let Content::Object { space, first_page } = segment.content {
            let mut runs = Runs::new(chain, space);
            copy.pages(&mut runs, first_page..first_page + segment.pages(), offset)?;
        }
        // Over an object, what the process has written to its private mapping of it.
        if !segment.shared {
            copy.over = segment.content != Content::Own;
            copy.pages(&mut own, segment.start / PAGE..segment.end / PAGE, offset)?;
            copy.over = false;
        }
    }
    file.sync_data().map_err(wrong)?;
    Ok(copy.written)
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    image::Error::io(path, doing, source).into()
}

/// The runs of one space, asked for by ascending ranges.
struct Runs<'c> {
    runs: Peekable<Resolve<'c>>,
}

impl<'c> Runs<'c> {
    fn new(chain: &'c Chain, space: u64) -> Self {
        Self { runs: chain.resolve(space).peekable() }
    }

    /// The next part of a run within `pages`, from `at` on.
    fn next_within(&mut self, at: u64, end: u64) -> Option<Resolved> {
        while self.runs.next_if(|run| run.first_page + run.pages <= at).is_some() {}
        let run = *self.runs.peek().filter(|run| run.first_page.max(at) < end)?;
        let first_page = run.first_page.max(at);
        let last = (run.first_page + run.pages).min(end);
        Some(Resolved {
            first_page,
            pages: last - first_page,
            source: run.source.advanced(first_page - run.first_page),
        })
    }
}

/// Pages on their way from images to the core file.
struct Copy<'c> {
    chain: &'c Chain,
    file: &'c File,
    path: &'c Path,
    /// Something else may have been written where these pages go.
    over: bool,
    written: u64,
    reader: PageReader<'c>,
}

impl Copy<'_> {
    /// Writes what a space holds of these pages, the first of which is at `offset` in the core file.
    fn pages(&mut self, runs: &mut Runs, pages: Range<u64>, offset: u64) -> Result<()> {
        let mut at = pages.start;
        while let Some(run) = runs.next_within(at, pages.end) {
            let to = offset + (run.first_page - pages.start) * PAGE;
            match run.source {
                Source::Stored { image, offset } => self.stored(image, offset, run.pages, to)?,
                Source::Zero if self.over => self.zeroes(run.pages, to)?,
                Source::Zero | Source::Absent => {}
            }
            at = run.first_page + run.pages;
        }
        Ok(())
    }

    /// From the mapping, which stays when the checkpoint is removed meanwhile.
    fn stored(&mut self, image: usize, from: u64, pages: u64, to: u64) -> Result<()> {
        /// So many are checked before they are written, and are still in the cache.
        const AT_ONCE: u64 = 64;
        let number = image;
        let image = &self.chain.images()[number];
        let first = (from - image::HEADER_BYTES) / PAGE;
        for done in (0..pages).step_by(AT_ONCE as usize) {
            let slot = first + done;
            let bytes = self.reader.get(number, from + done * PAGE, AT_ONCE.min(pages - done))?;
            for (slot, page) in (slot..).zip(bytes.chunks_exact(PAGE as usize)) {
                if page_checksum(page) != image.checksum(slot) {
                    return Err(image.damaged_page(slot).into());
                }
            }
            self.file.write_all_at(bytes, to + done * PAGE).map_err(|source| failed("write", self.path, source))?;
        }
        self.written += pages * PAGE;
        Ok(())
    }

    /// Zeroes where there may be no hole any more.
    fn zeroes(&mut self, pages: u64, to: u64) -> Result<()> {
        const ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
        let mut page = [0; PAGE as usize];
        for at in (0..pages).map(|page| to + page * PAGE) {
            let wrong = |source| failed("write", self.path, source);
            self.file.read_exact_at(&mut page, at).map_err(wrong)?;
            if page != ZEROES {
                self.file.write_all_at(&ZEROES, at).map_err(wrong)?;
            }
        }
        Ok(())
    }
}
