//! The targets.

mod chain;
mod control;
mod image;
mod records;

use std::path::Path;

use cr::image::{ArchivedExtent, Content, Image, PAGE_SIZE};
use cr::object::KINDS;
use cr::store::{Chain, Source, Store};

use crate::{Target, keys};

pub use records::BLOCK;

/// All targets.
pub const TARGETS: [Target; 4] = [
    Target { name: "image", run: image::run },
    Target { name: "chain", run: chain::run },
    Target { name: "records", run: records::run },
    Target { name: "control", run: control::run },
];

/// The store in a folder, if its marker makes sense; one that is sealed, if it opens.
fn open_store(folder: &Path) -> Option<Store> {
    let store = Store::open_existing_with(folder, KINDS, keys::none()).ok()?;
    if !store.is_sealed() {
        assert!(Store::open_existing_with(folder, KINDS, keys::by_key_file()).is_err(), "it needs no key");
        return Some(store);
    }
    assert!(store.need_key().is_err() && store.open_image(1).is_err(), "it opens without a key");
    let store = Store::open_existing_with(folder, KINDS, keys::by_key_file()).ok()?;
    store.need_key().expect("it has its key");
    Some(store)
}

/// Looks at everything that an image can be asked for, and at whether the answers agree.
fn look_at(image: &Image) {
    let summary = image.summary();
    assert_eq!((summary.id, summary.job, summary.parent), (image.id(), image.job(), image.parent()));
    assert_eq!(image.as_parent().hash, summary.hash);
    for kind in KINDS {
        let found = image.record(*kind);
        assert!(found.is_err() || image.record_version(kind.id) == Some(kind.version));
        let sum: u64 = found.unwrap_or_default().iter().map(|byte| u64::from(*byte)).sum();
        std::hint::black_box(sum);
    }
    for space in image.space_ids() {
        for extent in image.extents(space).iter().map(ArchivedExtent::native) {
            for page in [extent.first_page, extent.end_page() - 1] {
                assert_eq!(image.lookup(space, page), Some(extent.content_at(page)));
            }
            std::hint::black_box(image.lookup(space, extent.end_page()));
            if let Content::Stored { slot } = extent.content {
                read(image, slot, extent.pages);
            }
        }
    }
    for slot in 0..image.slots() {
        std::hint::black_box(image.checksum(slot));
        read(image, slot, 1);
    }
    std::hint::black_box((image.lookup(0, 0), image.lookup(u64::MAX, u64::MAX)));
    image.open_file().expect("nobody else changes it");
    // Two threads give the same verdict as one.
    assert_eq!(image.verify_pages(1).is_ok(), image.verify_pages(2).is_ok());
}

/// Reads pages, a few at a time: an image may name one slot again and again. Blocks that cannot be decoded are errors.
fn read(image: &Image, slot: u64, pages: u64) {
    let mut bytes = vec![0; 16 * PAGE_SIZE];
    for done in (0..pages).step_by(16) {
        let count = (pages - done).min(16) as usize;
        let _ = image.read_pages(slot + done, &mut bytes[..count * PAGE_SIZE]);
    }
    std::hint::black_box(bytes);
}

/// The same for a chain. Says whether its pages are intact.
fn look_through(chain: &Chain) -> bool {
    for space in chain.space_ids() {
        let mut free_from = 0;
        for run in chain.resolve(space) {
            assert!(run.pages > 0 && run.first_page >= free_from, "runs ascend");
            free_from = run.first_page + run.pages;
            for page in [run.first_page, free_from - 1] {
                assert_eq!(chain.lookup(space, page), run.source.advanced(page - run.first_page));
            }
            if let Source::Stored { image, offset } = run.source {
                read(&chain.images()[image], offset / PAGE_SIZE as u64 - 1, run.pages);
            }
        }
        let contents: u64 = chain.content_pages(space).map(|(_, pages)| pages).sum();
        let resolved = chain.resolve(space).filter(|run| run.source != Source::Absent);
        assert_eq!(contents, resolved.map(|run| run.pages).sum::<u64>());
    }
    let intact = chain.verify_pages(1).is_ok();
    assert_eq!(intact, chain.verify_pages(2).is_ok());
    intact
}
