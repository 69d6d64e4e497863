//! The record of written pages.

use std::{
    io::{BufRead as _, IoSlice, Write as _},
    ops::Range,
    os::fd::AsFd as _,
};

use cr::{
    ranges::RangeSet,
    remote::{Frozen, Gadgets, Puppet},
    track::{
        Oracle,
        hints::{Hints, WrittenRecord},
        oracle::Written,
    },
};
use nix::{sys::uio, unistd::Pid};

use crate::{
    guest::{Guest, PAGE},
    hints, hints_with,
};

#[test]
fn the_record_covers_what_the_job_writes_and_nothing_else() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    for page in [3, 4, 5, 63, 64, 511, 512, 1500] {
        guest.obey(&format!("write {page}"));
    }
    guest.obey("load 9");
    let memory = guest.page(0)..guest.page(16384);
    let record = hints.drain_written(space).expect("drain");
    assert_eq!(record.lost, 0);
    let expected = [3..6, 63..65, 511..513, 1500..1501].map(|pages| guest.page(pages.start)..guest.page(pages.end));
    assert_eq!(within(&record, &memory), expected);

    // Each page is handed out once; a write that raises no new fault is not seen again, one that does is.
    guest.obey("write 3");
    guest.obey("drop 4");
    guest.obey("write 4");
    let record = hints.drain_written(space).expect("drain");
    assert_eq!(within(&record, &memory), [4].map(|page| guest.page(page)..guest.page(page + 1)));
}

#[test]
fn the_record_covers_what_the_kernel_writes_for_the_job() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    assert_eq!(guest.obey("read 7"), 4096);
    assert!(covers(&hints.drain_written(space).expect("drain"), guest.page(7)));
}

/// Another process's write goes through `get_user_pages`, which raises no fault: it is seen taking the lock, and says where.
#[test]
fn another_process_writing_raises_no_fault_and_is_noted() {
    let Some(mut hints) = hints() else { return };
    let guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    write_from_outside(&guest, 8, 1);
    let record = hints.drain_written(space).expect("drain");
    assert!(!covers(&record, guest.page(8)), "this kernel shows such writes as faults");
    assert!(record.touched.iter().any(|range| range.contains(&guest.page(8))), "{record:?}");
    assert_eq!(record.lost, 0);
    let followed = hints.followed(space).expect("the map").expect("its entry");
    assert_eq!((followed.taken, followed.given), (0, 0), "{followed:?}");
}

/// What does not say where it writes is counted: here the debugger's way.
#[test]
fn a_write_that_does_not_say_where_is_counted() {
    let Some(mut hints) = hints() else { return };
    let guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    let before = hints.followed(space).expect("the map").expect("its entry");
    // Not our own, whose writes are known.
    let script =
        format!("printf x | dd of=/proc/{}/mem bs=1 seek={} conv=notrunc status=none", guest.pid(), guest.page(8));
    let status = std::process::Command::new("sh").args(["-c", &script]).status().expect("dd");
    assert!(status.success(), "{status}");
    let after = hints.followed(space).expect("the map").expect("its entry");
    assert!(after.taken > before.taken, "{before:?} and {after:?}");
    assert_eq!(after.taken, after.given, "{after:?}");
}

#[test]
fn a_process_that_is_not_followed_is_not_recorded() {
    let Some(mut hints) = hints() else { return };
    let (mut followed, mut other) = (Guest::start(), Guest::start());
    let space = hints.follow(followed.pid()).expect("follow");
    other.obey("write 3");
    followed.obey("write 4");
    let elsewhere = hints.space_of(other.pid()).expect("its address space");
    assert!(hints.drain_written(elsewhere).expect("drain").pages.is_empty());
    assert!(covers(&hints.drain_written(space).expect("drain"), followed.page(4)));

    hints.unfollow(space).expect("unfollow");
    followed.obey("write 5");
    assert_eq!(hints.drain_written(space).expect("drain"), WrittenRecord::default());
}

#[test]
fn a_full_record_says_that_it_lost_pages_and_recovers() {
    const REGION: u64 = 512;
    let Some(mut hints) = hints_with(4) else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    for region in 0..20 {
        guest.obey(&format!("write {}", region * REGION));
    }
    let record = hints.drain_written(space).expect("drain");
    assert!(record.lost > 0, "20 regions fit into 4: {record:?}");
    // The emptied record may have lost more, which the next one owns up to; then it is whole again.
    assert!(hints.drain_written(space).expect("drain").lost > 0);
    guest.obey("drop 0");
    guest.obey("write 0");
    let record = hints.drain_written(space).expect("drain");
    assert_eq!(record.lost, 0);
    assert!(covers(&record, guest.page(0)));
}

#[test]
fn nothing_is_lost_between_readings_while_the_job_writes() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    let pages = 16384;
    writeln!(guest.commands, "sweep {pages}").expect("the guest listens");
    let mut seen = std::collections::BTreeMap::<u64, u32>::new();
    let memory = guest.page(0)..guest.page(pages);
    let mut take = |hints: &mut Hints| {
        let record = hints.drain_written(space).expect("drain");
        assert_eq!(record.lost, 0);
        for range in within(&record, &memory) {
            (range.start..range.end).step_by(PAGE as usize).for_each(|page| *seen.entry(page).or_default() += 1);
        }
    };
    for _ in 0..200 {
        take(&mut hints);
    }
    let mut line = String::new();
    guest.answers.read_line(&mut line).expect("the guest answers");
    take(&mut hints);
    assert_eq!(seen.len() as u64, pages);
    assert!(seen.values().all(|times| *times == 1), "a page was handed out twice");
}

/// The record and its blind spots must cover the oracle: a page that the page tables call written was recorded, or was
/// written in a way that raises no fault.
#[test]
fn the_record_and_its_blind_spots_cover_the_oracle() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    let oracle = oracle_of(guest.pid());
    // Mappings that the kernel cannot track are no part of the comparison.
    let vmas = hints.vmas(guest.pid()).expect("vmas");
    let tracked: Vec<_> = vmas.iter().filter(|vma| oracle.register(vma.start, vma.end).is_ok()).collect();
    assert!(tracked.iter().any(|vma| vma.start <= guest.page(0) && guest.page(16384) <= vma.end));
    let written = |protect| {
        let scans = tracked.iter().map(|vma| match oracle.written(vma.start, vma.end, protect).expect("scan") {
            Written::Pages(pages) => pages,
            Written::Untracked => panic!("{:x} is not tracked", vma.start),
        });
        RangeSet::from_unsorted(scans.flatten().collect())
    };
    // Some pages were there when they were protected, some were not.
    for page in 0..400 {
        guest.obey(&format!("write {page}"));
    }
    written(true);
    hints.drain_written(space).expect("drain");

    for page in (0..2000).step_by(3) {
        guest.obey(&format!("write {page}"));
    }
    guest.obey("sweep 100");
    for page in 500..520 {
        guest.obey(&format!("read {page}"));
    }
    for page in 30..40 {
        guest.obey(&format!("drop {page}"));
    }
    guest.obey("write 35");
    guest.obey("fork 1001");
    guest.obey("thread");
    let blind = guest.page(3000) / PAGE..guest.page(3004) / PAGE;
    write_from_outside(&guest, 3000, 4);

    let oracle = written(false);
    let record = hints.drain_written(space).expect("drain");
    assert_eq!(record.lost, 0);
    let record = record.pages.iter().map(|pages| pages.start / PAGE..pages.end / PAGE).collect();
    let blind = RangeSet::from_unsorted(vec![blind]);
    let missed = oracle.difference(&RangeSet::from_unsorted(record));
    assert_eq!(missed, blind, "the blind spot, no more and no less");
    assert!(oracle.count() > 700, "{oracle:?}");
}

fn oracle_of(pid: i32) -> Oracle {
    let pidfd = cr::sys::fd::pidfd_open(pid).expect("pidfd");
    let gadgets = Gadgets::find(pid).expect("a syscall instruction");
    let frozen =
        Frozen::freeze(&cr::family::Family { root: pid, reaper: None, only: None }, &mut Vec::new).expect("freeze");
    let mut puppet = Puppet::begin(pid, &frozen.processes()[0].tids(), gadgets).expect("a thread to borrow");
    let oracle = Oracle::open(&mut puppet, pid, pidfd.as_fd()).expect("userfaultfd");
    puppet.end().expect("give the thread back");
    frozen.thaw().expect("thaw");
    oracle
}

fn write_from_outside(guest: &Guest, page: u64, pages: usize) {
    let data = vec![7; pages * PAGE as usize];
    let remote = uio::RemoteIoVec { base: guest.page(page) as usize, len: data.len() };
    let written = uio::process_vm_writev(Pid::from_raw(guest.pid()), &[IoSlice::new(&data)], &[remote]);
    assert_eq!(written, Ok(data.len()));
}

pub(crate) fn covers(record: &WrittenRecord, page: u64) -> bool {
    record.pages.iter().any(|range| range.contains(&page))
}

fn within(record: &WrittenRecord, range: &Range<u64>) -> Vec<Range<u64>> {
    record.pages.iter().filter(|pages| pages.start < range.end && range.start < pages.end).cloned().collect()
}
