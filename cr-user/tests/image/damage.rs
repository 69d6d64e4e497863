//! Whatever happens to an image's bytes, reading it is an error and never a panic or a wrong page.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cr::image::{ArchivedExtent, Content, Error, Extent, Image, IndexInfo, PAGE_SIZE, Parent, Space};
use tempfile::TempDir;

use crate::format::{FOOTER, field};
use crate::{FILES, KNOWN, Random, THREADS, new_store};

/// An image of three pages, two records and two spaces.
fn small_image() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = new_store(dir.path());
    let image = store.begin().expect("begin");
    let slot = image.put(&Random(3).pages(3)).expect("put");
    image.record(THREADS, vec![1; 50]).expect("record");
    image.record(FILES, vec![2; 30]).expect("record");
    let extents = vec![
        Extent { first_page: 5, pages: 3, content: Content::Stored { slot } },
        Extent { first_page: 10, pages: 1, content: Content::Zero },
        Extent { first_page: 11, pages: 1, content: Content::Absent },
    ];
    let other = vec![Extent { first_page: 0, pages: 1, content: Content::Stored { slot: slot + 1 } }];
    let info = IndexInfo {
        parent: Some(Parent { id: 0, hash: [9; 32] }),
        widened: vec!["a reason that is too long to be stored inline".into()],
        spaces: vec![Space { id: 1, extents }, Space { id: 4, extents: other }],
        ..IndexInfo::default()
    };
    store.publish(image.finish(info).expect("finish")).expect("publish");
    let path = store.store().image_path(1);
    let bytes = fs::read(&path).expect("read");
    read_all(&path).expect("it is intact");
    (dir, path, bytes)
}

/// Opens, verifies and looks at everything there is.
fn read_all(path: &Path) -> cr::image::Result<()> {
    let image = Image::open(path, KNOWN)?;
    image.verify_pages(1)?;
    let summary = image.summary();
    assert!(summary.widened.len() < 1000);
    for kind in KNOWN {
        let _ = image.record(*kind).map(<[u8]>::len);
    }
    for space in image.space_ids() {
        for extent in image.extents(space).iter().map(ArchivedExtent::native) {
            assert_eq!(image.lookup(space, extent.first_page), Some(extent.content));
            if let Content::Stored { slot } = extent.content {
                assert_eq!(image.page_bytes(slot, extent.pages).len() as u64, extent.pages * PAGE_SIZE as u64);
            }
        }
    }
    Ok(())
}

#[test]
fn a_flipped_bit_is_found_at_every_byte() {
    let (_dir, path, bytes) = small_image();
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    for (at, byte) in bytes.iter().enumerate() {
        file.write_all_at(&[byte ^ 1 << (at % 8)], at as u64).expect("flip");
        let error = read_all(&path).expect_err(&format!("bit {} of byte {at}", at % 8));
        assert_eq!(error.exit_code(), 122, "byte {at}: {error}");
        if (PAGE_SIZE..4 * PAGE_SIZE).contains(&at) {
            let Error::DamagedPages { bad: 1, offset, .. } = error else { panic!("byte {at}: {error}") };
            assert_eq!(offset as usize / PAGE_SIZE, at / PAGE_SIZE);
        }
        file.write_all_at(&[*byte], at as u64).expect("flip back");
    }
    read_all(&path).expect("intact again");
}

#[test]
fn a_cut_is_found_at_every_byte() {
    let (_dir, path, bytes) = small_image();
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    for len in (0..bytes.len() as u64).rev() {
        file.set_len(len).expect("cut");
        let error = read_all(&path).expect_err(&format!("cut to {len} bytes"));
        assert_eq!(error.exit_code(), 122, "{len} bytes: {error}");
    }
    fs::write(&path, [&bytes[..], &[0]].concat()).expect("write");
    read_all(&path).expect_err("one byte more");
}

#[test]
fn a_damaged_page_is_named() {
    let (_dir, path, _) = small_image();
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(&[0; 100], 3 * PAGE_SIZE as u64 + 17).expect("write");
    let error = read_all(&path).expect_err("page 7 is damaged").to_string();
    assert!(error.contains("1 of its pages") && error.contains("page 0x7 of space 1"), "{error}");
}

/// Recomputes all three hashes, as somebody would who makes an image by hand.
fn sign(bytes: &mut [u8]) {
    let header = blake3::hash(&bytes[..4064]);
    bytes[4064..4096].copy_from_slice(header.as_bytes());
    let footer = bytes.len() - FOOTER;
    let records = (field(bytes, footer + 40) as usize).clamp(4096, footer);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..4096]).update(&bytes[records..footer]);
    bytes[footer + 96..footer + 128].copy_from_slice(hasher.finalize().as_bytes());
    let seal = blake3::hash(&bytes[footer..footer + 224]);
    bytes[footer + 224..].copy_from_slice(seal.as_bytes());
}

#[test]
fn nonsense_with_right_hashes_never_panics() {
    let (_dir, path, bytes) = small_image();
    let mut random = Random(11);
    let metadata = (0..4096).chain(4 * PAGE_SIZE..bytes.len()).collect::<Vec<_>>();
    let (mut refused, mut accepted) = (0, 0);
    let mut try_one = |mut forged: Vec<u8>| {
        sign(&mut forged);
        fs::write(&path, &forged).expect("write");
        match read_all(&path) {
            Ok(()) => accepted += 1,
            Err(_) => refused += 1,
        }
    };
    // Every byte of records, checksums, index and footer, with the values that are most apt to do harm.
    for &at in metadata.iter().filter(|at| **at < 128 || **at >= 4096) {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(16)] {
            let mut forged = bytes.clone();
            forged[at] = value;
            try_one(forged);
        }
    }
    // Several at once.
    for _ in 0..5000 {
        let mut forged = bytes.clone();
        for _ in 0..=random.below(8) {
            let at = metadata[random.below(metadata.len() as u64) as usize];
            forged[at] = random.next() as u8;
        }
        try_one(forged);
    }
    assert!(refused > 1000 && accepted > 100, "{refused} refused, {accepted} accepted: the test tests nothing");
}

#[test]
fn another_format_or_machine_is_named() {
    let (_dir, path, bytes) = small_image();
    let forge = |at: usize, value: u8| {
        let mut forged = bytes.clone();
        forged[at] = value;
        sign(&mut forged);
        fs::write(&path, &forged).expect("write");
        read_all(&path).expect_err("forged")
    };
    let error = forge(8, 3);
    assert!(matches!(error, Error::OtherFormat { found: 3, known: 2, .. }), "{error}");
    assert!(error.to_string().contains("image format 3, this `cr` reads format 2"), "{error}");
    for (at, name) in [(16, "architecture"), (21, "page size"), (24, "byte order"), (32, "compression")] {
        let error = forge(at, 0x20);
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(name), "{error}");
    }
}
