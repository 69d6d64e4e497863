//! What cr is measured against.

use std::fs::{self, File};
use std::io::{IoSliceMut, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cr_bench::machine::kib;
use cr_bench::sample::timed;
use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// Touches most of the free memory once: a virtual machine may back its memory only then, at many times the cost.
pub fn touch_free_memory() -> Result<()> {
    let bytes = (kib("/proc/meminfo", "MemAvailable") << 10) / 10 * 6;
    eprintln!("touching {} MiB of memory", bytes >> 20);
    populated(bytes as usize).map(drop)
}

/// A file of random bytes, in the page cache.
pub fn random_file(path: &Path, bytes: u64) -> Result<()> {
    let mut random = File::open("/dev/urandom").context("/dev/urandom")?;
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    std::io::copy(&mut std::io::Read::by_ref(&mut std::io::Read::take(&mut random, bytes)), &mut file)?;
    file.flush()?;
    Ok(())
}

/// Milliseconds that `cat` takes to copy `from` to a new file `to`, which is removed afterwards.
pub fn cat(from: &Path, to: &Path) -> Result<f64> {
    let target = File::create(to)?;
    let (ms, status) = timed(|| Ok(Command::new("cat").arg(from).stdin(Stdio::null()).stdout(target).status()?))?;
    ensure!(status.success(), "cat: {status}");
    fs::remove_file(to)?;
    Ok(ms)
}

/// Milliseconds to get memory of the size of `source` with every page there, and to copy `source` into it.
pub fn populate_and_copy(source: &Mmap) -> Result<f64> {
    let (ms, target) = timed(|| {
        let mut target = populated(source.len())?;
        target.copy_from_slice(source);
        Ok(target)
    })?;
    ensure!(target.last() == source.last(), "the copy differs");
    Ok(ms)
}

/// A file of the page cache as memory, with every page of it mapped already.
pub fn mapped(path: &Path) -> Result<Mmap> {
    let map = cr::sys::mmap::map_readonly(&File::open(path)?)?;
    map.advise(Advice::PopulateRead)?;
    Ok(map)
}

/// Memory that stays warm between reads, as the controller's does.
pub fn warm_buffer(bytes: usize) -> Result<MmapMut> {
    let buffer = MmapMut::map_anon(bytes)?;
    buffer.advise(Advice::HugePage)?;
    buffer.advise(Advice::PopulateWrite)?;
    Ok(buffer)
}

/// Milliseconds that one `process_vm_readv` of that memory of a process takes.
pub fn read_remote(pid: i32, start: u64, into: &mut [u8]) -> Result<f64> {
    let len = into.len();
    let remote = [RemoteIoVec { base: start as usize, len }];
    let (ms, n) = timed(|| Ok(process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(into)], &remote)?))?;
    ensure!(n == len, "process_vm_readv read {n} of {len} bytes");
    Ok(ms)
}

fn populated(bytes: usize) -> Result<MmapMut> {
    Ok(MmapOptions::new().len(bytes).populate().map_anon()?)
}
