//! The image format and the store, without privileges (one test wants root and says so where it is not).

mod chain;
mod compact;
mod crash;
mod damage;
mod format;
mod misplaced;
mod packed;
mod prune;
mod roundtrip;
mod sealed;
mod store;

use std::path::Path;

use cr::image::{Content, Extent, IndexInfo, PAGE_SIZE, Parent, RecordKind, Space};
use cr::store::{Store, StoreWriter};

/// The record kinds that these tests know.
const KNOWN: &[RecordKind] = &[THREADS, FILES, cr::store::compact::KIND];
const THREADS: RecordKind = RecordKind { id: 1, version: 2, name: "threads" };
const FILES: RecordKind = RecordKind { id: 7, version: 1, name: "files" };

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
        self.next() % end
    }

    fn pages(&mut self, count: usize) -> Vec<u8> {
        (0..count * PAGE_SIZE / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

fn new_store(dir: &Path) -> StoreWriter {
    Store::create_or_open(dir, KNOWN).expect("a new store").lock().expect("nobody else has it")
}

/// Publishes a checkpoint of one space with one page of that content.
fn publish(writer: &StoreWriter, parent: Option<Parent>, byte: u8) -> Parent {
    let image = writer.begin().expect("begin");
    let slot = image.put(&[byte; PAGE_SIZE]).expect("put");
    image.record(THREADS, vec![byte; 100]).expect("record");
    let extents = vec![Extent { first_page: 5, pages: 1, content: Content::Stored { slot } }];
    let info = IndexInfo { parent, spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
    writer.publish(image.finish(info).expect("finish")).expect("publish")
}
