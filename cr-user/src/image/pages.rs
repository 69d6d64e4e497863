//! Where an image's pages go: past the page cache where the file system allows it. A copy into the page cache, and its way
//! from there to the disk, cost ten times the processor time of handing the pages to the disk as they lie; and the job's own
//! cached files stay cached.
//!
//! **Coherence.** Two descriptors of one file, one with `O_DIRECT` and one without, agree as long as no buffered and no direct
//! write are under way at the same time: a direct write first writes back and drops what is cached of its range, and what it
//! stores is never cached. So everything here happens under one lock, one write after the other; the header is written before
//! the first page, and all that follows the pages only after [`Pages::settle`].

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::{Mutex, PoisonError};

use memmap2::{Advice, MmapMut};

use super::PAGE_SIZE;
use crate::disk::DiskFile;

/// Runs of at least so many bytes are written from where they lie. Shorter ones are put together first: each write waits for the
/// disk.
const LARGE: usize = 128 << 10;
/// Bytes that are put together.
const STAGE: usize = 1 << 20;

/// The part of a file that holds pages, for writing.
#[derive(Debug)]
pub(super) struct Pages(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The same file with `O_DIRECT`; none where that is not to be had.
    direct: Option<DiskFile>,
    /// Whether anything was written by way of it.
    used: bool,
    stage: Option<Stage>,
}

/// Short runs that follow each other in the file, in memory that is aligned.
#[derive(Debug)]
struct Stage {
    memory: MmapMut,
    /// Where they go.
    offset: u64,
    len: usize,
}

impl Pages {
    /// For a file that was just made.
    pub(super) fn open(file: &DiskFile) -> Self {
        Self(Mutex::new(State { direct: file.direct(), used: false, stage: None }))
    }

    /// Writes whole pages at an offset that is a multiple of a page. They may not be in the file before [`settle`](Self::settle).
    pub(super) fn write(&self, file: &DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.direct.is_none() {
            return file.write_all_at(bytes, offset);
        }
        let aligned = bytes.as_ptr().addr().is_multiple_of(PAGE_SIZE);
        if bytes.len() < LARGE || !aligned {
            return state.stage(file, bytes, offset);
        }
        // What is staged of the same pages is older.
        if state.stage.as_ref().is_some_and(|s| s.offset < offset + bytes.len() as u64 && offset < s.end()) {
            state.flush(file)?;
        }
        state.write_direct(file, bytes, offset)
    }

    /// Has the file share whole pages with another one from `from_offset` on, instead of writing them. The error may be that the file
    /// system cannot do that, and then nothing has happened.
    pub(super) fn share(
        &self,
        file: &DiskFile,
        from: &File,
        from_offset: u64,
        len: u64,
        offset: u64,
    ) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What is staged must not come later than this.
        state.flush(file)?;
        file.share_range(from, from_offset, len, offset)
    }

    /// Makes durable what was not written past the page cache.
    pub(super) fn sync(&self, file: &DiskFile) -> io::Result<()> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.direct.is_none() { file.sync_data() } else { Ok(()) }
    }

    /// All pages are in the file, and from now on it may be written by way of `file`.
    pub(super) fn settle(&self, file: &DiskFile) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.used {
            // Little was written: it goes to the disk together with what follows.
            state.direct = None;
        }
        state.flush(file)?;
        state.direct = None;
        Ok(())
    }
}

impl Stage {
    fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

impl State {
    fn stage(&mut self, file: &DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.stage.as_ref().is_some_and(|s| s.len == STAGE || s.end() != offset) {
                self.flush(file)?;
            }
            let stage = match &mut self.stage {
                Some(stage) => stage,
                none => {
                    let memory = MmapMut::map_anon(STAGE)?;
                    // A child that is made while the disk reads this must not be given the pages.
                    let _ = memory.advise(Advice::DontFork);
                    none.insert(Stage { memory, offset, len: 0 })
                }
            };
            if stage.len == 0 {
                stage.offset = offset;
            }
            let (now, later) = bytes.split_at(bytes.len().min(STAGE - stage.len));
            stage.memory[stage.len..stage.len + now.len()].copy_from_slice(now);
            stage.len += now.len();
            offset += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self, file: &DiskFile) -> io::Result<()> {
        let Some(mut stage) = self.stage.take() else { return Ok(()) };
        let written = self.write_direct(file, &stage.memory[..stage.len], stage.offset);
        stage.len = 0;
        stage.offset = 0;
        self.stage = Some(stage);
        written
    }

    /// Writes aligned bytes by way of the direct descriptor, as long as the file system takes them.
    fn write_direct(&mut self, file: &DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while let Some(direct) = self.direct.as_ref().filter(|_| !bytes.is_empty()) {
            match direct.write_at(bytes, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.used = true;
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // It wants another alignment, or cannot do it at all; a write that the end of the disk cut short may end unaligned.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                    log::debug!("no direct writes any more: {e}");
                    self.direct = None;
                }
                Err(e) => return Err(e),
            }
        }
        file.write_all_at(bytes, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    /// Random runs, long and short, aligned and not, over each other, beside a plain vector; in a directory on a disk where
    /// there is one.
    #[test]
    fn what_was_written_last_is_in_the_file() {
        const PAGES: usize = 1200;
        for directory in [std::env::temp_dir(), "/dev/shm".into()] {
            let Ok(directory) = tempfile::tempdir_in(directory) else { continue };
            let path = directory.path().join("pages");
            let file = Disk::default().create_new(&path).unwrap();
            let header = [9; PAGE_SIZE];
            file.write_all_at(&header, 0).unwrap();
            let pages = Pages::open(&file);
            let mut expected = vec![0_u8; PAGES * PAGE_SIZE];
            expected[..PAGE_SIZE].copy_from_slice(&header);
            let memory = MmapMut::map_anon(PAGES * PAGE_SIZE + PAGE_SIZE).unwrap();
            let mut memory = memory;
            let mut seed = 7_u64;
            let mut random = move |below: usize| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as usize % below
            };
            for turn in 0..400 {
                let most = [1, 8, 100, 600][random(4)];
                let (first, count) = (1 + random(PAGES - most - 1), 1 + random(most));
                let skew = [0, 0, 16][random(3)];
                let bytes = &mut memory[skew..skew + count * PAGE_SIZE];
                for (n, page) in bytes.chunks_mut(PAGE_SIZE).enumerate() {
                    page.fill((turn + n) as u8);
                }
                let at = first * PAGE_SIZE;
                pages.write(&file, bytes, at as u64).unwrap();
                expected[at..at + bytes.len()].copy_from_slice(bytes);
            }
            pages.settle(&file).unwrap();
            let tail = [5; 100];
            file.write_all_at(&tail, expected.len() as u64).unwrap();
            expected.extend(tail);
            file.sync_data().unwrap();
            let found = std::fs::read(&path).unwrap();
            assert!(found.len() <= expected.len() && found.len() > expected.len() - PAGE_SIZE * 2);
            assert_eq!(found, expected);
        }
    }

    /// A few pages are written together with what follows them; only many go straight to the disk.
    #[test]
    fn few_pages_take_no_direct_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pages");
        let file = Disk::default().create_new(&path).unwrap();
        let pages = Pages::open(&file);
        pages.write(&file, &[1; PAGE_SIZE], 0).unwrap();
        assert_eq!(file.file().metadata().unwrap().len(), 0, "it is staged");
        pages.settle(&file).unwrap();
        assert!(!pages.0.lock().unwrap().used);
        assert_eq!(file.file().metadata().unwrap().len(), PAGE_SIZE as u64);
    }
}
