//! Which pages were written: the page tables, and the record of the eBPF programs.

use cr::image::PAGE_SIZE;
use cr::sys::uffd;
use cr::track::{Hints, Oracle};
use cr_bench::guest::Guest;
use cr_bench::strings;
use criterion::{BatchSize, Criterion};
use memmap2::{Advice, MmapMut};
use nix::errno::Errno;

use crate::{PAGE, PAGES};

/// Scans of our own memory, protected by our own userfaultfd.
pub fn oracle(criterion: &mut Criterion) {
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

/// Taking the record of a process that faults on each of its pages between two looks.
pub fn hints(criterion: &mut Criterion) {
    let mut hints = match Hints::load() {
        Ok(hints) => hints,
        Err(e) => {
            eprintln!("skipped: the eBPF programs cannot be loaded here ({e})");
            return;
        }
    };
    let mut group = criterion.benchmark_group("Hints::drain_written");
    for mib in [1, 64] {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let options = strings(&[&"--mib", &128, &"--rate", &0, &"--once-mib", &mib, &"--afresh"]);
        let mut guest = Guest::start(folder.path(), "writer", &options, None).expect("a job");
        let space = hints.follow(guest.pid).expect("the job can be followed");
        let pages = mib << 20 >> PAGE.trailing_zeros();
        group.sample_size(10).bench_function(format!("{mib} MiB written"), |b| {
            b.iter_batched(
                || guest.write_once().expect("the job writes"),
                |()| {
                    let record = hints.drain_written(space).expect("the record");
                    let found: u64 = record.pages.iter().map(|range| (range.end - range.start) / PAGE).sum();
                    assert!(found >= pages && record.lost == 0, "{found} of {pages} pages, {} lost", record.lost);
                },
                BatchSize::PerIteration,
            );
        });
        guest.write_once().expect("the job writes");
        hints.drain_written(space).expect("the record");
        group.bench_function(format!("nothing written, {mib} MiB were before"), |b| {
            b.iter(|| hints.drain_written(space).expect("the record"));
        });
        hints.unfollow(space).expect("the job can be let go");
        guest.kill().expect("the job ends");
    }
    group.finish();
}

/// Writes to every `step`th page.
fn dirty(memory: &mut [u8], step: usize) {
    memory.chunks_exact_mut(PAGE_SIZE).step_by(step).for_each(|page| page[0] = page[0].wrapping_add(1));
}
