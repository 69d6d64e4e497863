//! Copying pages out of another process.

use std::ops::Range;
use std::path::Path;

use cr::object::memory::read::Memory;
use cr_bench::guest::Guest;
use cr_bench::strings;
use criterion::{Criterion, Throughput};
use memmap2::{Advice, MmapMut};

use crate::{PAGE, PAGES};

/// 32 MiB of a job's 64, in one piece and scattered, into memory that is warm.
pub fn remote(criterion: &mut Criterion) {
    let folder = tempfile::tempdir_in(Path::new("/dev/shm")).expect("a folder");
    let mut group = criterion.benchmark_group("Memory::read of 32 MiB");
    group.throughput(Throughput::Bytes(PAGES / 2 * PAGE));
    for pages in ["small", "huge"] {
        let mut options = strings(&[&"--mib", &64, &"--rate", &0]);
        options.extend((pages == "huge").then(|| "--huge".to_owned()));
        let mut guest = Guest::start(folder.path(), "writer", &options, None).expect("a job");
        let first = guest.memory_start().expect("its memory") / PAGE;
        let memory = Memory::open(guest.pid).expect("its memory");
        let mut buffer = MmapMut::map_anon((PAGES / 2 * PAGE) as usize).expect("memory");
        // Without huge pages it works as well.
        let _ = buffer.advise(Advice::HugePage);
        buffer.advise(Advice::PopulateWrite).expect("pages");
        for (name, run) in [("in one piece", PAGES / 2), ("in runs of 16 pages", 16), ("in single pages", 1)] {
            let ranges: Vec<Range<u64>> =
                (0..PAGES / 2 / run).map(|n| first + n * 2 * run..first + n * 2 * run + run).collect();
            group.bench_function(format!("{pages} pages, {name}"), |b| {
                b.iter(|| assert!(memory.read(&ranges, &mut buffer).is_empty(), "a page cannot be read"));
            });
        }
        guest.kill().expect("the job ends");
    }
    group.finish();
}
