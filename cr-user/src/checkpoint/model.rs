//! Random lives of a job's memory, checkpoint after checkpoint, against a plain map of its pages.
//!
//! Between two checkpoints pages are written, mapped, unmapped, mapped anew in place, cleared and grown into, and address spaces
//! forked, emptied and ended. Each checkpoint is built from what a tracker would say by the same code as a real one ([`Sink`],
//! [`Prior`]). Now and then the job is set back to an older checkpoint, so that the chain forks, its controller starts anew, the
//! chain is [compacted](compaction), or checkpoints are pruned. At any time, every checkpoint in the store must hold exactly the memory
//! of its time.

mod compaction;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::prior::Prior;
use super::sink::{Sink, Summed};
use crate::image::{Compression, IndexInfo, PAGE_SIZE, Parent, page_digests};
use crate::ranges::RangeSet;
use crate::store::compact::{self, Compaction};
use crate::store::prune::Rules;
use crate::store::{Chain, PageReader, Source, Store, StoreWriter};

/// Page numbers that a space uses.
const PAGES: u64 = 160;
/// Numbers of spaces: a few, so that they are used again.
const SPACES: [u64; 5] = [7, 8, 9, 1 << 32, (1 << 32) + 1];
const ROUNDS: usize = 14;

#[test]
fn every_checkpoint_holds_the_memory_of_its_time() {
    const LIVES: u64 = 400;
    const TIME: Duration = Duration::from_secs(12);
    let began = Instant::now();
    // One life alone, or as many as there is time for.
    let seeds = match std::env::var("CR_MODEL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..=seed,
        None => 1..=LIVES,
    };
    let (mut lives, mut checkpoints, mut compacted) = (0, 0, 0);
    for seed in seeds.take_while(|seed| *seed <= 5 || began.elapsed() < TIME) {
        let life = Life::live(seed);
        checkpoints += life.checkpoints;
        compacted += life.compacted;
        lives += 1;
    }
    println!("{lives} lives, {checkpoints} checkpoints, {compacted} compactions");
    assert!(lives == 1 || compacted > 0, "nothing was compacted");
}

/// What makes the content of each page of a space; 0 for zeroes. Pages that were never touched are not there.
type Pages = BTreeMap<u64, u64>;

/// An address space or a memory object.
#[derive(Debug, Clone, Default, PartialEq)]
struct Area {
    mapped: RangeSet,
    pages: Pages,
}

/// All that there is.
type Memory = BTreeMap<u64, Area>;

/// The job, its store, and what its controller knows.
struct Life {
    random: Random,
    /// To name the life.
    seed: u64,
    folder: TempDir,
    writer: StoreWriter,
    memory: Memory,
    /// Pages that were written since the last checkpoint.
    written: HashMap<u64, RangeSet>,
    /// Which space was copied from which.
    forked: HashMap<u64, u64>,
    /// Pages that have content according to the chain.
    content: HashMap<u64, RangeSet>,
    parent: Option<Parent>,
    /// Every checkpoint in the store, and the memory that it is of.
    taken: BTreeMap<u64, (Parent, Memory)>,
    clock: u64,
    /// One that is under way.
    compaction: Option<Compaction>,
    /// How many there were.
    checkpoints: usize,
    compacted: usize,
}

impl Life {
    fn live(seed: u64) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let store = Store::create_or_open(folder.path(), &[compact::KIND]).expect("a new store");
        let mut life = Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            seed,
            folder,
            writer: store.lock().expect("nobody else has it"),
            memory: Memory::new(),
            written: HashMap::new(),
            forked: HashMap::new(),
            content: HashMap::new(),
            parent: None,
            taken: BTreeMap::new(),
            clock: 1_700_000_000_000_000_000,
            compaction: None,
            checkpoints: 0,
            compacted: 0,
        };
        for _ in 0..ROUNDS {
            for _ in 0..life.random.below(12) {
                life.step();
            }
            if life.random.below(8) > 0 {
                life.checkpoint();
                life.checkpoints += 1;
            }
            life.keep_house();
        }
        life.check_all();
        life
    }

    /// The job does something.
    fn step(&mut self) {
        let space = SPACES[self.random.below(SPACES.len() as u64) as usize];
        let first = self.random.below(PAGES);
        let most = [1, 6, 60][self.random.below(3) as usize];
        let range = first..(first + 1 + self.random.below(most)).min(PAGES);
        match self.random.below(14) {
            0..=4 => self.write(space, range),
            5 | 6 => self.memory.entry(space).or_default().mapped.insert(range),
            7 => self.unmap(space, &range),
            8 => {
                // Something else at the same place, that may be touched at once.
                self.unmap(space, &range);
                self.memory.entry(space).or_default().mapped.insert(range.clone());
                if self.random.below(2) == 0 {
                    self.write(space, range);
                }
            }
            9 => self.clear(space, &range),
            10 => self.resize(space, first),
            11 => self.fork(space),
            12 => {
                // It ends, or executes something else.
                self.unmap(space, &(0..PAGES));
                self.memory.remove(&space);
                self.forked.remove(&space);
            }
            _ => self.write_again(space, &range),
        }
    }

    /// Writes new contents: in one run something that is nowhere yet, zeroes, or the same in all of them.
    fn write(&mut self, space: u64, range: Range<u64>) {
        let kind = self.random.below(6);
        let seed = self.random.next();
        let area = self.memory.entry(space).or_default();
        area.mapped.insert(range.clone());
        for page in range.clone() {
            let content = match kind {
                0 => 0,
                1 => 77,
                _ => seed.wrapping_add(page),
            };
            area.pages.insert(page, content);
        }
        self.note(space, range);
    }

    /// Writes what is there already: it counts as written, and is the same.
    fn write_again(&mut self, space: u64, range: &Range<u64>) {
        let Some(area) = self.memory.get(&space) else { return };
        for page in area.pages.range(range.clone()).map(|(page, _)| *page).collect::<Vec<_>>() {
            self.note(space, page..page + 1);
        }
    }

    fn unmap(&mut self, space: u64, range: &Range<u64>) {
        self.clear(space, range);
        if let Some(area) = self.memory.get_mut(&space) {
            area.mapped = area.mapped.difference(&range.clone().into());
        }
    }

    /// The pages go, and their places stay.
    fn clear(&mut self, space: u64, range: &Range<u64>) {
        if let Some(area) = self.memory.get_mut(&space) {
            area.pages.retain(|page, _| !range.contains(page));
        }
        if let Some(written) = self.written.get_mut(&space) {
            *written = written.difference(&range.clone().into());
        }
    }

    /// Ends at `end` from now on: what is beyond goes, or there is new room.
    fn resize(&mut self, space: u64, end: u64) {
        self.unmap(space, &(end..PAGES));
        self.memory.entry(space).or_default().mapped.insert(0..end);
    }

    /// Another space becomes a copy of this one.
    fn fork(&mut self, parent: u64) {
        let child = SPACES[self.random.below(3) as usize];
        let Some(copy) = self.memory.get(&parent).filter(|_| child != parent).cloned() else { return };
        self.unmap(child, &(0..PAGES));
        copy.pages.keys().for_each(|page| self.note(child, *page..page + 1));
        self.memory.insert(child, copy);
        self.forked.insert(child, parent);
    }

    fn note(&mut self, space: u64, range: Range<u64>) {
        self.written.entry(space).or_default().insert(range);
    }

    /// Takes a checkpoint, in the way of [`Job::checkpoint`](super::Job::checkpoint) and `Survey`.
    fn checkpoint(&mut self) {
        if self.random.below(10) == 0 {
            // A full one.
            self.parent = None;
            self.content.clear();
        }
        let prior = self.parent.map(|parent| {
            let chain = Chain::open(self.writer.store(), Some(parent.id)).expect("the parent is whole");
            assert_eq!(chain.newest().as_parent(), parent);
            Arc::new(Prior::new(chain))
        });
        let any = [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Auto];
        let compression = any[self.random.below(any.len() as u64) as usize];
        let mut sink = Sink::new(self.writer.begin_packed(compression).expect("a new image"), prior.clone(), 1 << 20);
        self.forked.iter().for_each(|(child, parent)| sink.relate(*child, *parent));
        let none = RangeSet::new();
        let mut owns = Vec::new();
        for (space, area) in self.memory.clone() {
            let own: RangeSet = area.pages.keys().map(|page| *page..page + 1).collect();
            let known = self.content.get(&space).unwrap_or(&none);
            let written = self.written.get(&space).unwrap_or(&none);
            let dirty = written.union(&own.difference(known)).intersection(&own);
            // More than was written may be asked about, and is compared then.
            let from = self.random.below(PAGES);
            let doubtful = RangeSet::from(from..from + self.random.below(40)).intersection(&own);
            // Some pages were copied before the job was frozen, and those with an odd number written again meanwhile.
            let from = self.random.below(PAGES);
            let early = RangeSet::from(from..from + self.random.below(40)).intersection(&dirty);
            let older = area.pages.iter().map(|(page, content)| (*page, content ^ (page & 1))).collect();
            absorb(&mut sink, space, &early, &older, prior.as_deref().filter(|_| from.is_multiple_of(2)));
            let settled = early.iter().flatten().filter(|page| page.is_multiple_of(2)).map(|page| page..page + 1);
            let copy = dirty.difference(&settled.collect());
            absorb(&mut sink, space, &copy.difference(&doubtful), &area.pages, None);
            absorb(&mut sink, space, &doubtful, &area.pages, prior.as_deref());
            owns.push((space, own));
        }
        let spaces = owns.iter().map(|(space, own)| {
            let known = self.content.get(space).cloned().unwrap_or_default();
            sink.space(*space, own, &known.difference(own))
        });
        let spaces = spaces.collect();
        self.clock += self.random.below(7_200_000_000_000);
        let info = IndexInfo { parent: self.parent, taken_at: self.clock, spaces, ..IndexInfo::default() };
        let finished = sink.into_writer().finish(info).expect("a finished image");
        let published = self.writer.publish(finished).expect("a published image");
        self.content.extend(owns);
        self.written.clear();
        self.parent = Some(published);
        self.taken.insert(published.id, (published, self.memory.clone()));
        self.check(published.id);
    }

    /// What may happen between two checkpoints, other than by the job.
    fn keep_house(&mut self) {
        match self.random.below(10) {
            0 => self.prune(),
            1 => self.set_back(),
            2 => self.know_from_chain(),
            3..=5 => self.compact(),
            _ => {}
        }
    }

    fn prune(&mut self) {
        let most = self.random.below(5) as u32;
        let rules = match self.random.below(3) {
            0 => Rules { last: Some(most), ..Rules::default() },
            1 => Rules { hourly: Some(most), ..Rules::default() },
            _ => Rules { bytes: Some(u64::from(most) << 19), ..Rules::default() },
        };
        // What it copies from may go.
        self.compaction = None;
        let pruned = self.writer.prune(&rules, self.parent.map(|parent| parent.id)).expect("a pruned store");
        pruned.removed.iter().for_each(|fate| drop(self.taken.remove(&fate.id)));
        self.check_all();
    }

    /// The job is restored as it was at some checkpoint.
    fn set_back(&mut self) {
        let which = self.random.below(self.taken.len().max(1) as u64) as usize;
        let Some((parent, memory)) = self.taken.values().nth(which).cloned() else { return };
        (self.parent, self.memory) = (Some(parent), memory);
        self.written.clear();
        self.know_from_chain();
    }

    /// Another controller goes on: it knows what the chain says.
    fn know_from_chain(&mut self) {
        let Some(parent) = self.parent else { return };
        let chain = Chain::open(self.writer.store(), Some(parent.id)).expect("the parent is whole");
        let pages = |space| chain.content_pages(space).map(|(first, pages)| first..first + pages).collect();
        self.content = chain.space_ids().into_iter().map(|space| (space, pages(space))).collect();
    }

    /// The store holds these checkpoints and no others, all of them whole and right.
    fn check_all(&self) {
        let ids = self.writer.store().ids().expect("the store can be read");
        assert_eq!(ids, self.taken.keys().copied().collect::<Vec<_>>(), "{}", self.name());
        let report = self.writer.store().verify(2).expect("the store can be read");
        assert!(report.is_ok(), "{}: {:?}", self.name(), report.problems);
        for id in ids {
            self.check(id);
        }
    }

    /// The checkpoint holds exactly the memory of its time, by both ways of asking. Of spaces that were not there any more, it may
    /// say anything.
    fn check(&self, id: u64) {
        let (parent, memory) = &self.taken[&id];
        let chain = Chain::open(self.writer.store(), Some(id)).expect("a whole chain");
        assert_eq!(chain.newest().as_parent(), *parent);
        let mut reader = PageReader::new(&chain);
        let mut bytes = |source| match source {
            Source::Stored { image, offset } => Some(reader.get(image, offset, 1).expect("whole blocks").to_vec()),
            Source::Zero => Some(vec![0; PAGE_SIZE]),
            Source::Absent => None,
        };
        for (space, area) in memory {
            let mut found = BTreeMap::new();
            for run in chain.resolve(*space) {
                for page in run.first_page..run.first_page + run.pages {
                    let source = run.source.advanced(page - run.first_page);
                    assert_eq!(chain.lookup(*space, page), source, "{}: page {page} of {space}", self.name());
                    found.extend(bytes(source).map(|bytes| (page, bytes)));
                }
            }
            for page in 0..PAGES {
                let expected = area.pages.get(&page).map(|content| contents(*content));
                let is_right = found.get(&page) == expected.as_ref();
                assert!(is_right, "{}: checkpoint {id}, page {page} of {space} is not as it was", self.name());
            }
            assert_eq!(found.len(), area.pages.len(), "{}: checkpoint {id}, {space} has too much", self.name());
            let listed = chain.content_pages(*space).flat_map(|(first, pages)| first..first + pages);
            assert!(listed.eq(area.pages.keys().copied()), "{}: checkpoint {id}, {space}", self.name());
        }
    }

    fn name(&self) -> String {
        format!("life {} (again: CR_MODEL_SEED={0}) in {}", self.seed, self.folder.path().display())
    }
}

/// Hands pages to the image, as the copies of a few ranges.
fn absorb(sink: &mut Sink, space: u64, which: &RangeSet, pages: &Pages, prior: Option<&Prior>) {
    let ranges: Vec<Range<u64>> = which.iter().collect();
    for ranges in ranges.chunks(3) {
        let bytes: Vec<u8> = ranges.iter().cloned().flatten().flat_map(|page| contents(pages[&page])).collect();
        let sums = page_digests(&bytes);
        sink.absorb(space, ranges, Summed { bytes: &bytes, sums: &sums }, prior).expect("pages are written");
    }
}

fn contents(seed: u64) -> Vec<u8> {
    seed.to_le_bytes().repeat(PAGE_SIZE / 8)
}

/// A small xorshift generator: the same numbers every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }
}
