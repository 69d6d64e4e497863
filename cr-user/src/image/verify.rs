//! Compares stored pages with their checksums, on several threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::page::page_checksum;
use super::{BLOCK_PAGES, Error, Image, PAGE_SIZE, Result};

/// How many pages a thread reads at a time.
const CHUNK_PAGES: u64 = 64;

/// Consecutive slots of one of several images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    /// Which of the images.
    pub(crate) image: usize,
    /// First slot.
    pub(crate) slot: u64,
    /// How many.
    pub(crate) pages: u64,
}

/// The damaged pages found in one image.
#[derive(Debug, Clone, Copy)]
struct Bad {
    pages: u64,
    first_slot: u64,
}

/// Checks all pages of `runs`; the error is about the first image that has damaged ones.
///
/// Pages are read with `pread`, not through the mapping: a copy into a buffer in the cache is cheaper than the page
/// faults, and a file that shrank is an error rather than a SIGBUS.
pub(crate) fn verify_runs(images: &[Image], runs: Vec<Run>, threads: usize) -> Result<()> {
    let chunks: Vec<Run> = each_once(runs).into_iter().flat_map(chunks_of).collect();
    let next = AtomicUsize::new(0);
    let work = || verify_share(images, &chunks, &next);
    let found = thread::scope(|scope| {
        // A thread that cannot be had is done without.
        let spawned: Vec<_> =
            (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut results = vec![work()];
        results.extend(spawned.into_iter().map(|thread| thread.join().expect("a checksum thread does not panic")));
        results
    });
    let mut all = BTreeMap::new();
    for share in found {
        for (image, bad) in share? {
            note(&mut all, image, bad);
        }
    }
    match all.into_iter().next() {
        None => Ok(()),
        Some((image, bad)) => Err(Error::DamagedPages {
            path: images[image].path().to_owned(),
            bad: bad.pages,
            offset: images[image].place_of(bad.first_slot),
            place: images[image].describe_slot(bad.first_slot),
        }),
    }
}

/// Slots of which the file holds nothing but zeroes, though they are not pages of zeroes: they were never put there. Ascending, joined.
/// Where pages are in blocks, those of a block go together.
pub(super) fn absent_slots(image: &Image) -> Result<Vec<Range<u64>>> {
    let file = image.open_file()?;
    let zeroes = page_checksum(&[0; PAGE_SIZE]);
    let at_once = if image.is_packed() { BLOCK_PAGES } else { 1 };
    let mut absent: Vec<Range<u64>> = Vec::new();
    let mut bytes = Vec::new();
    for slot in (0..image.slots()).step_by(at_once as usize) {
        let slots = slot..image.slots().min(slot + at_once);
        let places = image.places(slot, slots.end - slot);
        let mut is_absent = !places.is_empty() && slots.clone().any(|slot| image.checksum(slot) != zeroes);
        for place in places {
            if !is_absent {
                break;
            }
            bytes.resize((place.end - place.start) as usize, 0);
            file.read_exact_at(&mut bytes, place.start).map_err(|source| Error::io(image.path(), "read", source))?;
            is_absent = bytes.iter().all(|byte| *byte == 0);
        }
        match absent.last_mut().filter(|_| is_absent) {
            Some(last) if last.end == slots.start => last.end = slots.end,
            _ if is_absent => absent.push(slots),
            _ => (),
        }
    }
    Ok(absent)
}

/// The slots of all runs, each once: many extents may name the same ones, and what is to be read must not be more than there is.
fn each_once(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    runs.dedup_by(|next, last| {
        let end = last.slot + last.pages;
        let joins = next.image == last.image && next.slot <= end;
        if joins {
            last.pages = end.max(next.slot + next.pages) - last.slot;
        }
        joins
    });
    runs
}

fn chunks_of(run: Run) -> impl Iterator<Item = Run> {
    (0..run.pages).step_by(CHUNK_PAGES as usize).map(move |start| Run {
        image: run.image,
        slot: run.slot + start,
        pages: CHUNK_PAGES.min(run.pages - start),
    })
}

/// One thread's work: takes chunks until none is left.
fn verify_share(images: &[Image], chunks: &[Run], next: &AtomicUsize) -> Result<BTreeMap<usize, Bad>> {
    let mut found = BTreeMap::new();
    let mut buffer = vec![0; CHUNK_PAGES as usize * PAGE_SIZE];
    let mut current = None;
    while let Some(&Run { image, slot, pages }) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
        let file = match current.take() {
            Some((opened, file)) if opened == image => file,
            _ => images[image].open_file()?,
        };
        let bytes = &mut buffer[..pages as usize * PAGE_SIZE];
        images[image].read_pages_from(&file, slot, bytes)?;
        for (slot, page) in (slot..).zip(bytes.chunks_exact(PAGE_SIZE)) {
            if page_checksum(page) != images[image].checksum(slot) {
                note(&mut found, image, Bad { pages: 1, first_slot: slot });
            }
        }
        current = Some((image, file));
    }
    Ok(found)
}

fn note(found: &mut BTreeMap<usize, Bad>, image: usize, bad: Bad) {
    let entry = found.entry(image).or_insert(Bad { pages: 0, first_slot: u64::MAX });
    entry.pages += bad.pages;
    entry.first_slot = entry.first_slot.min(bad.first_slot);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_many_name_are_read_once() {
        let run = |image, slot, pages| Run { image, slot, pages };
        let runs =
            vec![run(1, 0, 9), run(0, 10, 5), run(0, 0, 4), run(0, 2, 1), run(0, 4, 1), run(0, 0, 4), run(0, 12, 9)];
        assert_eq!(each_once(runs), [run(0, 0, 5), run(0, 10, 11), run(1, 0, 9)]);
    }
}
