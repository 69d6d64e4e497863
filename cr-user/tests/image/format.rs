//! A second reader, written after `docs/image-format.md` alone: by offsets, without rkyv and without the crate's code.

use std::fs;

use cr::image::{Content, Extent, IndexInfo, PAGE_SIZE, Parent, Space};

use crate::{FILES, Random, THREADS, new_store, publish};

/// Size of the footer.
pub(crate) const FOOTER: usize = 256;

/// A little-endian 64-bit integer.
pub(crate) fn field(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn short(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes")))
}

/// An archived vector at `at`: where its elements are, and how many.
fn vector(bytes: &[u8], at: usize) -> (usize, usize) {
    (at.wrapping_add(field(bytes, at) as usize), field(bytes, at + 8) as usize)
}

/// An archived string at `at`: up to 16 bytes stand in place, ended by a byte 0xff where shorter.
fn string(bytes: &[u8], at: usize) -> String {
    let text = if bytes[at] & 0xc0 == 0x80 {
        let low = field(bytes, at);
        // The two top bits of the first byte are the mark; the length's other bits stand around them.
        let len = ((low >> 2) & !0x3f | low & 0x3f) as u32 as usize;
        let start = at.wrapping_add(field(bytes, at + 8) as usize);
        &bytes[start..start + len]
    } else {
        let inline = &bytes[at..at + 16];
        &inline[..inline.iter().position(|byte| *byte == 0xff).unwrap_or(16)]
    };
    String::from_utf8(text.to_vec()).expect("UTF-8")
}

#[test]
fn the_documented_offsets_are_the_real_ones() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = new_store(dir.path());
    let parent = publish(&store, None, 1);
    let image = store.begin().expect("begin");
    let pages = Random(5).pages(3);
    let slot = image.put(&pages).expect("put");
    image.record(FILES, vec![7; 20]).expect("record");
    image.record(THREADS, vec![8; 5]).expect("record");
    let extents = vec![
        Extent { first_page: 16, pages: 2, content: Content::Stored { slot: slot + 1 } },
        Extent { first_page: 20, pages: 3, content: Content::Zero },
        Extent { first_page: 30, pages: 4, content: Content::Absent },
    ];
    let long = "x".repeat(300);
    let info = IndexInfo {
        parent: Some(parent),
        taken_at: 1234,
        dirty_pages: 77,
        frozen_ns: 88,
        total_ns: 99,
        widened: vec!["short".into(), long.clone()],
        spaces: vec![Space { id: 6, extents }],
    };
    let Parent { hash, .. } = store.publish(image.finish(info).expect("finish")).expect("publish");
    let bytes = fs::read(store.store().image_path(2)).expect("read");

    // Header.
    assert_eq!(&bytes[..8], b"\x93CRIMG\r\n");
    assert_eq!(field(&bytes, 8), 2 | 4096 << 32);
    assert_eq!(field(&bytes, 40), 2);
    assert_eq!(bytes[48..64], store.store().job().0);
    assert_eq!(bytes[4064..4096], *blake3::hash(&bytes[..4064]).as_bytes());

    // Footer.
    let footer = bytes.len() - FOOTER;
    assert_eq!(&bytes[footer..footer + 8], b"CRFOOT\r\n");
    let fields = (0..10).map(|number| field(&bytes, footer + 16 + 8 * number) as usize).collect::<Vec<_>>();
    let [id, pages_at, slots, records, checksums, index, index_len, file_bytes, has_parent, parent_id] = fields[..]
    else {
        unreachable!("ten fields")
    };
    assert_eq!((id, pages_at, slots, has_parent, parent_id), (2, 4096, 3, 1, 1));
    assert_eq!((records, file_bytes), (4096 * 4, bytes.len()));
    assert_eq!(bytes[footer + 96..footer + 128], hash);
    assert_eq!(bytes[footer + 128..footer + 160], parent.hash);
    assert_eq!(bytes[footer + 224..], *blake3::hash(&bytes[footer..footer + 224]).as_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..4096]).update(&bytes[records..footer]);
    assert_eq!(*hasher.finalize().as_bytes(), hash);

    // Pages and their checksums.
    assert_eq!(bytes[4096..records], pages);
    for (number, page) in pages.chunks(PAGE_SIZE).enumerate() {
        assert_eq!(field(&bytes, checksums + 8 * number), cr::image::page_checksum(page));
    }

    // Index: its root is the last 176 bytes.
    let root = index + index_len - 176;
    assert_eq!(field(&bytes, root), 2);
    assert_eq!(bytes[root + 8..root + 24], store.store().job().0);
    assert_eq!((bytes[root + 24], field(&bytes, root + 32)), (1, 1));
    assert_eq!(bytes[root + 40..root + 72], parent.hash);
    assert_eq!(field(&bytes, root + 72), 1234);
    let statistics = (0..6).map(|number| field(&bytes, root + 80 + 8 * number)).collect::<Vec<_>>();
    assert_eq!(statistics, [77, 2, 3, 4, 88, 99]);
    let (widened, count) = vector(&bytes, root + 128);
    assert_eq!((count, string(&bytes, widened), string(&bytes, widened + 16)), (2, "short".into(), long));
    let (entries, count) = vector(&bytes, root + 144);
    assert_eq!(count, 2);
    for (number, kind, version, contents) in [(0, 1, 2, vec![8; 5]), (1, 7, 1, vec![7; 20])] {
        let entry = entries + 24 * number;
        assert_eq!((short(&bytes, entry), short(&bytes, entry + 2)), (kind, version));
        let start = field(&bytes, entry + 8) as usize;
        assert_eq!(bytes[start..start + field(&bytes, entry + 16) as usize], contents);
    }
    let (spaces, count) = vector(&bytes, root + 160);
    assert_eq!((count, field(&bytes, spaces)), (1, 6));
    let (extents, count) = vector(&bytes, spaces + 8);
    assert_eq!(count, 3);
    let expected = [(16, 2, 0, 1), (20, 3, 1, 0), (30, 4, 2, 0)];
    for (number, (first_page, pages, tag, slot)) in expected.into_iter().enumerate() {
        let extent = extents + 32 * number;
        assert_eq!((field(&bytes, extent), field(&bytes, extent + 8)), (first_page, pages));
        assert_eq!((bytes[extent + 16], field(&bytes, extent + 24)), (tag, slot));
    }
}
