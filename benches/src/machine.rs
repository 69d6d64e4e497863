//! The machine that the figures are of.

use std::fmt;
use std::fs;

use serde::Serialize;

/// What matters of it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    memory_mib: u64,
    huge_pages: String,
    load: String,
}

/// Asks the kernel.
pub fn describe() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned());
    Machine {
        cpu,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: read("/proc/sys/kernel/osrelease"),
        memory_mib: kib("/proc/meminfo", "MemTotal") / 1024,
        huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled"),
        load: read("/proc/loadavg"),
    }
}

/// The value of `NAME:  N kB` in a file of the proc file system.
pub fn kib(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, kernel, memory_mib, huge_pages, load } = self;
        write!(
            f,
            "{cpu}, {cores} cores, {memory_mib} MiB, Linux {kernel}; huge pages: {huge_pages}; load at the end: {load}"
        )
    }
}
