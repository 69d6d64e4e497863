//! Pages and sets of pages.

use std::hint::black_box;

use cr::image::{PAGE_SIZE, is_zero_page, page_checksum, page_checksums};
use cr::ranges::RangeSet;
use criterion::{BatchSize, Criterion, Throughput};

use crate::{PAGE, PAGES, random_bytes};

/// What is done to each page.
pub fn pages(criterion: &mut Criterion) {
    let (full, zero) = (random_bytes(PAGE_SIZE), vec![0; PAGE_SIZE]);
    let mut group = criterion.benchmark_group("page");
    group.throughput(Throughput::Bytes(PAGE));
    group.bench_function("checksum", |b| b.iter(|| page_checksum(black_box(&full))));
    group.bench_function("is_zero/zero", |b| b.iter(|| is_zero_page(black_box(&zero))));
    group.bench_function("is_zero/random", |b| b.iter(|| is_zero_page(black_box(&full))));
    let chunk = random_bytes(8 << 20);
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    group.bench_function("checksums of 8 MiB", |b| b.iter(|| page_checksums(black_box(&chunk))));
    group.finish();
}

/// Sets of pages as a scan of scattered writes gives them.
pub fn ranges(criterion: &mut Criterion) {
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
