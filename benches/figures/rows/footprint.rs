//! Memory that tracking takes, all of it: the controller's, the kernel's for eBPF, and page tables of the job.
//!
//! What the controller holds for copied pages is left out: `--memory-limit` bounds it, and a job that is only tracked needs none. It
//! is known by its advice (huge pages, and not for children), which nothing else in the controller has.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cr_bench::commands::{Attached, StoreDir, checkpoint};
use cr_bench::guest::Guest;
use cr_bench::machine::kib;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const MIB: u64 = 4096;
/// Of the job's resident memory, and beyond that.
const PART: f64 = 0.001;
const BEYOND_MIB: f64 = 32.0;

/// A job with small pages and one with huge ones.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    [false, true].into_iter().map(|huge| one(setting, huge)).collect()
}

fn one(setting: &Setting, huge: bool) -> Result<Row> {
    let mut options = strings(&[&"--mib", &MIB, &"--rate", &0, &"--once-mib", &64, &"--filled", &16, &"--threads", &2]);
    options.extend(huge.then(|| "--huge".to_owned()));
    let mut guest = Guest::start(setting.tmpfs.path(), "writer", &options, None)?;
    let status = format!("/proc/{}/status", guest.pid);
    let tables = || kib(&status, "VmPTE") as f64 / 1024.0;
    let before = tables();
    // On a disk, so that what the controller maps of images is page cache, which is nobody's.
    let store = StoreDir::new(setting.disk.path());
    let controller = Attached::to(guest.pid, &store, &strings(&[&"--memory-limit", &"64M"]))?;
    for _ in 0..2 {
        guest.write_once()?;
        checkpoint(guest.pid, &store, &[])?;
    }
    let own = Controller::of(controller.pid())?;
    let growth = tables() - before;
    let resident = kib(&status, "VmRSS") as f64 / 1024.0;
    controller.let_go()?;
    guest.kill()?;
    let pages = if huge { "huge" } else { "small" };
    let samples = |value: f64| Samples(vec![value]);
    Ok(Row {
        name: format!("memory that tracking takes, job of {MIB} MiB in {pages} pages"),
        figures: samples(own.private + own.programs + own.bpf + growth),
        bound: PART * resident + BEYOND_MIB,
        unit: "MiB",
        behind: vec![
            ("controller's own".to_owned(), samples(own.private)),
            ("its program and libraries".to_owned(), samples(own.programs)),
            ("eBPF maps and programs".to_owned(), samples(own.bpf)),
            ("page tables of the job, growth".to_owned(), samples(growth)),
            ("not counted: page buffers".to_owned(), samples(own.buffers)),
            ("not counted: page cache of images".to_owned(), samples(own.images)),
        ],
    })
}

/// What of the controller is in memory, in MiB.
#[derive(Debug, Default)]
struct Controller {
    /// Its own: heap, stacks, and whatever else is not one of the others.
    private: f64,
    /// Its program and the libraries.
    programs: f64,
    /// Images that it looks pages up in.
    images: f64,
    /// Copied pages on their way.
    buffers: f64,
    /// Kernel memory of eBPF maps and programs.
    bpf: f64,
}

impl Controller {
    fn of(pid: i32) -> Result<Self> {
        let mut sum = Self::default();
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("the controller's mappings")?;
        let (mut path, mut rss) = (String::new(), 0.0);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            match name.strip_suffix(':') {
                // A new mapping: range, protection, offset, device, inode, path.
                None => words.nth(4).unwrap_or_default().clone_into(&mut path),
                Some("Rss") => rss = words.next().unwrap_or_default().parse::<f64>()? / 1024.0,
                Some("VmFlags") => {
                    let flags: HashSet<&str> = words.collect();
                    let place = if Path::new(&path).extension().is_some_and(|extension| extension == "cr") {
                        &mut sum.images
                    } else if path.starts_with('/') {
                        &mut sum.programs
                    } else if flags.contains("hg") && flags.contains("dc") {
                        &mut sum.buffers
                    } else {
                        &mut sum.private
                    };
                    *place += rss;
                }
                Some(_) => {}
            }
        }
        sum.bpf = bpf_mib(pid)?;
        ensure!(sum.private > 0.0 && sum.programs > 0.0, "the mappings of the controller are not understood: {sum:?}");
        Ok(sum)
    }
}

/// What the kernel says that each map and program takes of which the process has a descriptor; each is counted once.
fn bpf_mib(pid: i32) -> Result<f64> {
    let mut known = HashSet::new();
    let mut bytes = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
        let (Some(of), Some(id)) = (value("memlock:"), value("map_id:").or_else(|| value("prog_id:"))) else {
            continue;
        };
        if known.insert((text.contains("map_id:"), id)) {
            bytes += of;
        }
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}
