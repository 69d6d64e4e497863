//! A store: marker and images that build on each other.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | 1: the marker is the one given here; 2: it is that of a sealed store |
//! | 2 | bytes of the one given |
//! | 5 | nothing |
//! | … | the marker, padded to 8 |
//! | … | images: a word (bytes), then what one is made from, padded to 8 |

use std::collections::BTreeMap;

use cr::describe::Details;
use cr::image::{Image, JobId};
use cr::restore::check_records;
use cr::store::prune::Rules;
use cr::store::{Chain, MARKER};

use super::{look_at, look_through, open_store};
use crate::forge::{OTHER_JOB, OTHER_PARENT, Parts, word};
use crate::keys::{self, JOB};
use crate::scratch::Scratch;

/// Images in a store.
const MOST: usize = 8;

pub fn run(input: &[u8]) -> bool {
    let scratch = Scratch::take();
    make_store(&scratch, input);
    let Some(store) = open_store(scratch.path()) else { return false };
    let ids = store.ids().expect("the directory can be read");
    let mut restorable = Vec::new();
    for &id in &ids {
        if let Ok(image) = store.open_image(id) {
            assert_eq!(image.is_sealed(), store.is_sealed(), "the marker says which");
            look_at(&image);
        }
        let Ok(chain) = Chain::open(&store, Some(id)) else { continue };
        assert_eq!(chain.newest().id(), id);
        let ours = |image: &Image| image.signer() == Some(keys::public());
        assert_eq!(store.check_trust(&chain).is_ok(), chain.images().iter().all(ours));
        // What it is made of and what replaced it are both read by these.
        if look_through(&chain) && chain.images().iter().all(|image| image.verify_pages(1).is_ok()) {
            restorable.push(id);
        }
        let _ = (Details::of_chain(&chain), check_records(&chain));
    }
    let newest = store.newest_intact(1).expect("the directory can be read");
    assert_eq!(newest.newest_intact, restorable.last().copied());
    let report = store.verify(1).expect("the directory can be read");
    assert_eq!(report.checkpoints, ids);
    // Each one that is found wrong is so, though not each that is wrong is found by this one.
    let wrong = |id: &u64| report.problems.iter().any(|problem| problem.id == *id);
    assert!(restorable.iter().all(|id| !wrong(id)), "{restorable:?}, but {:?}", report.problems);
    let rules = Rules { last: Some(1), bytes: Some(1 << 14), ..Rules::default() };
    if let Ok(plan) = store.plan_pruning(&rules, None) {
        assert_eq!(plan.kept.len() + plan.removed.len(), ids.len());
        assert!(ids.is_empty() || !plan.kept.is_empty());
    }
    !ids.is_empty() && restorable == ids
}

fn make_store(scratch: &Scratch, input: &[u8]) {
    let len = word(input, 1, 2) as usize;
    let (head, rest) = input.split_at(input.len().min(8));
    let (given, mut rest) = rest.split_at(rest.len().min(len.next_multiple_of(8)));
    let job = JobId(JOB);
    let marker = format!(r#"{{"format":1,"job":"{job}"}}"#);
    let given = &given[..len.min(given.len())];
    match head.first() {
        Some(1) => scratch.file(MARKER, given),
        Some(2) => scratch.file(MARKER, keys::marker().as_bytes()),
        _ => scratch.file(MARKER, marker.as_bytes()),
    };

    let mut hashes = BTreeMap::new();
    for _ in 0..MOST {
        let Some((len, more)) = rest.split_at_checked(8) else { break };
        let len = (word(len, 0, 8) as usize).min(more.len());
        let mut parts = Parts::read(&more[..len]);
        rest = &more[len.next_multiple_of(8).min(more.len())..];
        if parts.flags & OTHER_JOB == 0 {
            parts.index.set_job(JOB);
        }
        if parts.flags & OTHER_PARENT == 0
            && let Some(hash) = parts.index.parent().and_then(|parent| hashes.get(&parent))
        {
            parts.index.set_parent_hash(*hash);
        }
        let id = parts.index.id();
        let (image, hash) = parts.forge();
        hashes.insert(id, hash);
        scratch.file(&format!("{id:08}.cr"), &image);
    }
}
