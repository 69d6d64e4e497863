//! A second reader, written after `docs/image-format.md` alone: by offsets, without rkyv and without the crate's code.

use std::fs;

use cr::image::{Content, Extent, IndexInfo, PAGE_SIZE, Parent, Space};
use cr::object::memory::aio::AioRing;
use cr::object::memory::backing::{Backing, FileStamp, Object, ObjectKind};
use cr::object::memory::{self, Mapping, Mappings};
use cr::object::{KINDS, records};
use cr::store::Store;

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

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// What the second reader makes of a mapping.
#[derive(Debug, PartialEq)]
struct Read {
    start: u64,
    end: u64,
    prot: u32,
    shared: bool,
    offset: u64,
    backing: String,
    advice: u32,
    page_size: u64,
    name: Option<String>,
    guards: Vec<(u64, u64)>,
}

/// A mapping of the record `mappings`, 160 bytes.
fn mapping(bytes: &[u8], at: usize) -> Read {
    let stamp = |at: usize| {
        format!(
            "{} of {} bytes at {}.{}",
            string(bytes, at),
            field(bytes, at + 16),
            field(bytes, at + 24),
            field(bytes, at + 32)
        )
    };
    // An enumeration: its tag, and its fields at their own alignment, which is 8 in all of these.
    let backing = at + 32;
    let backing = match bytes[backing] {
        0 => "anonymous".to_owned(),
        1 => format!("kernel {}", string(bytes, backing + 8)),
        2 => format!("file {}", stamp(backing + 8)),
        3 => {
            let (space, kind, size) = (field(bytes, backing + 8), backing + 16, field(bytes, backing + 64));
            let kind = match bytes[kind] {
                0 => "shared".to_owned(),
                1 => format!("memfd {}", string(bytes, kind + 8)),
                2 => format!("deleted {}", string(bytes, kind + 8)),
                3 => format!("written {}", stamp(kind + 8)),
                4 => format!("segment {}", word(bytes, kind + 4)),
                other => panic!("no kind of object {other}"),
            };
            format!("object {space} of {size} bytes: {kind}")
        }
        4 => {
            let (text, len) = vector(bytes, backing + 24);
            format!("ring {} {:?}", word(bytes, backing + 8), &bytes[text..text + len])
        }
        other => panic!("no backing {other}"),
    };
    let (guards, count) = vector(bytes, at + 144);
    Read {
        start: field(bytes, at),
        end: field(bytes, at + 8),
        prot: word(bytes, at + 16),
        shared: bytes[at + 20] == 1,
        offset: field(bytes, at + 24),
        backing,
        advice: word(bytes, at + 104),
        page_size: field(bytes, at + 112),
        name: (bytes[at + 120] == 1).then(|| string(bytes, at + 128)),
        guards: (0..count).map(|n| (field(bytes, guards + 16 * n), field(bytes, guards + 16 * n + 8))).collect(),
    }
}

/// By the page's rules on how a structure is laid out, and by the order of the fields in the source.
#[test]
fn a_record_is_laid_out_as_documented() {
    let stamp = FileStamp { path: "/usr/lib/a library with a long name.so".into(), size: 5, mtime: 6, mtime_ns: 7 };
    let object = |kind| Backing::Object(Object { space: 1 << 32, kind, size: 8192 });
    let ring = AioRing { id: 9, places: 10, head: 1, tail: 2, bytes: vec![1, 2, 3] };
    let all = [
        (Backing::Anonymous, "anonymous"),
        (Backing::Kernel("[vdso]".into()), "kernel [vdso]"),
        (Backing::File(stamp.clone()), "file /usr/lib/a library with a long name.so of 5 bytes at 6.7"),
        (object(ObjectKind::SharedAnonymous), "object 4294967296 of 8192 bytes: shared"),
        (object(ObjectKind::Memfd("m".into())), "object 4294967296 of 8192 bytes: memfd m"),
        (object(ObjectKind::Deleted("/gone".into())), "object 4294967296 of 8192 bytes: deleted /gone"),
        (
            object(ObjectKind::Written(stamp)),
            "object 4294967296 of 8192 bytes: written /usr/lib/a library with a long name.so of 5 bytes at 6.7",
        ),
        (object(ObjectKind::SystemV(77)), "object 4294967296 of 8192 bytes: segment 77"),
        (Backing::Aio(ring), "ring 9 [1, 2, 3]"),
    ];
    let (mut mappings, mut wanted) = (Vec::new(), Vec::new());
    for (n, (backing, words)) in (1..).zip(all) {
        let (start, name) = (n << 20, (n % 2 == 0).then(|| format!("name {n}")));
        let guards = (0..n % 3).map(|g| (start + g * 4096, 4096)).collect::<Vec<_>>();
        mappings.push(Mapping {
            start,
            end: start + 8192,
            prot: n as i32,
            shared: n % 2 == 1,
            offset: n * 4096,
            backing,
            advice: 1 << n,
            page_size: 4096,
            name: name.clone(),
            guards: guards.clone(),
        });
        wanted.push(Read {
            start,
            end: start + 8192,
            prot: n as u32,
            shared: n % 2 == 1,
            offset: n * 4096,
            backing: words.to_owned(),
            advice: 1 << n,
            page_size: 4096,
            name,
            guards,
        });
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = Store::create_or_open(dir.path(), KINDS).and_then(|store| store.lock()).expect("a new store");
    let image = writer.begin().expect("begin");
    let record = vec![Mappings { pid: 40, all: Vec::new() }, Mappings { pid: 41, all: mappings }];
    records::put(&image, memory::KIND, &record).expect("record");
    writer.publish(image.finish(IndexInfo::default()).expect("finish")).expect("publish");
    let bytes = fs::read(writer.store().image_path(1)).expect("read");

    let footer = bytes.len() - FOOTER;
    let root = (field(&bytes, footer + 56) + field(&bytes, footer + 64)) as usize - 176;
    let (entry, count) = vector(&bytes, root + 144);
    assert_eq!((count, short(&bytes, entry)), (1, 3));
    let end = (field(&bytes, entry + 8) + field(&bytes, entry + 16)) as usize;
    // The root of a record stands at its end: here a vector.
    let (of_process, count) = vector(&bytes, end - 16);
    assert_eq!((count, word(&bytes, of_process), word(&bytes, of_process + 24)), (2, 40, 41));
    assert_eq!(vector(&bytes, of_process + 8).1, 0);
    let (first, count) = vector(&bytes, of_process + 24 + 8);
    let read: Vec<Read> = (0..count).map(|n| mapping(&bytes, first + 160 * n)).collect();
    assert_eq!(read, wanted);
}
