//! The traps of dirty tracking, each sprung between checkpoints of a chain: a page whose change is missed shows after the restore.

use std::fs::OpenOptions;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

use cr_tests::{Job, guest_names};
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;

/// Full checkpoint; action and delta, three times; SIGKILL; restore; action and delta once more; SIGKILL; restore; verdict.
#[track_caller]
fn spring(name: &str, mut before_action: impl FnMut(&Job, u64)) {
    let mut job = Job::start_resident("trap", &[name]);
    let mut last = job.checkpoint();
    for action in 1..=4 {
        before_action(&job, action);
        job.go(action);
        let next = job.checkpoint();
        // After exec there is nothing left that a delta could build on.
        if name != "exec" {
            next.expect_delta_on(&last);
        }
        last = next;
        if action >= 3 {
            job.kill();
            job.restore_detached();
        }
    }
    job.finish();
}

/// Every trap that the guest knows has a test here.
#[test]
fn all_are_sprung() {
    let source = include_str!("traps.rs");
    for name in guest_names("trap") {
        assert!(source.contains(&format!("{name:?}")), "the trap {name:?} has no test");
    }
}

macro_rules! traps {
    ($($test:ident = $name:literal,)*) => {
        $(#[test] fn $test() { spring($name, |_, _| {}); })*
    };
}

traps! {
    mremap_move = "mremap-move",
    mremap_grow = "mremap-grow",
    mremap_dontunmap = "mremap-dontunmap",
    dontneed = "dontneed",
    unmap_and_map = "unmap-and-map",
    new_mapping = "new-mapping",
    huge_write = "huge-write",
    huge_dontneed = "huge-dontneed",
    shared_alias = "shared-alias",
    memfd_write = "memfd-write",
    memfd_hole = "memfd-hole",
    read_into_protected = "read",
    o_direct_read = "o-direct-read",
    mprotect = "mprotect",
    zeroed = "zeroed",
    fork = "fork",
    exec = "exec",
    heap_shrink = "heap-shrink",
}

/// What the test writes into the job before action `n`: every byte of it.
fn bytes(job: &Job, action: u64) -> (usize, Vec<u8>) {
    let said = job.read_link("say.address").expect("the guest says where its memory is");
    let (address, length) = said.split_once(' ').expect("address and length");
    let address = usize::from_str_radix(address.trim_start_matches("0x"), 16).expect("an address");
    (address, vec![0x50 + u8::try_from(action).expect("few actions"); length.parse().expect("a length")])
}

#[test]
fn process_vm_writev_by_another_process() {
    spring("process-vm-writev", |job, action| {
        let (base, bytes) = bytes(job, action);
        let remote = [RemoteIoVec { base, len: bytes.len() }];
        let written = process_vm_writev(Pid::from_raw(job.pid()), &[IoSlice::new(&bytes)], &remote);
        assert_eq!(written, Ok(bytes.len()));
    });
}

#[test]
fn proc_mem_by_another_process() {
    spring("proc-mem", |job, action| {
        let (address, bytes) = bytes(job, action);
        let memory = OpenOptions::new().write(true).open(format!("/proc/{}/mem", job.pid())).expect("/proc/PID/mem");
        memory.write_all_at(&bytes, address as u64).expect("write to the job's memory");
    });
}
