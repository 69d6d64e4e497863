//! Every kind of mapping.

use std::fs;
use std::sync::Mutex;

use cr_tests::{Pace, chain_and_back, full_and_back, in_pid_namespace};

#[test]
fn full() {
    let _pages = HugePages::reserve();
    full_and_back("memory", &[], Pace::default());
}

#[test]
fn chain() {
    let _pages = HugePages::reserve();
    chain_and_back("memory", &[], Pace { steps: 25, ..Pace::default() });
}

#[test]
fn chain_in_a_pid_namespace() {
    in_pid_namespace("chain_in_a_pid_namespace", || chain_and_back("memory", &[], Pace::default()));
}

/// Four huge pages of 2 MiB for each holder, taken back when it goes.
struct HugePages;

const PER_HOLDER: u64 = 4;
static POOL: Mutex<()> = Mutex::new(());

impl HugePages {
    /// Where there is no pool to enlarge, the guest says itself that it goes without.
    fn reserve() -> Self {
        Self::resize(|pages| pages + PER_HOLDER);
        Self
    }

    fn resize(change: impl Fn(u64) -> u64) {
        let _alone = POOL.lock();
        let file = "/proc/sys/vm/nr_hugepages";
        let pages = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let _ = fs::write(file, change(pages).to_string());
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        Self::resize(|pages| pages.saturating_sub(PER_HOLDER));
    }
}
