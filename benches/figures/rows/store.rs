//! The store itself, without a job: publishing, verifying, opening a long chain and finding pages in it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use cr::disk::Disk;
use cr::image::{Content, Extent, IndexInfo, PAGE_SIZE, Parent, Space};
use cr::seal::{self, Keys, Secret};
use cr::store::{Chain, Source, Store, StoreWriter};
use cr_bench::sample::{Samples, timed};
use memmap2::Mmap;

use crate::Setting;
use crate::baseline;
use crate::report::Row;

const PUBLISH: f64 = 1.2;
/// How many times as long it may take to publish a sealed image where no disk is waited for.
const SEAL: f64 = 2.0;
/// Bytes a second that a core must verify.
const VERIFY: f64 = 1.5e9;
const OPEN_AND_FIND_MS: f64 = 1000.0;

/// Pages of the long chain: 4 GiB.
const PAGES: u64 = 1 << 20;
const DELTAS: u64 = 16;
const LOOKUPS: u64 = 1_000_000;
/// What is handed over at once.
const PIECE: usize = 8 << 20;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let bytes = setting.args.mib << 20;
    let source = setting.tmpfs.path().join("random");
    baseline::random_file(&source, bytes)?;
    let map = baseline::mapped(&source)?;
    let mut rows = vec![publish(setting, &source, &map)?, verify(setting, &map, &Keys::default())?];
    let keys = key(setting.tmpfs.path())?;
    rows.extend([publish_sealed(setting, &map, &keys)?, verify(setting, &map, &keys)?, open_and_find(setting)?]);
    drop(map);
    std::fs::remove_file(source)?;
    Ok(rows)
}

/// Publishes an image of these bytes.
fn publish_one(writer: &StoreWriter, map: &Mmap) -> Result<()> {
    let image = writer.begin()?;
    let slot = image.allocate((map.len() / PAGE_SIZE) as u64);
    for (n, piece) in map.chunks(PIECE).enumerate() {
        image.write_at(slot + (n * PIECE / PAGE_SIZE) as u64, piece)?;
    }
    let content = Content::Stored { slot };
    let extents = vec![Extent { first_page: 0, pages: (map.len() / PAGE_SIZE) as u64, content }];
    writer.publish(image.finish(IndexInfo { spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() })?)?;
    Ok(())
}

fn publish(setting: &Setting, source: &Path, map: &Mmap) -> Result<Row> {
    let disk = setting.disk.path();
    let (mut dd, mut ours) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let copy = disk.join("copy");
        let mut command = Command::new("dd");
        command.arg(format!("if={}", source.display())).arg(format!("of={}", copy.display()));
        command.args(["bs=8M", "conv=fdatasync", "status=none"]);
        let (copied, status) = timed(|| Ok(command.status()?))?;
        ensure!(status.success(), "dd failed");
        std::fs::remove_file(copy)?;

        let dir = disk.join("store");
        let writer = Store::create_or_open(&dir, &[])?.lock()?;
        let (took, ()) = timed(|| publish_one(&writer, map))?;
        drop(writer);
        std::fs::remove_dir_all(dir)?;
        if repetition > 0 {
            dd.0.push(copied);
            ours.0.push(took);
        }
    }
    Ok(Row {
        name: format!("publishing an image of {} MiB on a disk: over dd with fdatasync", setting.args.mib),
        figures: ours.over(&dd),
        bound: PUBLISH,
        unit: "×",
        behind: vec![("cr ms".to_owned(), ours), ("dd ms".to_owned(), dd)],
    })
}

/// The key of a sealed store.
fn key(dir: &Path) -> Result<Keys> {
    let path = dir.join("key");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(&seal::random::<{ seal::KEY_FILE_BYTES }>()?)?;
    let secret = Secret::from_key_file(&path)?;
    std::fs::remove_file(path)?;
    Ok(Keys { secret: Some(Arc::new(secret)), ..Keys::default() })
}

/// What encryption adds to publishing, where no disk is waited for.
fn publish_sealed(setting: &Setting, map: &Mmap, keys: &Keys) -> Result<Row> {
    let dir = setting.tmpfs.path().join("store");
    let publish = |keys: &Keys| {
        let writer = Store::create_or_open_with(&Disk::default(), &dir, &[], keys)?.lock()?;
        let (took, ()) = timed(|| publish_one(&writer, map))?;
        drop(writer);
        std::fs::remove_dir_all(&dir)?;
        anyhow::Ok(took)
    };
    let (mut plain, mut sealed) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let (without, with) = (publish(&Keys::default())?, publish(keys)?);
        if repetition > 0 {
            plain.0.push(without);
            sealed.0.push(with);
        }
    }
    Ok(Row {
        name: format!("publishing a sealed image of {} MiB on tmpfs: over one that is not", setting.args.mib),
        figures: sealed.over(&plain),
        bound: SEAL,
        unit: "×",
        behind: vec![("sealed ms".to_owned(), sealed), ("plain ms".to_owned(), plain)],
    })
}

fn verify(setting: &Setting, map: &Mmap, keys: &Keys) -> Result<Row> {
    let dir = setting.tmpfs.path().join("store");
    let store = Store::create_or_open_with(&Disk::default(), &dir, &[], keys)?;
    let what = if store.is_sealed() { " of a sealed image" } else { "" };
    publish_one(&store.lock()?, map)?;
    let wanted = map.len() as f64 / VERIFY * 1e3;
    let (mut ratio, mut whole) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let (took, report) = timed(|| Ok(store.verify(1)?))?;
        ensure!(report.is_ok() && report.newest_intact == Some(1), "the image is damaged");
        if repetition > 0 {
            ratio.0.push(took / wanted);
            whole.0.push(took);
        }
    }
    std::fs::remove_dir_all(dir)?;
    Ok(Row {
        name: format!("verifying {} MiB{what} from page cache on one core: over 1.5 GB/s", setting.args.mib),
        figures: ratio,
        bound: 1.0,
        unit: "×",
        behind: vec![("cr ms".to_owned(), whole)],
    })
}

/// The pages of the full image are a hole: their number counts here, and not what is in them.
fn long_chain(dir: &Path) -> Result<Store> {
    let store = Store::create_or_open(dir, &[])?;
    let writer = store.lock()?;
    let mut parent: Option<Parent> = None;
    for n in 0..=DELTAS {
        let image = writer.begin()?;
        let extents = if n == 0 {
            let slot = image.allocate(PAGES);
            vec![Extent { first_page: 0, pages: PAGES, content: Content::Stored { slot } }]
        } else {
            // One page of 64, each time another, so that no two are neighbours.
            let slot = image.allocate(PAGES / 64);
            let one = |at| Extent { first_page: at * 64 + n, pages: 1, content: Content::Stored { slot: slot + at } };
            (0..PAGES / 64).map(one).collect()
        };
        let info = IndexInfo { parent, spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
        parent = Some(writer.publish(image.finish(info)?)?);
    }
    Ok(store)
}

fn open_and_find(setting: &Setting) -> Result<Row> {
    let dir = setting.tmpfs.path().join("chain");
    let store = long_chain(&dir)?;
    let mut random = 1_u64;
    let pages: Vec<u64> = (0..LOOKUPS)
        .map(|_| {
            // Any sequence without a pattern does: this one is Knuth's.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % PAGES
        })
        .collect();
    let (mut whole, mut opening) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let (took, opened) = timed(|| {
            let (opened, chain) = timed(|| Ok(Chain::open(&store, None)?))?;
            let finder = chain.finder(1);
            let found = pages.iter().filter(|page| matches!(finder.find(**page), Source::Stored { .. })).count();
            ensure!(found as u64 == LOOKUPS && chain.images().len() as u64 == DELTAS + 1, "pages are not found");
            Ok(opened)
        })?;
        if repetition > 0 {
            whole.0.push(took);
            opening.0.push(opened);
        }
    }
    std::fs::remove_dir_all(dir)?;
    Ok(Row {
        name: "opening a chain of 16 deltas with 4 GiB of pages and finding 1,000,000 at random".to_owned(),
        figures: whole,
        bound: OPEN_AND_FIND_MS,
        unit: "ms",
        behind: vec![("of it opening ms".to_owned(), opening)],
    })
}
