//! Files of a chain that are damaged, missing, or not where they belong: which checkpoints are told to be unusable, and which one is
//! the newest that is not.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use cr::image::{Content, Extent, IndexInfo, PAGE_SIZE, Parent, Space};
use cr::store::{Chain, Store, StoreWriter};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::{FILES, Random, THREADS, new_store, publish};

/// A delta that stores a page, borrows one from the image `back` before it, and says that others are zero and absent.
fn publish_delta(writer: &StoreWriter, parent: Parent, byte: u8, back: u32) -> Parent {
    let image = writer.begin().expect("begin");
    let slot = image.put(&[byte; PAGE_SIZE]).expect("put");
    image.record(THREADS, vec![byte; 40]).expect("record");
    image.record(FILES, vec![byte; 7]).expect("record");
    let content = |first_page, content| Extent { first_page, pages: 1, content };
    let own = vec![content(5, Content::Stored { slot }), content(6, Content::Zero), content(7, Content::Absent)];
    let other = vec![content(5, Content::Borrowed { back, slot: 0 })];
    let info = IndexInfo {
        parent: Some(parent),
        widened: vec!["a reason that does not fit in sixteen bytes".into()],
        spaces: vec![Space { id: 1, extents: own }, Space { id: 2, extents: other }],
        ..IndexInfo::default()
    };
    writer.publish(image.finish(info).expect("finish")).expect("publish")
}

/// The chains 1 ← 2 ← 3 and 4 ← 5.
fn two_chains(dir: &Path) -> Store {
    let writer = new_store(dir);
    let first = publish(&writer, None, 1);
    let second = publish_delta(&writer, first, 2, 1);
    publish_delta(&writer, second, 3, 2);
    let fourth = publish(&writer, None, 4);
    publish_delta(&writer, fourth, 5, 1);
    writer.store().clone()
}

/// What cannot be used if these cannot.
fn with_children(bad: &[u64]) -> Vec<u64> {
    let parents = [(1, None), (2, Some(1)), (3, Some(2)), (4, None), (5, Some(4))];
    let mut all: Vec<u64> = Vec::new();
    for (id, parent) in parents {
        if bad.contains(&id) || parent.is_some_and(|parent| all.contains(&parent) || bad.contains(&parent)) {
            all.push(id);
        }
    }
    all
}

/// Just these, and what builds on them, are told to be unusable; and the newest that is left is named, and opens.
#[track_caller]
fn expect(store: &Store, what: &str, bad: &[u64], exit_code: u8) {
    let report = store.verify(1).expect("the directory can be listed");
    let problems: Vec<u64> = report.problems.iter().map(|problem| problem.id).collect();
    let text = report.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let there: Vec<u64> = with_children(bad).into_iter().filter(|id| report.checkpoints.contains(id)).collect();
    assert_eq!(problems, there, "{what}: {text}");
    let first = report.problems.first().map_or(exit_code, |problem| problem.error.exit_code());
    assert_eq!(first, exit_code, "{what}: {text}");
    let left = report.checkpoints.iter().rev().find(|id| !problems.contains(id)).copied();
    assert_eq!(report.newest_intact, left, "{what}: {text}");
    assert_eq!(store.newest_intact(1).expect("a look").newest_intact, left, "{what}: {text}");
    if let Some(id) = left {
        Chain::open(store, Some(id)).and_then(|chain| chain.verify_pages(1)).expect("it is intact");
    }
}

#[test]
fn a_flipped_bit_is_found_in_every_image_of_a_chain() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = two_chains(dir.path());
    expect(&store, "nothing", &[], 0);
    for id in [1, 2, 3, 5] {
        let path = store.image_path(id);
        let bytes = fs::read(&path).expect("the image");
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        // Every byte that says something; of reserved ones and of pages, some.
        let pages_end = 2 * PAGE_SIZE;
        let dense = |at: &usize| *at < 80 || (4064..4096).contains(at) || *at >= pages_end || at.is_multiple_of(61);
        for at in (0..bytes.len()).filter(dense) {
            file.write_all_at(&[bytes[at] ^ 1 << (at % 8)], at as u64).expect("flip");
            expect(&store, &format!("byte {at} of image {id}"), &[id], 122);
            file.write_all_at(&[bytes[at]], at as u64).expect("flip back");
        }
    }
    expect(&store, "all flipped back", &[], 0);
}

#[test]
fn a_cut_is_found_in_every_image_of_a_chain() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = two_chains(dir.path());
    let mut random = Random(7);
    for id in 1..=5 {
        let path = store.image_path(id);
        let bytes = fs::read(&path).expect("the image");
        let by_chance: Vec<usize> = (0..40).map(|_| random.below(bytes.len() as u64) as usize).collect();
        for len in [0, 1, 4095, 4096, 8192, bytes.len() - 256, bytes.len() - 1].into_iter().chain(by_chance) {
            fs::write(&path, &bytes[..len]).expect("cut");
            expect(&store, &format!("image {id} cut to {len} bytes"), &[id], 122);
        }
        fs::write(&path, [&bytes[..], &bytes[..]].concat()).expect("twice");
        expect(&store, &format!("image {id} twice"), &[id], 122);
        fs::write(&path, &bytes).expect("whole");
    }
    expect(&store, "all whole again", &[], 0);
}

#[test]
fn whatever_is_missing_is_missed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = two_chains(dir.path());
    let aside = dir.path().join("aside");
    for id in 1..=5 {
        fs::rename(store.image_path(id), &aside).expect("gone");
        expect(&store, &format!("image {id} gone"), &[id], 122);
        fs::rename(&aside, store.image_path(id)).expect("back");
    }
}

#[test]
fn files_under_other_names_are_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = two_chains(dir.path());
    let bytes = |id| fs::read(store.image_path(id)).expect("an image");
    for (one, two) in [(1, 2), (2, 3), (1, 4), (3, 5), (4, 5)] {
        let (first, second) = (bytes(one), bytes(two));
        fs::write(store.image_path(one), &second).expect("write");
        fs::write(store.image_path(two), &first).expect("write");
        expect(&store, &format!("{one} and {two} changed over"), &[one, two], 122);
        fs::write(store.image_path(one), &first).expect("write");
        fs::write(store.image_path(two), &second).expect("write");
    }
    // A copy under a number that is free: it is named, and the others are as they were.
    fs::copy(store.image_path(5), store.image_path(6)).expect("copy");
    let report = store.verify(1).expect("verify");
    let text = report.problems.iter().map(ToString::to_string).collect::<String>();
    assert!(report.problems.len() == 1 && text.contains("checkpoint 5 under a wrong name"), "{text}");
    assert_eq!(report.newest_intact, Some(5));
}

#[test]
fn files_of_another_store_are_found() {
    let (dir, other) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let (store, stranger) = (two_chains(dir.path()), two_chains(other.path()));
    for id in 1..=5 {
        let own = fs::read(store.image_path(id)).expect("an image");
        fs::copy(stranger.image_path(id), store.image_path(id)).expect("copy");
        expect(&store, &format!("another store's {id}"), &[id], 122);
        fs::write(store.image_path(id), own).expect("write");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = two_chains(dir.path());
    let aside = dir.path().join("aside");
    for id in [1, 3, 5] {
        let path = store.image_path(id);
        fs::rename(&path, &aside).expect("aside");
        fs::create_dir(&path).expect("a directory");
        expect(&store, &format!("a directory for {id}"), &[id], 122);
        fs::remove_dir(&path).expect("removed");
        mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
        expect(&store, &format!("a FIFO for {id}"), &[id], 122);
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "").expect("an empty file");
        expect(&store, &format!("an empty file for {id}"), &[id], 122);
        fs::remove_file(&path).expect("removed");
        // One that cannot be opened, root or not: a link to itself.
        symlink(&path, &path).expect("a link");
        expect(&store, &format!("a file that cannot be opened for {id}"), &[id], 124);
        fs::remove_file(&path).expect("removed");
        // A link to the file is as good as the file.
        symlink(&aside, &path).expect("a link");
        expect(&store, "a link", &[], 0);
        fs::remove_file(&path).expect("removed");
        fs::rename(&aside, &path).expect("back");
    }
}
