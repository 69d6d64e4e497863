//! Pages of images that hold them in blocks: a process cannot read them by itself, so they are decoded here and put into it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, Result};
use crate::image::BLOCK_PAGES;
use crate::store::{Chain, PageReader};
use crate::sys::{PAGE, vm};

/// So many pages are decoded before they are written: they are still in the cache then.
const AT_ONCE: u64 = 16 * BLOCK_PAGES;

/// Pages that follow each other in an image and in memory.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Number of the first page in memory.
    pub page: u64,
    /// How many.
    pub pages: u64,
    /// Which image of the chain.
    pub image: usize,
    /// Where they are [stored](crate::store::Source::Stored) in it.
    pub offset: u64,
}

impl Packed {
    /// Cuts it where blocks end, so that no two threads decode the same one.
    fn pieces(self) -> impl Iterator<Item = Self> {
        let slot = self.offset / PAGE;
        let mut done = 0;
        std::iter::from_fn(move || {
            let left = self.pages.checked_sub(done).filter(|left| *left > 0)?;
            // Slot 0 is at page 1 of the file.
            let to_edge = AT_ONCE - (slot + done - 1) % AT_ONCE;
            let pages = left.min(to_edge);
            let piece = Self { page: self.page + done, pages, image: self.image, offset: self.offset + done * PAGE };
            done += pages;
            Some(piece)
        })
    }
}

/// Puts pages into the memory of a process, where it must be writable, on all CPUs.
///
/// # Errors
/// When a block cannot be decoded, or the memory not be written.
pub fn put(chain: &Chain, pid: i32, all: &[Packed]) -> Result<()> {
    let pieces: Vec<Packed> = all.iter().flat_map(|one| one.pieces()).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(pieces.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut reader = PageReader::new(chain);
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed))
            && !failed.load(Ordering::Relaxed)
        {
            let put = put_one(&mut reader, pid, *piece);
            if put.is_err() {
                failed.store(true, Ordering::Relaxed);
                return put;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        // A thread that cannot be had is done without.
        let others: Vec<_> =
            (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let own = work();
        let joined = others.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.fold(own, Result::and)
    })
}

fn put_one(reader: &mut PageReader<'_>, pid: i32, piece: Packed) -> Result<()> {
    let bytes = reader.get(piece.image, piece.offset, piece.pages)?;
    let address = piece.page * PAGE;
    vm::write(pid, address, bytes).map_err(|e| Error::system(format!("filling the memory at {address:#x}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_blocks_do() {
        for (slot, pages) in [(0, 1), (0, 5000), (3, 10), (255, 2), (256, 256), (1000, 3000)] {
            let whole = Packed { page: 77, pages, image: 2, offset: (slot + 1) * PAGE };
            let mut at = 0;
            for piece in whole.pieces() {
                assert_eq!((piece.page, piece.image, piece.offset), (77 + at, 2, (slot + at + 1) * PAGE));
                at += piece.pages;
                assert!(piece.pages <= AT_ONCE && (at == pages || (slot + at).is_multiple_of(BLOCK_PAGES)));
            }
            assert_eq!(at, pages);
        }
    }
}
