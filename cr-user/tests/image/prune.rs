//! Removing checkpoints: what stays is whole, and who reads meanwhile is not led astray.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use cr::image::PAGE_SIZE;
use cr::store::prune::{Pruned, Reason, Rules};
use cr::store::{Chain, Error, Source, StoreWriter};

use crate::{new_store, publish};

fn last(count: u32) -> Rules {
    Rules { last: Some(count), ..Rules::default() }
}

fn kept(pruned: &Pruned) -> Vec<u64> {
    pruned.kept.iter().map(|fate| fate.id).collect()
}

/// `F` a full checkpoint, `d` a delta on the one before.
fn publish_all(writer: &StoreWriter, kinds: &str) {
    let mut parent = None;
    for (byte, kind) in (1..).zip(kinds.chars()) {
        parent = Some(publish(writer, parent.filter(|_| kind == 'd'), byte));
    }
}

#[test]
fn what_nothing_needs_goes_and_a_dry_run_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    publish_all(&writer, "FdFddFd");
    let store = writer.store();
    let plan = store.plan_pruning(&last(3), None).expect("a plan");
    assert_eq!((kept(&plan), store.ids().expect("ids").len()), (vec![3, 4, 5, 6, 7], 7));
    let done = writer.prune(&last(3), None).expect("pruned");
    assert!(plan.dry_run && !done.dry_run);
    assert_eq!((&plan.kept, &plan.removed), (&done.kept, &done.removed));
    assert_eq!(store.ids().expect("ids"), [3, 4, 5, 6, 7]);
    assert_eq!((&done.kept[0].reasons, &done.kept[0].needed_by), (&Vec::new(), &vec![4]));
    assert!(store.verify(1).expect("verify").is_ok());
    // Of the whole chain of a job that was restored from an older one, nothing goes either.
    assert_eq!(kept(&writer.prune(&last(1), Some(4)).expect("pruned")), [3, 4, 6, 7]);
    assert!(store.verify(1).expect("verify").is_ok());
    assert_eq!(writer.begin().expect("begin").id(), 8);
    assert!(matches!(writer.prune(&Rules::default(), None), Err(Error::NoRules)));
}

#[test]
fn damage_is_seen_and_what_cannot_be_judged_is_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    publish_all(&writer, "FdFdFd");
    let store = writer.store();
    let flip = |id, offset| {
        let file = OpenOptions::new().read(true).write(true).open(store.image_path(id)).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("read");
        file.write_all_at(&[byte[0] ^ 4], offset).expect("write");
    };
    // In 5, so that 6 cannot be restored either.
    flip(5, 100);
    let plan = store.plan_pruning(&last(1), None).expect("a plan");
    assert_eq!(kept(&plan), [3, 4, 5, 6]);
    assert_eq!(plan.kept[1].reasons, [Reason::NewestIntact, Reason::Last]);
    assert!(plan.kept[2].problem.as_ref().is_some_and(|p| p.contains("damaged")), "{:?}", plan.kept[2]);
    assert!(plan.kept[3].problem.as_ref().is_some_and(|p| p.contains("checkpoint 5")), "{:?}", plan.kept[3]);
    flip(5, 100);
    // One without its parent goes when the rules drop it.
    fs::remove_file(store.image_path(1)).expect("removed");
    let pruned = writer.prune(&last(4), None).expect("pruned");
    assert_eq!((kept(&pruned), pruned.removed[0].id), (vec![3, 4, 5, 6], 2));
    // Somebody else's, under this name: removing it would lose what cannot be told to be worthless.
    fs::rename(store.image_path(3), store.image_path(2)).expect("renamed");
    assert!(matches!(writer.prune(&last(1), None), Err(Error::Misnamed { id: 3, .. })));
    fs::rename(store.image_path(2), store.image_path(3)).expect("renamed back");
    assert_eq!(kept(&writer.prune(&last(1), None).expect("pruned")), [5, 6]);
}

/// Whoever has opened a checkpoint goes on reading it when it is removed.
#[test]
fn an_open_chain_outlives_its_names() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    publish_all(&writer, "FdF");
    let chain = Chain::open(writer.store(), Some(2)).expect("open");
    assert_eq!(kept(&writer.prune(&last(1), None).expect("pruned")), [3]);
    let Source::Stored { image: 0, offset } = chain.lookup(1, 5) else { panic!("not where it was") };
    assert_eq!(chain.images()[0].page_bytes(offset / PAGE_SIZE as u64 - 1, 1), [2; PAGE_SIZE]);
    assert_eq!(chain.images()[1].page_bytes(0, 1), [1; PAGE_SIZE]);
    assert!(matches!(Chain::open(writer.store(), Some(2)), Err(Error::NoCheckpoint { id: 2, .. })));
    // Reading it through its name is an error, of input and output: it is not damaged.
    assert_eq!(chain.verify_pages(1).expect_err("it has no name").exit_code(), 124);
}

/// Readers that come while checkpoints are taken and removed find nothing wrong.
#[test]
fn readers_meet_no_half_pruned_chain() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    publish_all(&writer, "FdF");
    let store = writer.store();
    let done = AtomicBool::new(false);
    let (verified, opened) = std::thread::scope(|scope| {
        let verifying = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let report = store.verify(1).expect("verify");
                assert!(report.is_ok() && report.newest_intact.is_some(), "{:?}", report.problems);
                let report = store.newest_intact(1).expect("a look");
                assert!(report.is_ok() && report.newest_intact.is_some(), "{:?}", report.problems);
                assert!(Chain::open(store, None).is_ok());
                rounds += 1;
            }
            rounds
        });
        let opening = scope.spawn(|| {
            let mut gone = 0;
            while !done.load(Ordering::Relaxed) {
                for id in store.ids().expect("ids") {
                    match Chain::open(store, Some(id)) {
                        Ok(chain) => assert_eq!(chain.newest().id(), id),
                        Err(Error::NoCheckpoint { id: missing, .. }) => gone += u64::from(missing == id),
                        Err(error) => panic!("checkpoint {id}: {error}"),
                    }
                }
            }
            gone
        });
        for _ in 0..60 {
            publish_all(&writer, "FddddF");
            writer.prune(&last(1), None).expect("pruned");
        }
        done.store(true, Ordering::Relaxed);
        (verifying.join().expect("the verifier"), opening.join().expect("the reader"))
    });
    assert!(verified > 0, "it never came to look");
    eprintln!("verified {verified} times, {opened} checkpoints were gone when they were opened");
}
