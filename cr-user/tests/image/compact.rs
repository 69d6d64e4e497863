//! Compaction: the same memory in one image, whatever the chain was, and nothing from what is damaged.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cr::image::{self, Content, Extent, IndexInfo, PAGE_SIZE, Parent, Space};
use cr::store::compact::{Compacted, Compaction, UNFINISHED};
use cr::store::prune::Rules;
use cr::store::{Chain, Error, StoreWriter};

use crate::chain::{compare_contents, publish_random};
use crate::{FILES, Random, THREADS, new_store, publish};

const MEMORY: u64 = 64 << 20;

fn begin(writer: &StoreWriter, id: Option<u64>) -> Compaction {
    let chain = Chain::open(writer.store(), id).expect("chain");
    let spaces = chain.space_ids();
    Compaction::begin(writer, chain, spaces, MEMORY).expect("begin")
}

fn catch_up(compaction: &mut Compaction, writer: &StoreWriter, id: u64) {
    let chain = Chain::open(writer.store(), Some(id)).expect("chain");
    let spaces = chain.space_ids();
    compaction.catch_up(writer, chain, spaces).expect("catch up");
}

fn complete(mut compaction: Compaction, writer: &StoreWriter) -> Parent {
    while compaction.step(1000).expect("step") > 0 {}
    let finished = compaction.finish(writer, Vec::new()).expect("finish");
    writer.publish_compacted(finished).expect("publish")
}

fn is_unfinished(dir: &Path) -> bool {
    dir.join(UNFINISHED).exists()
}

#[test]
fn a_compacted_chain_is_equal_memory_in_one_image() {
    for seed in 1..=12 {
        let mut random = Random(seed * 104_729);
        let dir = tempfile::tempdir().expect("tempdir");
        let writer = new_store(dir.path());
        let history = publish_random(&writer, &mut random);
        for (model, id) in history.iter().zip(1..) {
            let compacted = complete(begin(&writer, Some(id)), &writer);
            let chain = Chain::open(writer.store(), Some(compacted.id)).expect("chain");
            assert_eq!((chain.images().len(), chain.newest().parent()), (1, None));
            let of = Compacted::of_image(chain.newest()).expect("it says so");
            assert_eq!((of.from, u64::from(of.images)), (id, id));
            chain.newest().verify_pages(1).expect("pages");
            compare_contents(&chain, model, &format!("seed {seed}, checkpoint {id}"));
        }
        assert!(writer.store().verify(1).expect("verify").is_ok() && !is_unfinished(dir.path()));
    }
}

/// Checkpoints that come in the middle are taken along; also a fork of the chain, and one that is older.
#[test]
fn what_comes_meanwhile_is_taken_along() {
    for seed in 1..=40 {
        let mut random = Random(seed * 15_485_863);
        let dir = tempfile::tempdir().expect("tempdir");
        let writer = new_store(dir.path());
        let history = publish_random(&writer, &mut random);
        let last = history.len() as u64;
        let mut compaction = begin(&writer, Some(1 + random.below(last)));
        let mut newest = compaction.from().id();
        for _ in 0..random.below(6) {
            compaction.step(random.below(400)).expect("step");
            newest = 1 + random.below(last);
            catch_up(&mut compaction, &writer, newest);
        }
        let compacted = complete(compaction, &writer);
        let chain = Chain::open(writer.store(), Some(compacted.id)).expect("chain");
        chain.newest().verify_pages(1).expect("pages");
        compare_contents(&chain, &history[newest as usize - 1], &format!("seed {seed}, checkpoint {newest}"));
    }
}

/// A job that is compacted while it rewrites its memory again and again does not make the image grow.
#[test]
fn room_is_used_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    let mut random = Random(5);
    let mut rewrite = |parent| {
        let image = writer.begin().expect("begin");
        let slot = image.put(&random.pages(50)).expect("put");
        let extents = vec![Extent { first_page: 100, pages: 50, content: Content::Stored { slot } }];
        let info = IndexInfo { parent, spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
        writer.publish(image.finish(info).expect("finish")).expect("publish")
    };
    let mut parent = rewrite(None);
    let mut compaction = begin(&writer, None);
    for _ in 0..20 {
        while compaction.step(7).expect("step") > 0 {}
        parent = rewrite(Some(parent));
        catch_up(&mut compaction, &writer, parent.id);
    }
    complete(compaction, &writer);
    let chain = Chain::open(writer.store(), None).expect("chain");
    assert_eq!(chain.newest().slots(), 50);
}

#[test]
fn what_two_spaces_share_is_stored_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    let parent = publish(&writer, None, 7);
    let image = writer.begin().expect("begin");
    let borrowed = |first_page| Extent { first_page, pages: 1, content: Content::Borrowed { back: 1, slot: 0 } };
    let spaces = vec![Space { id: 2, extents: vec![borrowed(5)] }, Space { id: 3, extents: vec![borrowed(9)] }];
    let info = IndexInfo { parent: Some(parent), spaces, ..IndexInfo::default() };
    writer.publish(image.finish(info).expect("finish")).expect("publish");
    complete(begin(&writer, None), &writer);
    let chain = Chain::open(writer.store(), None).expect("chain");
    assert_eq!((chain.newest().slots(), chain.newest().summary().statistics.stored_pages), (1, 3));
    assert_eq!(chain.lookup(1, 5), chain.lookup(3, 9));
}

#[test]
fn what_is_known_of_the_checkpoint_is_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    let parent = publish(&writer, None, 1);
    let image = writer.begin().expect("begin");
    image.record(THREADS, vec![9; 33]).expect("record");
    image.record(FILES, vec![8; 7]).expect("record");
    let (taken_at, widened) = (1_700_000_000_000_000_000, vec!["why".to_owned()]);
    let info = IndexInfo {
        parent: Some(parent),
        taken_at,
        dirty_pages: 5,
        frozen_ns: 6,
        total_ns: 7,
        widened,
        ..IndexInfo::default()
    };
    writer.publish(image.finish(info).expect("finish")).expect("publish");
    let mut compaction = begin(&writer, None);
    while compaction.step(1).expect("step") > 0 {}
    let finished = compaction.finish(&writer, vec![(FILES, vec![3; 40])]).expect("finish");
    writer.publish_compacted(finished).expect("publish");
    let (made, from) = (writer.store().open_image(3).expect("made"), writer.store().open_image(2).expect("from"));
    assert_eq!(made.record(THREADS).expect("threads"), [9; 33]);
    assert_eq!(made.record(FILES).expect("files"), [3; 40], "replaced");
    let (mut summary, from) = (made.summary(), from.summary());
    summary.statistics.stored_pages = from.statistics.stored_pages;
    assert_eq!((summary.statistics, summary.taken_at, summary.widened), (from.statistics, taken_at, from.widened));
    // It stands by itself.
    let pruned = writer.prune(&Rules { last: Some(1), ..Rules::default() }, None).expect("pruned");
    assert_eq!((pruned.kept[0].id, pruned.removed.len()), (3, 2));
    assert!(writer.store().verify(1).expect("verify").is_ok());
}

/// A damaged page never gets a checksum that fits it; one that a newer image replaced does no harm.
#[test]
fn damage_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    let parent = publish(&writer, None, 1);
    let image = writer.begin().expect("begin");
    let slot = image.put(&[2; PAGE_SIZE]).expect("put");
    let extents = vec![Extent { first_page: 70, pages: 1, content: Content::Stored { slot } }];
    let info = IndexInfo { parent: Some(parent), spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
    let parent = writer.publish(image.finish(info).expect("finish")).expect("publish");
    let file = OpenOptions::new().write(true).open(writer.store().image_path(1)).expect("open");
    file.write_all_at(&[77], image::HEADER_BYTES + 100).expect("write");
    let mut compaction = begin(&writer, None);
    let why = std::iter::repeat_with(|| compaction.step(1)).take(5).find_map(Result::err).expect("it is refused");
    assert!(matches!(&why, Error::Image(image::Error::DamagedPages { .. })), "{why}");
    assert!(why.to_string().contains("00000001.cr") && is_unfinished(dir.path()), "{why}");
    drop(compaction);
    assert!(!is_unfinished(dir.path()) && writer.store().ids().expect("ids") == [1, 2]);
    publish(&writer, Some(parent), 3);
    complete(begin(&writer, None), &writer);
    assert!(Chain::open(writer.store(), Some(4)).expect("chain").verify_pages(1).is_ok());
}

#[test]
fn too_little_memory_is_said_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    let image = writer.begin().expect("begin");
    let slot = image.allocate(1);
    // Runs that do not continue each other: every other page.
    let extent = |n: u64| Extent { first_page: 2 * n, pages: 1, content: Content::Stored { slot } };
    let space = Space { id: 1, extents: (0..100_000).map(extent).collect() };
    let info = IndexInfo { spaces: vec![space], ..IndexInfo::default() };
    let parent = writer.publish(image.finish(info).expect("finish")).expect("publish");
    publish(&writer, Some(parent), 1);
    let chain = Chain::open(writer.store(), None).expect("chain");
    let spaces = chain.space_ids();
    let why = Compaction::begin(&writer, chain, spaces, 8 << 20).expect_err("refused");
    assert!(why.exit_code() == 2 && why.to_string().contains("--memory-limit"), "{why}");
    assert!(!is_unfinished(dir.path()));
    complete(begin(&writer, None), &writer);
}
