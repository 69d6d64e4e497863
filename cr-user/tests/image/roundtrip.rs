//! What was written is what is read, and what contradicts itself is not written.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use cr::image::{
    ArchivedExtent, Content, Error, Extent, Finished, HeaderInfo, Image, ImageWriter, IndexInfo, JobId, PAGE_SIZE,
    Parent, RecordKind, Space, is_zero_page,
};

use crate::{FILES, KNOWN, Random, THREADS};

const JOB: JobId = JobId([7; 16]);

fn create(path: &Path) -> ImageWriter {
    ImageWriter::create(path, HeaderInfo { id: 9, job: JOB }).expect("create")
}

/// Publishes without a store.
fn publish(finished: &Finished, path: &Path) {
    fs::hard_link(finished.path(), path).expect("link");
}

fn stored(first_page: u64, pages: u64, slot: u64) -> Extent {
    Extent { first_page, pages, content: Content::Stored { slot } }
}

#[test]
fn an_image_says_what_was_written() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("9.cr");
    let mut random = Random(1);
    let (first, second, last) = (random.pages(100), random.pages(2), random.pages(1));

    let writer = create(&dir.path().join("9.tmp"));
    let first_slot = writer.put(&first).expect("put");
    let unwritten = writer.allocate(3);
    writer.write_at(first_slot + 40, &second).expect("overwrite");
    let last_slot = writer.put(&last).expect("put");
    writer.record(FILES, vec![1, 2, 3]).expect("record");
    writer.record(THREADS, vec![9; 33]).expect("record");
    let parent = Some(Parent { id: 4, hash: [3; 32] });
    let info = IndexInfo {
        parent,
        taken_at: 1_800_000_000_000_000_000,
        dirty_pages: 120,
        frozen_ns: 5,
        total_ns: 6,
        widened: vec!["the map was full".into(), "ж".into()],
        spaces: vec![
            Space { id: 8, extents: vec![] },
            Space::from_unsorted(
                2,
                vec![
                    Extent { first_page: 0x7_ffff_0000, pages: 1 << 40, content: Content::Absent },
                    stored(0x2000, 1, last_slot),
                    Extent { first_page: 0x1fff, pages: 1, content: Content::Zero },
                    stored(0x1000, 100, first_slot),
                    stored(0x1000 + 100, 3, unwritten),
                ],
            ),
        ],
    };
    let finished = writer.finish(info).expect("finish");
    let (hash, file_bytes) = (finished.hash, finished.file_bytes);
    publish(&finished, &path);
    drop(finished);

    assert!(!dir.path().join("9.tmp").exists(), "an unpublished image is removed");
    let metadata = fs::metadata(&path).expect("metadata");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    let image = Image::open(&path, KNOWN).expect("open");
    image.verify_pages(3).expect("verify");
    let summary = image.summary();
    assert_eq!((summary.id, summary.job, summary.hash, summary.parent), (9, JOB, hash, parent));
    assert_eq!((summary.file_bytes, metadata.len()), (file_bytes, file_bytes));
    assert_eq!(summary.widened, ["the map was full", "ж"]);
    assert_eq!((summary.taken_at, image.slots()), (1_800_000_000_000_000_000, 104));
    let statistics = summary.statistics;
    assert_eq!((statistics.dirty_pages, statistics.frozen_ns, statistics.total_ns), (120, 5, 6));
    assert_eq!((statistics.stored_pages, statistics.zero_pages, statistics.absent_pages), (104, 1, 1 << 40));

    assert_eq!(image.space_ids().collect::<Vec<_>>(), [2, 8]);
    let extents = image.extents(2).iter().map(ArchivedExtent::native).collect::<Vec<_>>();
    assert_eq!(extents[0], stored(0x1000, 103, first_slot), "runs that continue each other are joined");
    assert_eq!(extents.len(), 4);
    assert_eq!(image.lookup(2, 0xfff), None);
    assert_eq!(image.lookup(2, 0x1fff), Some(Content::Zero));
    assert_eq!(image.lookup(2, 0x2000), Some(Content::Stored { slot: last_slot }));
    assert_eq!(image.lookup(2, 0x2001), None);
    assert_eq!(image.lookup(2, 0x7_ffff_0000), Some(Content::Absent));
    assert_eq!(image.lookup(8, 0x1000), None);
    assert_eq!(image.lookup(3, 0x1000), None);

    assert_eq!(image.page_bytes(first_slot, 40), &first[..40 * PAGE_SIZE]);
    assert_eq!(image.page_bytes(first_slot + 40, 2), second);
    assert!(is_zero_page(image.page_bytes(unwritten, 1)));
    let mut read = vec![0; PAGE_SIZE];
    image.open_file().expect("file").read_exact_at(&mut read, Image::slot_offset(last_slot)).expect("read");
    assert_eq!(read, last);

    assert_eq!(image.record(FILES).expect("files"), [1, 2, 3]);
    let threads = image.record(THREADS).expect("threads");
    assert_eq!(threads, [9; 33]);
    assert_eq!(threads.as_ptr().align_offset(16), 0);
}

#[test]
fn records_are_told_apart_by_kind_and_version() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("9.cr");
    let old = RecordKind { version: 1, ..THREADS };
    let writer = create(&dir.path().join("9.tmp"));
    writer.record(old, vec![5]).expect("record");
    publish(&writer.finish(IndexInfo::default()).expect("finish"), &path);

    let image = Image::open(&path, KNOWN).expect("an older version is no reason not to open");
    assert_eq!((image.record_version(THREADS.id), image.record_version(FILES.id)), (Some(1), None));
    assert_eq!(image.record(old).expect("old"), [5]);
    let error = image.record(THREADS).expect_err("the layout is another").to_string();
    assert!(error.contains("`threads` in version 1") && error.contains("reads version 2"), "{error}");
    let error = image.record(FILES).expect_err("there is none");
    assert!(matches!(error, Error::MissingRecord { name: "files", .. }), "{error}");

    let error = Image::open(&path, &[FILES]).expect_err("the kind is unknown");
    assert!(matches!(error, Error::UnknownRecord { id: 1, version: 1, .. }), "{error}");
    let error = Image::open(&path, &[RecordKind { version: 0, ..THREADS }]).expect_err("the version is newer");
    assert!(matches!(error, Error::OtherRecordVersion { name: "threads", found: 1, known: 0, .. }), "{error}");
    assert_eq!(error.exit_code(), 122);
}

#[test]
fn what_contradicts_itself_is_not_written() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("9.tmp");
    let spaces = |extents| IndexInfo { spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
    let child_of = |id| IndexInfo { parent: Some(Parent { id, hash: [0; 32] }), ..IndexInfo::default() };
    let twice = vec![Space { id: 1, extents: vec![] }, Space { id: 1, extents: vec![] }];
    let borrowed = |first_page, pages, slot| Extent { first_page, pages, content: Content::Borrowed { back: 1, slot } };
    let beyond = vec![Space { id: 1 << 63, extents: vec![] }];
    let cases = [
        ("overlap", spaces(vec![stored(10, 2, 0), stored(11, 1, 0)])),
        ("out of order", spaces(vec![stored(10, 1, 0), stored(9, 1, 0)])),
        ("empty", spaces(vec![stored(10, 0, 0)])),
        ("no such slot", spaces(vec![stored(10, 2, 1)])),
        ("slots overflow", spaces(vec![stored(10, 2, u64::MAX - 1)])),
        ("borrowed slots overflow", spaces(vec![borrowed(10, 1, u64::MAX)])),
        ("borrowed slots that no file can have", spaces(vec![borrowed(10, 1, 1 << 52)])),
        ("a space beyond all numbers", IndexInfo { spaces: beyond, ..IndexInfo::default() }),
        ("pages overflow", spaces(vec![Extent { first_page: 10, pages: u64::MAX, content: Content::Zero }])),
        ("beyond 64-bit addresses", spaces(vec![Extent { first_page: 1 << 52, pages: 1, content: Content::Zero }])),
        ("own parent", child_of(9)),
        ("younger parent", child_of(10)),
        ("space named twice", IndexInfo { spaces: twice, ..IndexInfo::default() }),
    ];
    for (what, info) in cases {
        let writer = create(&path);
        writer.put(&[1; 2 * PAGE_SIZE]).expect("put");
        let error = writer.finish(info).expect_err(what);
        assert!(matches!(error, Error::Inconsistent { .. }), "{what}: {error}");
        assert_eq!(error.exit_code(), 125);
        assert!(!path.exists(), "{what}: the file is removed");
    }
    let writer = create(&path);
    writer.record(THREADS, vec![]).expect("record");
    writer.record(THREADS, vec![]).expect_err("a second record of one kind");
}

#[test]
fn threads_write_side_by_side() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("9.cr");
    let writer = create(&dir.path().join("9.tmp"));
    let extents = std::thread::scope(|scope| {
        let threads = (0..4u64).map(|number| {
            let writer = &writer;
            scope.spawn(move || {
                let mut random = Random(number + 1);
                let mut extents = Vec::new();
                for run in 0..20 {
                    let pages = 1 + random.below(90);
                    let slot = writer.put(&random.pages(pages as usize)).expect("put");
                    extents.push(stored(number << 20 | run << 10, pages, slot));
                }
                extents
            })
        });
        let threads = threads.collect::<Vec<_>>();
        threads.into_iter().flat_map(|thread| thread.join().expect("join")).collect::<Vec<_>>()
    });
    let spaces = vec![Space::from_unsorted(1, extents)];
    publish(&writer.finish(IndexInfo { spaces, ..IndexInfo::default() }).expect("finish"), &path);

    let image = Image::open(&path, KNOWN).expect("open");
    image.verify_pages(2).expect("verify");
    for number in 0..4u64 {
        let mut random = Random(number + 1);
        for run in 0..20 {
            let pages = 1 + random.below(90);
            let expected = random.pages(pages as usize);
            let Some(Content::Stored { slot }) = image.lookup(1, number << 20 | run << 10) else {
                panic!("not stored")
            };
            assert_eq!(image.page_bytes(slot, pages), expected);
        }
    }
}

#[test]
fn zero_pages_are_recognised() {
    let mut page = vec![0; PAGE_SIZE];
    assert!(is_zero_page(&page));
    for at in [0, 1, 7, 63, 64, 2048, PAGE_SIZE - 1] {
        page[at] = 1;
        assert!(!is_zero_page(&page), "byte {at}");
        page[at] = 0;
    }
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("9.tmp");
    fs::write(&path, "mine").expect("write");
    let error = ImageWriter::create(&path, HeaderInfo { id: 9, job: JOB }).expect_err("it exists");
    assert_eq!(error.exit_code(), 124);
    assert_eq!(fs::read(&path).expect("read"), b"mine");
}

#[test]
fn what_is_no_image_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.cr");
    for contents in [vec![], vec![0; 100], vec![0; 10_000], b"#!/bin/sh\n".repeat(2000)] {
        fs::write(&path, contents).expect("write");
        let error = Image::open(&path, KNOWN).expect_err("no image");
        assert!(matches!(error, Error::NotAnImage { .. }), "{error}");
    }
    let error = Image::open(dir.path(), KNOWN).expect_err("a directory");
    assert!(matches!(error, Error::NotAnImage { .. }), "{error}");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    let error = Image::open(&fifo, KNOWN).expect_err("a FIFO that nobody writes to");
    assert!(matches!(error, Error::NotAnImage { .. }), "{error}");
}
