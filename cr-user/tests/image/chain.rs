//! A chain of deltas against a model: a map from page to contents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use cr::image::{Content, Extent, Image, IndexInfo, PAGE_SIZE, Space};
use cr::store::{Chain, Resolved, Source, StoreWriter};

use crate::{KNOWN, Random, new_store};

/// What the model holds of a page: the first eight bytes of its contents, or that it is zero or absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Page {
    Stored(u64),
    Zero,
    Absent,
}

pub const SPACES: [u64; 3] = [1, 2, 900];
const PAGES: u64 = 300;

#[test]
fn every_page_is_the_newest_one_that_was_written() {
    for seed in 1..=12 {
        let mut random = Random(seed * 7919);
        let dir = tempfile::tempdir().expect("tempdir");
        let store = new_store(dir.path());
        let history = publish_random(&store, &mut random);
        for (model, id) in history.iter().zip(1..) {
            let chain = Chain::open(store.store(), Some(id)).expect("chain");
            assert_eq!(chain.images().len() as u64, id);
            chain.verify_pages(2).expect("pages");
            compare(&chain, model, &format!("seed {seed}, checkpoint {id}"));
        }
    }
}

/// What a store should hold of each page that some image names.
pub type Model = BTreeMap<(u64, u64), Page>;

/// Publishes a full checkpoint and up to eleven deltas with random contents, and returns a model of each.
pub fn publish_random(store: &StoreWriter, random: &mut Random) -> Vec<Model> {
    let mut model = BTreeMap::new();
    let mut history = Vec::new();
    let mut parent = None;
    // Images so far, the newest first.
    let mut lenders: Vec<Image> = Vec::new();
    for _ in 0..=random.below(12) {
        let image = store.begin().expect("begin");
        let mut named = BTreeMap::new();
        let mut spaces = Vec::new();
        for space in SPACES {
            let mut extents = Vec::new();
            for _ in 0..random.below(25) {
                let first = random.below(PAGES);
                let longest = if random.below(4) == 0 { 60 } else { 5 };
                let pages = 1 + random.below(longest);
                if (first..first + pages).any(|page| named.contains_key(&(space, page))) {
                    continue;
                }
                let back = random.below(lenders.len() as u64 + 1) as usize;
                let lendable = if back == 0 { 0 } else { (lenders[back - 1].slots() + 1).saturating_sub(pages) };
                let content = match random.below(5) {
                    0 => Content::Zero,
                    1 => Content::Absent,
                    2 if lendable > 0 => Content::Borrowed { back: back as u32, slot: random.below(lendable) },
                    _ => Content::Stored { slot: image.put(&random.pages(pages as usize)).expect("put") },
                };
                let extent = Extent { first_page: first, pages, content };
                named.extend((first..extent.end_page()).map(|page| ((space, page), extent.content_at(page))));
                extents.push(extent);
            }
            spaces.push(Space::from_unsorted(space, extents));
        }
        let info = IndexInfo { parent, spaces, ..IndexInfo::default() };
        parent = Some(store.publish(image.finish(info).expect("finish")).expect("publish"));
        let written = Image::open(&store.store().image_path(parent.expect("published").id), KNOWN).expect("open");
        for (key, content) in named {
            let page = match content {
                Content::Stored { slot } => Page::Stored(first_bytes(written.page_bytes(slot, 1))),
                Content::Zero => Page::Zero,
                Content::Absent => Page::Absent,
                Content::Borrowed { back, slot } => {
                    Page::Stored(first_bytes(lenders[back as usize - 1].page_bytes(slot, 1)))
                }
            };
            model.insert(key, page);
        }
        history.push(model.clone());
        lenders.insert(0, written);
    }
    history
}

/// Compares what the chain says, page by page and run by run, with the model.
fn compare(chain: &Chain, model: &Model, what: &str) {
    for space in SPACES {
        let expected = |page| model.get(&(space, page)).copied().unwrap_or(Page::Absent);
        let runs = chain.resolve(space).collect::<Vec<_>>();
        for pair in runs.windows(2) {
            let end = pair[0].first_page + pair[0].pages;
            assert!(end <= pair[1].first_page, "{what}: ascending");
            let joinable = end == pair[1].first_page && pair[0].source.advanced(pair[0].pages) == pair[1].source;
            assert!(!joinable, "{what}: as long as can be");
        }
        let mut named = BTreeSet::new();
        for Resolved { first_page, pages, source } in runs {
            for page in first_page..first_page + pages {
                let source = source.advanced(page - first_page);
                assert_eq!(chain.lookup(space, page), source, "{what}: page {page}");
                assert_eq!(contents(chain, source), expected(page), "{what}: page {page}");
                named.insert(page);
            }
        }
        for page in 0..PAGES + 70 {
            assert_eq!(named.contains(&page), model.contains_key(&(space, page)), "{what}: page {page}");
        }
        let ranges = chain.content_pages(space).collect::<Vec<_>>();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "{what}: joined");
    }
    compare_contents(chain, model, what);
}

/// Compares the contents of each page with the model.
pub fn compare_contents(chain: &Chain, model: &Model, what: &str) {
    for space in SPACES {
        let expected = |page| model.get(&(space, page)).copied().unwrap_or(Page::Absent);
        let finder = chain.finder(space);
        for page in 0..PAGES + 70 {
            let source = chain.lookup(space, page);
            assert_eq!(contents(chain, source), expected(page), "{what}: page {page}");
            assert_eq!(finder.find(page), source, "{what}: page {page}");
        }
        let with_contents = chain.content_pages(space).flat_map(|(first, pages)| first..first + pages);
        let expected = (0..PAGES + 70).filter(|page| expected(*page) != Page::Absent);
        assert_eq!(with_contents.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{what}");
    }
}

fn contents(chain: &Chain, source: Source) -> Page {
    match source {
        Source::Stored { image, offset } => {
            Page::Stored(first_bytes(chain.images()[image].page_bytes(offset / PAGE_SIZE as u64 - 1, 1)))
        }
        Source::Zero => Page::Zero,
        Source::Absent => Page::Absent,
    }
}

fn first_bytes(page: &[u8]) -> u64 {
    u64::from_le_bytes(page[..8].try_into().expect("8 bytes"))
}

#[test]
fn only_pages_that_are_still_in_use_are_checked() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = new_store(dir.path());
    let mut parent = None;
    // The second replaces the first of two pages.
    for pages in [2, 1] {
        let image = store.begin().expect("begin");
        let slot = image.put(&vec![pages as u8; pages as usize * PAGE_SIZE]).expect("put");
        let extents = vec![Extent { first_page: 0, pages, content: Content::Stored { slot } }];
        let info = IndexInfo { parent, spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
        parent = Some(store.publish(image.finish(info).expect("finish")).expect("publish"));
    }
    let root = OpenOptions::new().write(true).open(store.store().image_path(1)).expect("open");
    root.write_all_at(&[9], 4096).expect("damage the page that was replaced");
    let chain = Chain::open(store.store(), None).expect("chain");
    chain.verify_pages(1).expect("it is not part of the newest checkpoint");
    chain.images()[1].verify_pages(1).expect_err("but of the oldest");
    root.write_all_at(&[9], 2 * 4096).expect("damage the other page");
    chain.verify_pages(1).expect_err("it is part of both");
}

#[test]
fn what_is_borrowed_from_nowhere_is_damage() {
    for (back, slot, pages) in [(1, 2, 1), (1, 1, 2), (2, 0, 1), (1, 1 << 51, 1)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = new_store(dir.path());
        let lender = store.begin().expect("begin");
        lender.put(&[1; 2 * PAGE_SIZE]).expect("put");
        let parent = store.publish(lender.finish(IndexInfo::default()).expect("finish")).expect("publish");
        let extents = vec![Extent { first_page: 7, pages, content: Content::Borrowed { back, slot } }];
        let info = IndexInfo { parent: Some(parent), spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
        let image = store.begin().expect("begin").finish(info).expect("finish");
        store.publish(image).expect("publish");
        let error = Chain::open(store.store(), None).expect_err("there is no such page").to_string();
        assert!(error.contains("00000002.cr") && error.contains("page 0x7"), "{error}");
    }
}
