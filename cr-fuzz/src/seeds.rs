//! Makes what the fuzzer starts with. The files are kept in the repository; `cr-fuzz seeds` makes them again, which has to be done
//! when the format of the index or of a record changes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cr::disk::Disk;
use cr::image::{
    Compression, Content, Extent, Form, HeaderInfo, Image, ImageWriter, IndexInfo, JobId, PAGE_SIZE, Parent, Space,
};
use cr::object::{KINDS, files, process, threads};
use cr::store::{Chain, Store};

use crate::forge::{SEALED, SIGNED, lengthen, take_apart};
use crate::keys;
use crate::targets::BLOCK;

/// How images are protected, and what they are called then.
const PROTECTED: [(&str, u8); 3] = [("sealed", SEALED), ("signed", SIGNED), ("sealed-signed", SEALED | SIGNED)];

/// What begins the name of an input that makes sense.
pub const VALID: &str = "valid-";

/// Writes the inputs into `corpus/TARGET`. The records are those of the newest checkpoints of `stores`; the first also gives `base`.
/// Without stores, records are left as they are.
///
/// # Errors
/// When a store cannot be read, or a file not be written.
pub fn write(corpus: &Path, base: &Path, stores: &[impl AsRef<Path>]) -> Result<()> {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    let plain = images(Compression::None)?;
    for (n, image) in plain.iter().enumerate() {
        put("image", &format!("{VALID}{n}"), &made_from(&take_apart(image, 0)))?;
    }
    for (name, compression) in [("lz4", Compression::Lz4), ("zstd", Compression::Zstd)] {
        let image = packed(&Form { compression, ..Form::default() })?;
        put("image", &format!("{VALID}{name}"), &made_from(&take_apart(&image, 0)))?;
        for (protected, flags) in PROTECTED {
            let parts = take_apart(&image, flags);
            put("image", &format!("{VALID}{name}-{protected}"), &made_from(&parts))?;
            if compression == Compression::Lz4 {
                // More metadata than are encrypted together.
                put("image", &format!("{VALID}long-{protected}"), &made_from(&lengthen(parts, 20)))?;
            }
        }
    }
    put("image", &format!("{VALID}file"), &as_it_is(&plain[0]))?;
    let (key, signer) = (Some(keys::store_key().clone()), keys::by_key_file().signer.clone());
    put("image", &format!("{VALID}file-sealed-signed"), &as_it_is(&packed(&Form { key, signer, ..Form::default() })?))?;

    let parts = |images: &[Vec<u8>], flags: u8| images.iter().map(|image| take_apart(image, flags)).collect::<Vec<_>>();
    put("chain", &format!("{VALID}deltas"), &chain(PLAIN, &parts(&plain, 0)))?;
    put("chain", &format!("{VALID}one"), &chain(PLAIN, &parts(&plain[..1], 0)))?;
    put("chain", "marker", &chain(r#"{"format":2,"job":"0707"}"#, &parts(&plain[..1], 0)))?;
    let blocks = images(Compression::Lz4)?;
    for (name, flags) in PROTECTED {
        let marker = if flags & SEALED == 0 { PLAIN } else { SEALED_STORE };
        put("chain", &format!("{VALID}deltas-{name}"), &chain(marker, &parts(&blocks, flags)))?;
    }
    put("chain", &format!("{VALID}marker-sealed"), &chain(&keys::marker(), &parts(&blocks[..2], SEALED)))?;
    // Each refuses the second image, which is not of its kind.
    let mixed = |first: u8, second: u8| [parts(&blocks[..1], first), parts(&blocks[1..], second)].concat();
    put("chain", "sealed-among-plain", &chain(PLAIN, &mixed(0, SEALED)))?;
    put("chain", "plain-among-sealed", &chain(SEALED_STORE, &mixed(SEALED, 0)))?;
    put("chain", "unsigned-among-signed", &chain(PLAIN, &mixed(SIGNED, 0)))?;

    for (n, line) in REQUESTS.iter().enumerate() {
        put("control", &format!("{VALID}request-{n}"), &[b"\0", line.as_bytes()].concat())?;
    }
    for (n, line) in ANSWERS.iter().enumerate() {
        put("control", &format!("{VALID}answer-{n}"), &[b"\x01", line.as_bytes()].concat())?;
    }
    put("control", &format!("{VALID}marker"), b"\x02{\"format\":1,\"job\":\"0123456789abcdef0123456789abcdef\"}")?;
    put("control", &format!("{VALID}marker-sealed"), format!("\x02{}", keys::marker()).as_bytes())?;
    for (name, memory_kib, passes, lanes) in PASSPHRASES {
        let marker = keys::passphrase_marker(memory_kib, passes, lanes);
        put("control", &format!("passphrase-{name}"), format!("\x02{marker}").as_bytes())?;
    }
    put("control", &format!("{VALID}lock"), b"\x03815\n")?;

    for (n, store) in stores.iter().enumerate() {
        let store = store.as_ref();
        let opened = Store::open_existing(store, KINDS)?;
        let chain = Chain::open(&opened, None)?;
        let records = records(chain.newest())?;
        if n == 0 {
            fs::write(base, &records)?;
        }
        let name = store.file_name().map_or_else(|| n.to_string(), |name| name.to_string_lossy().into_owned());
        put("records", &format!("{VALID}{name}"), &records)?;
    }
    Ok(())
}

/// All records of an image, as blocks.
fn records(image: &Image) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for kind in KINDS {
        if image.record_version(kind.id).is_none() {
            continue;
        }
        let record = image.record(*kind)?;
        let mut head = [0; BLOCK];
        head[..2].copy_from_slice(&kind.id.to_le_bytes());
        head[4..].copy_from_slice(&(record.len() as u32).to_le_bytes());
        out.extend(head);
        out.extend(record);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    Ok(out)
}

/// An input of `image` that is to be made from parts.
fn made_from(parts: &[u8]) -> Vec<u8> {
    [&[0; 8], parts].concat()
}

/// An input of `image` that is a file.
fn as_it_is(image: &[u8]) -> Vec<u8> {
    [&[1, 0, 0, 0, 0, 0, 0, 0], image].concat()
}

/// A full image, and two deltas on it with everything that extents can say.
fn images(compression: Compression) -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let mut parent: Option<Parent> = None;
    let mut all = Vec::new();
    for id in 1..=3 {
        let path = folder.path().join(id.to_string());
        let image = begin(&path, id, &Form { compression, ..Form::default() })?;
        let slot = image.put(&[id as u8; 3 * PAGE_SIZE])?;
        for kind in [process::KIND, threads::KIND, files::KIND] {
            image.record(kind, vec![id as u8; 40])?;
        }
        let run = |first_page, pages, content| Extent { first_page, pages, content };
        let mut extents = vec![
            run(id, 2, Content::Stored { slot }),
            run(0x10, 1, Content::Zero),
            run(0x20 + id, 3, Content::Absent),
            run(0x7_ffff_ffff, 1, Content::Stored { slot: slot + 2 }),
        ];
        if id > 1 {
            extents.push(run(0x30, 2, Content::Borrowed { back: id as u32 - 1, slot: 1 }));
        }
        let spaces = vec![
            Space::from_unsorted(7, extents),
            Space { id: 1 << 32, extents: vec![run(0, 3, Content::Stored { slot })] },
        ];
        let widened = vec!["short".into(), "a reason that is too long to be inside".into()];
        let finished = image.finish(IndexInfo { parent, spaces, widened, dirty_pages: 6, ..IndexInfo::default() })?;
        parent = Some(finished.as_parent());
        all.push(fs::read(finished.path())?);
    }
    Ok(all)
}

/// An image of three blocks: one of several pages, one of the same everywhere, and one of zero pages that has not all its slots. Where
/// nothing is compressed, of one block of one page.
fn packed(form: &Form) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let image = begin(&folder.path().join("1"), 1, form)?;
    let count = if form.compression == Compression::None { 1 } else { 16 + 16 + 3 };
    let mut pages = vec![4; count * PAGE_SIZE];
    if count > 1 {
        pages.fill(0);
        pages[..2 * PAGE_SIZE].fill(1);
        pages[5 * PAGE_SIZE..6 * PAGE_SIZE].fill(2);
        pages[16 * PAGE_SIZE..32 * PAGE_SIZE].fill(3);
    }
    let slot = image.put(&pages)?;
    image.record(process::KIND, vec![1; 40])?;
    let pages = count as u64;
    let spaces =
        vec![Space::from_unsorted(7, vec![Extent { first_page: 1, pages, content: Content::Stored { slot } }])];
    let finished = image.finish(IndexInfo { spaces, dirty_pages: pages, ..IndexInfo::default() })?;
    Ok(fs::read(finished.path())?)
}

fn begin(path: &Path, id: u64, form: &Form) -> Result<ImageWriter> {
    let info = HeaderInfo { id, job: JobId(keys::JOB) };
    Ok(ImageWriter::create_as_on(&Disk::default(), path, info, form)?)
}

/// Markers of which [`chain`] needs no more than the name: those that the target knows.
const PLAIN: &str = "";
const SEALED_STORE: &str = "sealed";

/// An input of `chain`: a store with this marker, and images that are made from these parts.
fn chain(marker: &str, images: &[Vec<u8>]) -> Vec<u8> {
    let (kind, given) = match marker {
        PLAIN => (0, ""),
        SEALED_STORE => (2, ""),
        given => (1, given),
    };
    let mut out = vec![kind];
    out.extend((given.len() as u16).to_le_bytes());
    out.resize(8, 0);
    out.extend(given.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    for parts in images {
        out.extend((parts.len() as u64).to_le_bytes());
        out.extend(parts);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// What passphrases are to cost: KiB, passes, lanes. All but the first are more than any may.
const PASSPHRASES: [(&str, u64, u64, u64); 6] = [
    ("cheap", 64, 1, 1),
    ("memory", (1 << 20) + 1, 1, 1),
    ("passes", 64, 65, 1),
    ("lanes", 1 << 10, 1, 65),
    ("work", 1 << 20, 5, 1),
    ("all", u32::MAX as u64, u32::MAX as u64, u32::MAX as u64),
];
const REQUESTS: [&str; 4] = [
    r#"{"v":1,"cmd":"status"}"#,
    r#"{"v":1,"cmd":"checkpoint","kill":true,"pid":42}"#,
    r#"{"v":1,"cmd":"checkpoint","kill":false,"skip_memory":["0x1000-0x3000"],"honour_dontdump":true,"external":["unix:@a"],"tcp":"close","udp":"drop"}"#,
    r#"{"v":1,"cmd":"prune","keep_last":3,"keep_daily":2,"keep_bytes":1073741824,"dry_run":true}"#,
];
const ANSWERS: [&str; 3] = [
    r#"{"v":1,"error":{"code":121,"message":"gone"}}"#,
    r#"{"v":1,"ok":{"pid":7,"busy":false,"taken":3,"failed":0,"interval_ms":null,"last":[{"id":1,"kind":"delta","taken_at":"2023-11-14T22:13:20.123Z","stored_bytes":4096,"frozen_ms":1.5,"total_ms":20.25,"age_ms":3}]}}"#,
    r#"{"v":1,"ok":{"dry_run":false,"kept":[{"id":2,"parent":null,"taken_at":1700000000000000000,"bytes":4096,"reasons":["newest"],"needed_by":[],"problem":null}],"removed":[]}}"#,
];
