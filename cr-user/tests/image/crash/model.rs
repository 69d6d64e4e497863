//! What checkpoints have to hold, and whether a store holds it.

use std::collections::BTreeMap;
use std::path::Path;

use cr::disk::Disk;
use cr::image::{Content, Extent, Image, ImageWriter, IndexInfo, PAGE_SIZE, Parent, Space};
use cr::seal::Keys;
use cr::store::{Chain, PageReader, Source, Store, StoreWriter};
use memmap2::MmapMut;

use super::life::leftovers;
use crate::{KNOWN, THREADS};

/// A checkpoint that was tried.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    pub memory: Memory,
    /// None if it was never finished.
    pub identity: Option<Parent>,
    /// How many changes there were when its publication had been reported, if it was.
    pub published_at: Option<usize>,
    /// How many changes there were when it was ordered to be removed, if it was.
    pub removed_at: Option<usize>,
}

/// Pages by space and number: what makes their contents, 0 for zeroes. Besides, that of the record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pages: BTreeMap<(u64, u64), u64>,
    record: u64,
}

impl Memory {
    /// Changes pages of two spaces, and writes them as a delta: some stored, one zero, one gone, and a run of `large` pages.
    pub fn change(&mut self, image: &ImageWriter, number: u64, large: u64) -> cr::image::Result<Vec<Space>> {
        let (mut spaces, mut seed) = (Vec::new(), number << 16);
        for space in [1, 2] {
            let mut extents = Vec::new();
            let large = if space == 1 { large } else { 0 };
            for (first, count) in [(number % 3, 2), (10 + number, 1), (100, large)].into_iter().filter(|run| run.1 > 0)
            {
                let seeds = seed + 1..=seed + count;
                seed += count;
                // Memory that is aligned goes past the page cache, if there is enough of it.
                let mut memory = MmapMut::map_anon(count as usize * PAGE_SIZE).expect("a little memory");
                for ((page, seed), bytes) in (first..).zip(seeds).zip(memory.chunks_exact_mut(PAGE_SIZE)) {
                    bytes.copy_from_slice(&contents(seed));
                    self.pages.insert((space, page), seed);
                }
                let content = Content::Stored { slot: image.put(&memory)? };
                extents.push(Extent { first_page: first, pages: count, content });
            }
            self.pages.insert((space, 50), 0);
            self.pages.remove(&(space, 10 + number - 1));
            extents.push(Extent { first_page: 50, pages: 1, content: Content::Zero });
            extents.push(Extent { first_page: 10 + number - 1, pages: 1, content: Content::Absent });
            spaces.push(Space::from_unsorted(space, extents));
        }
        self.record = number;
        image.record(THREADS, record(number))?;
        Ok(spaces)
    }

    fn expect_in(&self, chain: &Chain, what: &str) {
        assert_eq!(chain.newest().record(THREADS).expect(what), record(self.record), "{what}: record");
        let (mut count, mut reader) = (0, PageReader::new(chain));
        for space in chain.space_ids() {
            for page in chain.content_pages(space).flat_map(|(first, pages)| first..first + pages) {
                let expected = self.pages.get(&(space, page));
                let expected = expected.unwrap_or_else(|| panic!("{what}: page {page} of space {space} is too much"));
                let is_right = match chain.lookup(space, page) {
                    Source::Stored { image, offset } => {
                        reader.get(image, offset, 1).expect(what) == contents(*expected)
                    }
                    Source::Zero => *expected == 0,
                    Source::Absent => false,
                };
                assert!(is_right, "{what}: page {page} of space {space} is not as it was written");
                count += 1;
            }
        }
        assert!(count == self.pages.len(), "{what}: {count} pages instead of {}", self.pages.len());
    }
}

fn contents(seed: u64) -> Vec<u8> {
    seed.to_le_bytes().repeat(PAGE_SIZE / 8)
}

fn record(number: u64) -> Vec<u8> {
    vec![number as u8; 100]
}

/// Opens a store as it was found after `position` changes and checks all that it promises.
pub fn check(store: &Path, keys: &Keys, attempts: &[Attempt], position: usize, what: &str) {
    let is_there = |attempt: &&Attempt| {
        attempt.published_at.is_some_and(|at| at <= position) && attempt.removed_at.is_none_or(|at| at >= position)
    };
    let published = attempts.iter().filter(is_there);
    let published = published.filter_map(|attempt| attempt.identity).collect::<Vec<_>>();
    let opened = if published.is_empty() {
        Store::create_or_open_with(&Disk::default(), store, KNOWN, keys)
    } else {
        Store::open_existing_with(store, KNOWN, keys)
    };
    let opened = opened.unwrap_or_else(|why| panic!("{what}: {why}"));
    let report = opened.verify(1).unwrap_or_else(|why| panic!("{what}: {why}"));
    assert!(report.is_ok(), "{what}: {:?}", report.problems);
    let found = report.checkpoints.iter().map(|id| opened.open_image(*id).expect(what).as_parent()).collect::<Vec<_>>();
    for identity in &published {
        assert!(found.contains(identity), "{what}: checkpoint {} is gone", identity.id);
    }
    let mut newest = Memory::default();
    for identity in &found {
        let attempt = attempts.iter().find(|attempt| attempt.identity == Some(*identity));
        let attempt = attempt.unwrap_or_else(|| panic!("{what}: nobody has written checkpoint {}", identity.id));
        newest = attempt.memory.clone();
        newest.expect_in(&Chain::open(&opened, Some(identity.id)).expect(what), what);
    }
    let writer = opened.lock().unwrap_or_else(|why| panic!("{what}: {why}"));
    assert!(leftovers(store).is_empty(), "{what}: {:?}", leftovers(store));
    goes_on(&writer, newest, found.last().copied()).unwrap_or_else(|why| panic!("{what}: {why}"));
}

/// The next delta can be taken, and is right.
fn goes_on(writer: &StoreWriter, mut memory: Memory, parent: Option<Parent>) -> Result<(), cr::store::Error> {
    let image = writer.begin()?;
    let spaces = memory.change(&image, 99, 0)?;
    let next = writer.publish(image.finish(IndexInfo { parent, spaces, ..IndexInfo::default() })?)?;
    let chain = Chain::open(writer.store(), None)?;
    assert_eq!(chain.newest().as_parent(), next);
    assert_eq!(chain.newest().parent(), parent);
    assert_eq!(chain.images().last().and_then(Image::parent), None);
    memory.expect_in(&chain, "the next delta");
    Ok(())
}
