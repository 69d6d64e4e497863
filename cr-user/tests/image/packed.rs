//! Images whose pages are in compressed blocks.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use cr::image::{BLOCK_PAGES, Compression, Content, Error, Extent, Image, IndexInfo, PAGE_SIZE, Space};
use cr::store::{Chain, PageReader, Source};

use crate::format::{FOOTER, field};
use crate::{FILES, KNOWN, Random, THREADS, new_store};

const ALL: [Compression; 3] = [Compression::Lz4, Compression::Zstd, Compression::Auto];

/// Pages of which some can be compressed, some not, and some are zero.
fn mixed(random: &mut Random, pages: usize) -> Vec<u8> {
    let mut bytes = random.pages(pages);
    for page in bytes.chunks_exact_mut(PAGE_SIZE) {
        match random.below(4) {
            0 => page.fill(0),
            1 => page.fill(random.next() as u8),
            2 => page[PAGE_SIZE / 8..].fill(3),
            _ => (),
        }
    }
    bytes
}

/// Makes an image of runs of pages with gaps between them, and says what is in its slots.
fn write(store: &cr::store::StoreWriter, compression: Compression, runs: &[(usize, u64)]) -> Vec<u8> {
    let mut random = Random(11);
    let image = store.begin_packed(compression).expect("begin");
    let mut expected = Vec::new();
    let mut extents = Vec::new();
    for &(pages, gap) in runs {
        let bytes = mixed(&mut random, pages);
        let slot = image.put(&bytes).expect("put");
        assert_eq!(slot as usize, expected.len() / PAGE_SIZE);
        extents.push(Extent { first_page: slot, pages: pages as u64, content: Content::Stored { slot } });
        expected.extend(bytes);
        image.allocate(gap);
        expected.resize(expected.len() + gap as usize * PAGE_SIZE, 0);
    }
    image.record(THREADS, vec![1; 50]).expect("record");
    image.record(FILES, vec![2; 30]).expect("record");
    let info = IndexInfo { spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
    store.publish(image.finish(info).expect("finish")).expect("publish");
    expected
}

fn read(image: &Image, slots: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![1; (slots.end - slots.start) as usize * PAGE_SIZE];
    image.read_pages(slots.start, &mut bytes).expect("the blocks are whole");
    bytes
}

#[test]
fn every_page_comes_back() {
    let mut random = Random(5);
    let scattered: Vec<(usize, u64)> =
        (0..300).map(|_| (1 + random.below(40) as usize, [0, 0, 1, 7, 100][random.below(5) as usize])).collect();
    for compression in ALL {
        for runs in [&[(3, 0)][..], &[(16, 0)], &[(600, 3), (700, 0)], &[(1, 2000), (5, 1500)], &scattered] {
            let dir = tempfile::tempdir().expect("tempdir");
            let store = new_store(dir.path());
            let expected = write(&store, compression, runs);
            let image = Image::open(&store.store().image_path(1), KNOWN).expect("open");
            assert!(image.is_packed() && image.slots() as usize * PAGE_SIZE == expected.len());
            image.verify_pages(2).expect("every checksum is right");
            assert!(read(&image, 0..image.slots()) == expected);
            let file = image.open_file().expect("open");
            for _ in 0..50 {
                let first = random.below(image.slots());
                let end = first + 1 + random.below((image.slots() - first).min(40));
                let wanted = &expected[first as usize * PAGE_SIZE..end as usize * PAGE_SIZE];
                assert!(read(&image, first..end) == wanted, "{first}..{end}");
                let mut bytes = vec![0; wanted.len()];
                image.read_pages_from(&file, first, &mut bytes).expect("read");
                assert!(bytes == wanted, "{first}..{end}");
            }
            // A quarter is zero, a quarter nearly nothing, and a quarter an eighth.
            let stored = fs::metadata(image.path()).expect("metadata").len() as usize;
            assert!(expected.len() < 1 << 20 || stored < expected.len() * 2 / 3, "{stored} of {}", expected.len());
        }
    }
}

/// Whoever asks a chain for pages sees no difference.
#[test]
fn a_reader_gives_pages_of_both_kinds() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = new_store(dir.path());
    let mut random = Random(8);
    let pages = 700;
    let old = mixed(&mut random, pages);
    let full = store.begin_packed(Compression::Zstd).expect("begin");
    full.put(&old).expect("put");
    let extents = vec![Extent { first_page: 0, pages: pages as u64, content: Content::Stored { slot: 0 } }];
    let info = IndexInfo { spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
    let parent = store.publish(full.finish(info).expect("finish")).expect("publish");
    let new = random.pages(20);
    let delta = store.begin().expect("begin");
    delta.put(&new).expect("put");
    let extents = vec![Extent { first_page: 100, pages: 20, content: Content::Stored { slot: 0 } }];
    let info = IndexInfo { parent: Some(parent), spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
    store.publish(delta.finish(info).expect("finish")).expect("publish");

    let mut expected = old;
    expected[100 * PAGE_SIZE..120 * PAGE_SIZE].copy_from_slice(&new);
    let chain = Chain::open(store.store(), None).expect("open");
    chain.verify_pages(2).expect("every checksum is right");
    let mut reader = PageReader::new(&chain);
    for step in [1, 7, BLOCK_PAGES, PageReader::USUAL, 10_000] {
        for run in chain.resolve(1) {
            for done in (0..run.pages).step_by(step as usize) {
                let count = step.min(run.pages - done);
                let Source::Stored { image, offset } = run.source.advanced(done) else { panic!("{run:?}") };
                let at = (run.first_page + done) as usize * PAGE_SIZE;
                let bytes = reader.get(image, offset, count).expect("the blocks are whole");
                assert!(bytes == &expected[at..at + count as usize * PAGE_SIZE], "{run:?}, {done}");
            }
        }
    }
}

/// What is written while somebody waits is as whole as the rest.
#[test]
fn who_hurries_compresses_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = new_store(dir.path());
    let image = store.begin_packed(Compression::Lz4).expect("begin");
    let bytes = vec![9; 4096 * PAGE_SIZE];
    image.hurry(true);
    image.put(&bytes).expect("put");
    image.hurry(false);
    image.put(&bytes).expect("put");
    store.publish(image.finish(IndexInfo::default()).expect("finish")).expect("publish");
    let image = Image::open(&store.store().image_path(1), KNOWN).expect("open");
    assert!(read(&image, 0..8192).iter().all(|byte| *byte == 9));
    let stored = fs::metadata(image.path()).expect("metadata").len() as usize;
    // What was not written yet when the hurry was over is compressed.
    assert!(stored > bytes.len() * 3 / 4 && stored < bytes.len() * 5 / 4, "{stored}");
}

#[test]
fn slots_are_written_once_and_in_order() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = new_store(dir.path());
    let image = store.begin_packed(Compression::Lz4).expect("begin");
    assert!(!image.rewrites() && store.begin().expect("begin").rewrites());
    image.put(&vec![1; 5000 * PAGE_SIZE]).expect("put");
    let error = image.write_at(3, &[2; PAGE_SIZE]).expect_err("its block is written");
    assert!(matches!(error, Error::Inconsistent { .. }), "{error}");
    image.finish(IndexInfo::default()).expect_err("something was lost");
}

/// Every single byte is guarded: most by the hashes of what describes the pages, those of blocks by the pages' checksums.
#[test]
fn every_flipped_bit_is_found() {
    for compression in ALL {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = new_store(dir.path());
        write(&store, compression, &[(40, 0)]);
        let path = store.store().image_path(1);
        let bytes = fs::read(&path).expect("read");
        let file = File::options().write(true).open(&path).expect("open");
        let end_of_pages = field(&bytes[bytes.len() - FOOTER..], 40) as usize;
        let mut unguarded = 0;
        for (at, byte) in bytes.iter().enumerate() {
            // Blocks are long, and each byte of them costs a decoding.
            if (4096..end_of_pages).contains(&at) && at % 37 != 0 {
                continue;
            }
            file.write_all_at(&[byte ^ (1 << (at % 8))], at as u64).expect("write");
            let found = Image::open(&path, KNOWN).and_then(|image| image.verify_pages(1));
            match found {
                Err(Error::Damaged { .. } | Error::DamagedPages { .. } | Error::NotAnImage { .. }) => (),
                Err(other) => panic!("byte {at}: {other}"),
                // Compressed data has bits that say nothing; and the page segment is padded.
                Ok(()) if (4096..end_of_pages).contains(&at) => {
                    let image = Image::open(&path, KNOWN).expect("just opened");
                    read(&image, 0..image.slots());
                    unguarded += 1;
                }
                Ok(()) => panic!("byte {at} is not guarded"),
            }
            file.write_all_at(&[*byte], at as u64).expect("write");
        }
        let tried = (end_of_pages - 4096) / 37;
        assert!(unguarded * 4 < tried, "{unguarded} of {tried}");
        Image::open(&path, KNOWN).and_then(|image| image.verify_pages(1)).expect("it is whole again");
    }
}
