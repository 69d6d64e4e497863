//! The paths that a checkpoint's time goes through, one by one. Short: about two minutes in all.

mod copy;
mod image;
mod pages;
mod tracking;

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use cr::image::PAGE_SIZE;
use criterion::Criterion;

/// Pages of 64 MiB.
const PAGES: u64 = 16384;
const PAGE: u64 = PAGE_SIZE as u64;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    pages::pages(&mut criterion);
    pages::ranges(&mut criterion);
    image::writer(&mut criterion);
    image::chain(&mut criterion);
    tracking::oracle(&mut criterion);
    tracking::hints(&mut criterion);
    copy::remote(&mut criterion);
    criterion.final_summary();
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).expect("/dev/urandom");
    bytes
}
