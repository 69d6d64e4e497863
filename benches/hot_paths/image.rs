//! Images and chains of them.

use std::path::Path;

use cr::image::{Content, Extent, HeaderInfo, ImageWriter, IndexInfo, JobId, PAGE_SIZE, Parent, Space};
use cr::store::{Chain, Source, Store};
use criterion::{BenchmarkId, Criterion, Throughput};

use crate::{PAGE, PAGES, random_bytes};

const LOOKUPS: u64 = 1_000_000;

/// Checksums and writes of pages, to memory and to the temporary directory.
pub fn writer(criterion: &mut Criterion) {
    let bytes = random_bytes(8 << 20);
    let mut group = criterion.benchmark_group("ImageWriter::write_at");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for (name, dir) in [("tmpfs", Path::new("/dev/shm")), ("temporary directory", &*std::env::temp_dir())] {
        let Ok(folder) = tempfile::tempdir_in(dir) else {
            eprintln!("skipped: no folder in {}", dir.display());
            continue;
        };
        let header = HeaderInfo { id: 1, job: JobId([7; 16]) };
        let image = ImageWriter::create(&folder.path().join("image"), header).expect("an image");
        let slot = image.allocate(bytes.len() as u64 / PAGE);
        group.bench_function(BenchmarkId::new("pages that exist", name), |b| {
            b.iter(|| image.write_at(slot, &bytes).expect("writing"));
        });
    }
    group.finish();
}

/// Looking pages up in a chain of a full image and deltas of scattered pages.
pub fn chain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Chain");
    for deltas in [0, 8, 32] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = chain_of(folder.path(), deltas);
        let chain = Chain::open(&store, None).expect("the chain");
        let name = format!("{deltas} deltas");
        group.bench_function(BenchmarkId::new("open", &name), |b| b.iter(|| Chain::open(&store, None)));
        group.bench_function(BenchmarkId::new("resolve", &name), |b| b.iter(|| chain.resolve(1).count()));
        let mut page = 0;
        group.bench_function(BenchmarkId::new("lookup", &name), |b| {
            b.iter(|| {
                page = (page + 7919) % PAGES;
                chain.lookup(1, page)
            });
        });
    }
    group.finish();

    let folder = tempfile::tempdir().expect("a folder");
    let chain = Chain::open(&chain_of(folder.path(), 16), None).expect("the chain");
    let mut random = 1_u64;
    let pages: Vec<u64> = (0..LOOKUPS)
        .map(|_| {
            // Any sequence without a pattern does: this one is Knuth's.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % PAGES
        })
        .collect();
    let mut group = criterion.benchmark_group("Chain of 16 deltas");
    group.throughput(Throughput::Elements(LOOKUPS));
    group.sample_size(10).bench_function("1,000,000 random lookups", |b| {
        b.iter(|| pages.iter().filter(|page| chain.lookup(1, **page) == Source::Absent).count());
    });
    group.finish();
}

/// A full image and so many deltas, each of which names one page of 64.
fn chain_of(folder: &Path, deltas: u64) -> Store {
    let store = Store::create_or_open(&folder.join("store"), &[]).expect("a store");
    let writer = store.lock().expect("its lock");
    let mut parent: Option<Parent> = None;
    for n in 0..=deltas {
        let image = writer.begin().expect("an image");
        let slot = image.put(&random_bytes(PAGE_SIZE)).expect("writing");
        let stored = Content::Stored { slot };
        let extents = if n == 0 {
            vec![Extent { first_page: 0, pages: PAGES, content: Content::Zero }]
        } else {
            // One slot serves all of them: only the index counts here.
            (0..PAGES / 64).map(|e| Extent { first_page: e * 64 + n, pages: 1, content: stored }).collect()
        };
        let spaces = vec![Space::from_unsorted(1, extents)];
        let finished = image.finish(IndexInfo { parent, spaces, ..IndexInfo::default() }).expect("finishing");
        parent = Some(writer.publish(finished).expect("publishing"));
    }
    drop(writer);
    store
}
