//! Checkpoints of which every byte is as it was written, and which make no sense: `cr verify` says what contradicts what, and
//! `cr restore` starts nothing and offers the checkpoint before. Made from a golden chain; no root needed.

use std::path::Path;
use std::process::Command;

use cr::image::{Content, Extent, IndexInfo, RecordKind, Space};
use cr::object::files::stored::Stored;
use cr::object::memory::backing::Backing;
use cr::object::records::put;
use cr::object::{self, KINDS};
use cr::recorded::Records;
use cr::store::{Chain, Store};
use cr_tests::{cr, run};
use tempfile::TempDir;

/// What a delta on the golden chain says.
struct Forged {
    records: Records,
    spaces: Vec<Space>,
    /// A record that is no archive.
    broken: Option<RecordKind>,
}

impl Forged {
    /// The space of the root, which is first among those of processes.
    fn root(&self) -> u64 {
        self.records.process[0].pid as u64
    }

    fn extent(&mut self, space: u64, first_page: u64, content: Content) {
        let space = self.spaces.iter_mut().find(|s| s.id == space).expect("a space");
        space.extents.push(Extent { first_page, pages: 1, content });
    }
}

fn golden() -> (TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/format-2.tar.xz");
    let unpacked = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(folder.path()).status();
    assert!(unpacked.expect("tar, and xz").success(), "the golden chain cannot be unpacked");
    let store = Store::open_existing(folder.path(), KINDS).expect("the golden chain");
    (folder, store)
}

/// Publishes a delta on the newest checkpoint, which says the same after `change`.
fn forge(store: &Store, change: impl FnOnce(&mut Forged)) -> u64 {
    let chain = Chain::open(store, None).expect("the chain");
    let mut records = Records::read(&chain).expect("its records");
    // So that it could be restored without --accept-missing.
    records.omitted.memory.clear();
    let spaces = chain.newest().space_ids().map(|id| Space { id, extents: Vec::new() }).collect();
    let mut forged = Forged { records, spaces, broken: None };
    change(&mut forged);
    let Forged { records, spaces, broken } = forged;
    let writer = store.lock().expect("the lock");
    let image = writer.begin().expect("an image");
    macro_rules! put_all {
        ($($kind:expr => $record:expr),*) => {$(
            if broken == Some($kind) {
                image.record($kind, vec![0xff; 48]).expect("a record");
            } else {
                put(&image, $kind, &$record).expect("a record");
            }
        )*};
    }
    put_all! {
        object::process::KIND => records.process, object::threads::KIND => records.threads,
        object::memory::KIND => records.mappings, object::signals::KIND => records.signals,
        object::timers::KIND => records.timers, object::credentials::KIND => records.credentials,
        object::files::KIND => Stored { files: records.files, inherited: Vec::new() },
        object::scheduling::KIND => records.scheduling, object::clocks::KIND => records.clocks,
        object::ipc::KIND => records.ipc, object::seccomp::KIND => records.seccomp,
        object::zombies::KIND => records.zombies, object::cgroups::KIND => records.cgroups,
        object::omitted::KIND => records.omitted
    }
    let info = IndexInfo { parent: Some(chain.newest().as_parent()), spaces, ..IndexInfo::default() };
    writer.publish(image.finish(info).expect("finished")).expect("published").id
}

#[track_caller]
fn expect_found(words: &[&str], change: impl FnOnce(&mut Forged)) {
    let (folder, store) = golden();
    let before = store.newest_id().expect("a list").expect("a checkpoint");
    let id = forge(&store, change);
    let finished = run(cr().args(["verify", "--json", "--store"]).arg(folder.path()));
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    let problems = report["problems"].as_array().cloned().unwrap_or_default();
    assert!(finished.code == Some(122) && problems.len() == 1 && problems[0]["id"] == id, "{finished}");
    let what = problems[0]["what"].to_string();
    assert!(words.iter().all(|word| what.contains(word)), "{words:?} are not in {what}");
    assert_eq!(report["newest_intact"], before, "{report}");
    let restore = run(cr().args(["restore", "--detach", "--store"]).arg(folder.path()));
    restore.refuses(122, words);
    let line = format!("restore --detach --store {} --id {before}", folder.path().display());
    assert!(restore.stderr.contains(&line), "the command is not offered: {line}\n{restore}");
}

#[test]
fn one_that_makes_sense() {
    let (folder, store) = golden();
    forge(&store, |_| ());
    assert!(run(cr().args(["verify", "--json", "--store"]).arg(folder.path())).json()["ok"] == true);
}

#[test]
fn pages_where_nothing_is() {
    expect_found(&["where nothing is mapped"], |forged| {
        let is_stack = |m: &object::memory::Mapping| m.has(object::memory::advice::GROWS_DOWN);
        forged.records.mappings[0].all.retain(|m| !is_stack(m));
    });
    expect_found(&["1 pages from 0x5000 ", "where nothing is mapped"], |forged| {
        let root = forged.root();
        forged.extent(root, 5, Content::Zero);
    });
    expect_found(&["pages of the object", "of which its records do not speak"], |forged| {
        forged.spaces.push(Space { id: 1 << 40, extents: Vec::new() });
    });
    expect_found(&["pages of the memory of pid 99999999"], |forged| {
        let at = forged.spaces.partition_point(|space| space.id < 99_999_999);
        forged.spaces.insert(at, Space { id: 99_999_999, extents: Vec::new() });
    });
}

#[test]
fn memory_that_nothing_is_said_of() {
    expect_found(&["says nothing of the pages of the memory of pid"], |forged| {
        let root = forged.root();
        forged.spaces.retain(|space| space.id != root);
    });
    expect_found(&["says nothing of the pages of the object"], |forged| {
        forged.spaces.retain(|space| space.id < 1 << 32);
    });
    expect_found(&["where nothing is mapped"], |forged| {
        for mapping in &mut forged.records.mappings[0].all {
            if let Backing::Object(object) = &mut mapping.backing {
                object.size = 4096;
            }
        }
        for description in &mut forged.records.files.descriptions {
            if let object::files::Description::Memfd(memfd) = description {
                memfd.size = 4096;
            }
        }
        forged.records.mappings[1].all.retain(|m| !matches!(m.backing, Backing::Object(_)));
    });
}

#[test]
fn mappings_over_each_other() {
    expect_found(&["overlaps the one before it"], |forged| forged.records.mappings[0].all.swap(0, 1));
    expect_found(&["overlaps the one before it"], |forged| {
        let next = forged.records.mappings[0].all[1].start;
        forged.records.mappings[0].all[0].end = next + 4096;
    });
    expect_found(&["a part that no file can have"], |forged| forged.records.mappings[0].all[0].offset = 7);
}

#[test]
fn what_is_left_out_and_there() {
    let part = |forged: &Forged, pages: u64| {
        let stack = forged.records.mappings[0].all.iter().find(|m| m.has(object::memory::advice::GROWS_DOWN));
        let stack = stack.expect("a stack");
        object::omitted::Memory {
            pid: forged.records.process[0].pid,
            start: stack.start,
            end: stack.end,
            pages,
            reason: object::omitted::Reason::SkipMemory,
            space: forged.root(),
            first_page: stack.start / 4096,
        }
    };
    // To be restored at all, it must not be said: so only `cr verify` is asked.
    let (folder, store) = golden();
    forge(&store, |forged| forged.records.omitted.memory = vec![part(forged, 1)]);
    let said = run(cr().args(["verify", "--store"]).arg(folder.path())).said();
    assert!(said.contains("was left out, and the chain holds it"), "{said}");
    let accepted = run(cr().args(["restore", "--detach", "--accept-missing", "--store"]).arg(folder.path()));
    accepted.refuses(122, &["was left out, and the chain holds it", "--accept-missing", "--id 4"]);
}

#[test]
fn records_that_lead_nowhere() {
    expect_found(&["record `threads` has nothing of pid"], |forged| drop(forged.records.threads.pop()));
    expect_found(&["record `signals` speaks of pid"], |forged| {
        let again = forged.records.signals[0].clone();
        forged.records.signals.push(again);
    });
    expect_found(&["comes before its parent"], |forged| forged.records.process.swap(0, 1));
    expect_found(&["names it twice"], |forged| {
        let again = forged.records.process[1].clone();
        forged.records.process.push(again);
    });
    expect_found(&["record `files` refers to descriptions"], |forged| {
        forged.records.files.tables[0].rows[0].description = 1000;
    });
    expect_found(&["record `files` has a table of pid"], |forged| forged.records.files.tables[0].pids.push(77));
    expect_found(&["record `cgroups` speaks of thread"], |forged| forged.records.cgroups.members[0].tid = 5);
    expect_found(&["record `cgroups` is not valid", "groups that are not there"], |forged| {
        forged.records.cgroups.members[0].set = 1000;
    });
    expect_found(&["extended state"], |forged| forged.records.threads[0].all[0].xstate_len = u32::MAX);
}

#[test]
fn records_that_are_none() {
    for kind in KINDS {
        // Those that this version of cr knows besides are none that it must have.
        if [object::process::KIND, object::memory::KIND, object::files::KIND, object::omitted::KIND].contains(kind) {
            expect_found(&[&format!("`{}` is not valid", kind.name)], |forged| forged.broken = Some(*kind));
        }
    }
}

#[test]
fn pages_that_are_borrowed_from_nowhere() {
    expect_found(&["is said to be in slot 1099511627776 of the image 1 before it"], |forged| {
        let (root, page) = (forged.root(), forged.records.mappings[0].all[0].start / 4096);
        forged.extent(root, page, Content::Borrowed { back: 1, slot: 1 << 40 });
    });
    expect_found(&["of the image 40 before it"], |forged| {
        let (root, page) = (forged.root(), forged.records.mappings[0].all[0].start / 4096);
        forged.extent(root, page, Content::Borrowed { back: 40, slot: 0 });
    });
}
