//! The paths that a checkpoint's time goes through, one by one. Short: about a minute in all.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use cr::image::{Content, Extent, HeaderInfo, ImageWriter, IndexInfo, JobId, PAGE_SIZE, Parent, Space};
use cr::image::{is_zero_page, page_checksum};
use cr::ranges::RangeSet;
use cr::store::{Chain, Store};
use cr::sys::uffd;
use cr::track::Oracle;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use memmap2::{Advice, MmapMut};
use nix::errno::Errno;

/// Pages of 64 MiB.
const PAGES: u64 = 16384;
const PAGE: u64 = PAGE_SIZE as u64;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    pages(&mut criterion);
    ranges(&mut criterion);
    writer(&mut criterion);
    chain(&mut criterion);
    oracle(&mut criterion);
    criterion.final_summary();
}

/// What is done to each page.
fn pages(criterion: &mut Criterion) {
    let (full, zero) = (random_bytes(PAGE_SIZE), vec![0; PAGE_SIZE]);
    let mut group = criterion.benchmark_group("page");
    group.throughput(Throughput::Bytes(PAGE));
    group.bench_function("checksum", |b| b.iter(|| page_checksum(black_box(&full))));
    group.bench_function("is_zero/zero", |b| b.iter(|| is_zero_page(black_box(&zero))));
    group.bench_function("is_zero/random", |b| b.iter(|| is_zero_page(black_box(&full))));
    group.finish();
}

/// Sets of pages as a scan of scattered writes gives them.
fn ranges(criterion: &mut Criterion) {
    let scattered = |step: u64, len: u64| -> RangeSet { (0..PAGES).map(|n| n * step..n * step + len).collect() };
    let (a, b) = (scattered(4, 1), scattered(6, 2));
    let mut shuffled: Vec<_> = (0..PAGES).map(|n| n * 7919 % PAGES * 4..n * 7919 % PAGES * 4 + 1).collect();
    shuffled.push(0..1);
    let mut group = criterion.benchmark_group("RangeSet of 16384");
    group.bench_function("union", |bench| bench.iter(|| black_box(&a).union(black_box(&b))));
    group.bench_function("intersection", |bench| bench.iter(|| black_box(&a).intersection(black_box(&b))));
    group.bench_function("difference", |bench| bench.iter(|| black_box(&a).difference(black_box(&b))));
    group.bench_function("from_unsorted", |bench| {
        bench.iter_batched(|| shuffled.clone(), RangeSet::from_unsorted, BatchSize::SmallInput);
    });
    group.finish();
}

/// Checksums and writes of pages, to memory and to the temporary directory.
fn writer(criterion: &mut Criterion) {
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
fn chain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Chain");
    for deltas in [0, 8, 32] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::create_or_open(&folder.path().join("store"), &[]).expect("a store");
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
}

/// Scans of our own memory, protected by our own userfaultfd.
fn oracle(criterion: &mut Criterion) {
    let mut memory = MmapMut::map_anon((PAGES * PAGE) as usize).expect("memory");
    memory.advise(Advice::NoHugePage).expect("no huge pages");
    memory.advise(Advice::PopulateWrite).expect("pages");
    let (start, end) = (memory.as_ptr() as u64, memory.as_ptr() as u64 + PAGES * PAGE);
    let tracking =
        uffd::create().and_then(|uffd| Oracle::adopt(std::process::id().cast_signed(), uffd).or(Err(Errno::ENOSYS)));
    let tracking = match tracking.and_then(|oracle| oracle.register(start, end).map(|()| oracle)) {
        Ok(tracking) => tracking,
        Err(e) => {
            eprintln!("skipped: this kernel cannot track written pages ({e})");
            return;
        }
    };
    let scan = |protect| tracking.written(start, end, protect).expect("a scan");
    let mut group = criterion.benchmark_group("Oracle of 64 MiB");
    group.bench_function("scan and protect, all written", |b| {
        b.iter_batched(|| dirty(&mut memory, 1), |()| scan(true), BatchSize::PerIteration);
    });
    scan(true);
    group.bench_function("scan, nothing written", |b| b.iter(|| scan(false)));
    group.bench_function("scan and protect, 1 of 16 written", |b| {
        b.iter_batched(|| dirty(&mut memory, 16), |()| scan(true), BatchSize::PerIteration);
    });
    group.finish();
}

/// Writes to every `step`th page.
fn dirty(memory: &mut [u8], step: usize) {
    memory.chunks_exact_mut(PAGE_SIZE).step_by(step).for_each(|page| page[0] = page[0].wrapping_add(1));
}

fn random_bytes(len: usize) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; len];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).expect("/dev/urandom");
    bytes
}
