//! Makes what the fuzzer starts with. The files are kept in the repository; `cr-fuzz seeds` makes them again, which has to be done
//! when the format of the index or of a record changes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cr::image::{
    Compression, Content, Extent, HeaderInfo, Image, ImageWriter, IndexInfo, JobId, PAGE_SIZE, Parent, Space,
};
use cr::object::{KINDS, files, process, threads};
use cr::store::{Chain, Store};

use crate::forge::take_apart;
use crate::targets::BLOCK;

/// What begins the name of an input that makes sense.
pub const VALID: &str = "valid-";

/// Writes the inputs into `corpus/TARGET`. The records are those of the newest checkpoints of `stores`; the first also gives `base`.
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
    let images = images()?;
    for (n, image) in images.iter().enumerate() {
        put("image", &format!("{VALID}{n}"), &[&[0; 8], &take_apart(image)[..]].concat())?;
    }
    for (name, compression) in [("lz4", Compression::Lz4), ("zstd", Compression::Zstd)] {
        put("image", &format!("{VALID}{name}"), &[&[0; 8], &take_apart(&packed(compression)?)[..]].concat())?;
    }
    put("image", &format!("{VALID}file"), &[&[1, 0, 0, 0, 0, 0, 0, 0], &images[0][..]].concat())?;
    put("chain", &format!("{VALID}deltas"), &chain(&images, &[]))?;
    put("chain", &format!("{VALID}one"), &chain(&images[..1], &[]))?;
    put("chain", "marker", &chain(&images[..1], br#"{"format":2,"job":"0707"}"#))?;
    for (n, line) in REQUESTS.iter().enumerate() {
        put("control", &format!("{VALID}request-{n}"), &[b"\0", line.as_bytes()].concat())?;
    }
    for (n, line) in ANSWERS.iter().enumerate() {
        put("control", &format!("{VALID}answer-{n}"), &[b"\x01", line.as_bytes()].concat())?;
    }
    put("control", &format!("{VALID}marker"), b"\x02{\"format\":1,\"job\":\"0123456789abcdef0123456789abcdef\"}")?;
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

/// A full image, and two deltas on it with everything that extents can say.
fn images() -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let mut parent: Option<Parent> = None;
    let mut all = Vec::new();
    for id in 1..=3 {
        let path = folder.path().join(id.to_string());
        let image = ImageWriter::create(&path, HeaderInfo { id, job: JobId([7; 16]) })?;
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

/// An image of three blocks: one of several pages, one of the same everywhere, and one of zero pages that has not all its slots.
fn packed(compression: Compression) -> Result<Vec<u8>> {
    const PAGES: u64 = 16 + 16 + 3;
    let folder = tempfile::tempdir()?;
    let writer = Store::create_or_open(folder.path(), &[])?.lock()?;
    let image = writer.begin_packed(compression)?;
    let mut pages = vec![0; PAGES as usize * PAGE_SIZE];
    pages[..2 * PAGE_SIZE].fill(1);
    pages[5 * PAGE_SIZE..6 * PAGE_SIZE].fill(2);
    pages[16 * PAGE_SIZE..32 * PAGE_SIZE].fill(3);
    let slot = image.put(&pages)?;
    image.record(process::KIND, vec![1; 40])?;
    let extents = vec![Extent { first_page: 1, pages: PAGES, content: Content::Stored { slot } }];
    let spaces = vec![Space::from_unsorted(7, extents)];
    let finished = image.finish(IndexInfo { spaces, dirty_pages: PAGES, ..IndexInfo::default() })?;
    Ok(fs::read(finished.path())?)
}

fn chain(images: &[Vec<u8>], marker: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::from(!marker.is_empty()), marker.len() as u8, 0, 0, 0, 0, 0, 0];
    out.extend(marker);
    out.resize(out.len().next_multiple_of(8), 0);
    for image in images {
        let parts = take_apart(image);
        out.extend((parts.len() as u64).to_le_bytes());
        out.extend(&parts);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

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
