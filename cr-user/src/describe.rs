//! Checkpoints in words and numbers, as `cr list`, `cr show` and the controller tell of them.

mod anatomy;

use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Report;
use crate::error::Result;
use crate::image::Image;
use crate::object::files::{Description, Files};
use crate::object::memory::advice;
use crate::object::memory::backing::{Backing, Object, ObjectKind};
use crate::object::memory::{self, Mappings};
use crate::object::omitted::Omitted;
use crate::object::process::{self, Process};
use crate::object::records::get;
use crate::object::spaces::Spaces;
use crate::object::threads;
use crate::object::zombies::Zombie;
use crate::recorded::Records;
use crate::store::compact::Compacted;
use crate::store::{Chain, Resolved, Source};

pub use anatomy::{Anatomy, ImageFile, Pages, RecordPlace, Sources, SpaceRow};

/// One checkpoint: a row of `cr list`. The names are those of the documented JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its number in the store.
    pub id: u64,
    /// `full` or `delta`.
    pub kind: Kind,
    /// The checkpoint that it is a delta on.
    pub parent: Option<u64>,
    /// When the job was frozen (RFC 3339, UTC).
    pub taken_at: String,
    /// Pages that had, or may have, changed.
    pub dirty_pages: u64,
    /// Pages stored.
    pub stored_pages: u64,
    /// Bytes of its file.
    pub stored_bytes: u64,
    /// How long the job stood still, in milliseconds.
    pub frozen_ms: f64,
    /// How long it all took, in milliseconds.
    pub total_ms: f64,
    /// The job.
    pub pid: i32,
    /// Why more was read than the kernel said had changed.
    pub widened: Vec<String>,
    /// The checkpoint that it was made from by compaction, if it was not taken of the job itself.
    #[serde(default)]
    pub compacted_from: Option<u64>,
    /// Memory and processes that it leaves out.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// What it could not be restored without; nothing if it stands alone.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// What a checkpoint builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing.
    Full,
    /// Its parent.
    Delta,
}

impl Kind {
    fn of(parent: Option<u64>) -> Self {
        parent.map_or(Self::Full, |_| Self::Delta)
    }

    /// As in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Delta => "delta",
        }
    }
}

impl From<&Report> for Checkpoint {
    fn from(report: &Report) -> Self {
        Self {
            id: report.id,
            kind: Kind::of(report.parent),
            parent: report.parent,
            taken_at: rfc3339(report.taken_at),
            dirty_pages: report.dirty_pages,
            stored_pages: report.stored_pages,
            stored_bytes: report.stored_bytes,
            frozen_ms: milliseconds(report.frozen),
            total_ms: milliseconds(report.total),
            pid: report.pid,
            widened: report.widened.clone(),
            compacted_from: None,
            left_out: report.omitted.sentences(),
            missing: report.omitted.missing.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Checkpoint {
    /// What an image says of itself.
    ///
    /// # Errors
    /// When its record of the process is not valid.
    pub fn of_image(image: &Image) -> Result<Self> {
        let summary = image.summary();
        let processes: Vec<Process> = get(image, process::KIND)?;
        let omitted = Omitted::of_image(image)?;
        let parent = summary.parent.map(|parent| parent.id);
        Ok(Self {
            id: summary.id,
            kind: Kind::of(parent),
            parent,
            taken_at: rfc3339(summary.taken_at),
            dirty_pages: summary.statistics.dirty_pages,
            stored_pages: summary.statistics.stored_pages,
            stored_bytes: summary.file_bytes,
            frozen_ms: milliseconds(Duration::from_nanos(summary.statistics.frozen_ns)),
            total_ms: milliseconds(Duration::from_nanos(summary.statistics.total_ns)),
            pid: processes.first().map_or(0, |process| process.pid),
            widened: summary.widened,
            compacted_from: Compacted::of_image(image).map(|compacted| compacted.from),
            left_out: omitted.sentences(),
            missing: omitted.missing.iter().map(ToString::to_string).collect(),
        })
    }
}

/// One checkpoint in detail: what `cr show` tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Details {
    /// The row of `cr list`.
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
    /// The job's id: 32 hex digits.
    pub job: String,
    /// The command line, its words parted by blanks.
    pub command: String,
    /// The working directory.
    pub cwd: String,
    /// The machine and kernel that it ran on.
    pub kernel: String,
    /// Its processes, parents before their children; those that had ended, unnoticed, come last.
    pub processes: Vec<Relative>,
    /// Their threads.
    pub threads: Vec<Thread>,
    /// Their mappings, ascending in each.
    pub mappings: Vec<Mapping>,
    /// Its open files.
    pub files: Vec<OpenFile>,
    /// What the checkpoint leaves out of the job.
    pub omitted: Omitted,
    /// What it is made of.
    #[serde(flatten)]
    pub anatomy: Anatomy,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Relative {
    /// Its pid.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// The command line, its words parted by blanks; of one that had ended, its name.
    pub command: String,
    /// Whether it had ended, and its parent had not noticed.
    pub ended: bool,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Its process.
    pub pid: i32,
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// Where it goes on.
    pub rip: String,
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// The process whose address space it is in.
    pub pid: i32,
    /// First byte, as `0x…`.
    pub start: String,
    /// Past the last byte, as `0x…`.
    pub end: String,
    /// As in `/proc/PID/maps`: `rw-p`.
    pub perms: String,
    /// `anonymous`, `file`, `memfd`, ….
    pub kind: &'static str,
    /// The file, or the name of the memory; empty for none.
    pub path: String,
    /// Its pages.
    pub pages: u64,
    /// Pages of it that the chain stores.
    pub stored_pages: u64,
    /// Where they are. A private mapping of an object has pages of its own, and the object's besides.
    pub sources: Sources,
    /// Where its other pages come from: `zero`, `file`, `kernel` or `record`.
    pub rest: &'static str,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenFile {
    /// The descriptors that refer to it.
    pub fds: Vec<i32>,
    /// The processes that have them, one each.
    pub pids: Vec<i32>,
    /// `file`, `directory`, `pipe`, ….
    pub kind: &'static str,
    /// Where it is; empty for what has no path.
    pub path: String,
    /// Its offset in bytes, for what has one.
    pub pos: Option<i64>,
}

impl Details {
    /// Reads them from the newest image of a chain.
    ///
    /// # Errors
    /// When a record is not valid.
    pub fn of_chain(chain: &Chain) -> Result<Self> {
        let image = chain.newest();
        let records = Records::read(chain)?;
        // Of several processes, the first is the job's own.
        let first = records.process.first();
        let threads = records.threads.iter();
        Ok(Self {
            checkpoint: Checkpoint::of_image(image)?,
            job: image.job().to_string(),
            command: first.map(|process| command_line(&process.command_line)).unwrap_or_default(),
            cwd: first.map(|process| process.cwd.clone()).unwrap_or_default(),
            kernel: first.map(|process| process.host.kernel.clone()).unwrap_or_default(),
            processes: relatives(&records.process, &records.zombies),
            threads: threads.flat_map(|of_one| of_one.all.iter().map(|t| thread(of_one.pid, t))).collect(),
            mappings: records.mappings.iter().flat_map(|of_one| mappings_of(chain, of_one)).collect(),
            files: files_of(&records.files),
            omitted: records.omitted.clone(),
            anatomy: Anatomy::of(chain, records),
        })
    }
}

fn relatives(living: &[Process], ended: &[Zombie]) -> Vec<Relative> {
    let of_living =
        |p: &Process| Relative { pid: p.pid, ppid: p.ppid, command: command_line(&p.command_line), ended: false };
    let of_ended = |z: &Zombie| Relative {
        pid: z.pid,
        ppid: z.ppid,
        command: String::from_utf8_lossy(&z.name).into_owned(),
        ended: true,
    };
    living.iter().map(of_living).chain(ended.iter().map(of_ended)).collect()
}

fn thread(pid: i32, thread: &threads::Thread) -> Thread {
    Thread {
        pid,
        tid: thread.tid,
        name: String::from_utf8_lossy(&thread.name).trim_end_matches(['\0', '\n']).to_owned(),
        rip: format!("{:#x}", thread.registers().rip),
    }
}

fn files_of(files: &Files) -> Vec<OpenFile> {
    let describe = |(number, description): (usize, &Description)| OpenFile {
        fds: files.holders(number).into_iter().map(|(_, fd)| fd).collect(),
        pids: files.holders(number).into_iter().map(|(pid, _)| pid).collect(),
        kind: description.kind(),
        path: description.path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        pos: description.position(),
    };
    files.descriptions.iter().enumerate().map(describe).collect()
}

fn mappings_of(chain: &Chain, mappings: &Mappings) -> Vec<Mapping> {
    let own = Content::of(chain, Spaces::of_process(mappings.pid));
    let describe = |mapping: &memory::Mapping| {
        let pages = mapping.start / PAGE..mapping.end / PAGE;
        let mut sources = Sources::default();
        if mapping.has_own_content() {
            own.count_in(pages.clone(), &mut sources);
        }
        let (kind, path, rest) = match &mapping.backing {
            Backing::Anonymous => ("anonymous", mapping.name.clone().unwrap_or_default(), "zero"),
            Backing::Kernel(name) => ("kernel", name.clone(), "kernel"),
            Backing::Aio(_) => ("aio", String::new(), "record"),
            Backing::File(stamp) => ("file", stamp.path.clone(), "file"),
            Backing::Object(Object { space, kind, .. }) => {
                let first = mapping.offset / PAGE;
                Content::of(chain, *space).count_in(first..first + mapping.len() / PAGE, &mut sources);
                let (kind, path) = object(kind);
                (kind, path, "zero")
            }
        };
        Mapping {
            pid: mappings.pid,
            start: format!("{:#x}", mapping.start),
            end: format!("{:#x}", mapping.end),
            perms: perms(mapping),
            kind,
            path,
            pages: pages.end - pages.start,
            stored_pages: sources.stored_in.values().sum(),
            sources,
            rest,
        }
    };
    mappings.all.iter().map(describe).collect()
}

const PAGE: u64 = crate::sys::PAGE;

/// The runs of pages of a space that have content, ascending.
struct Content<'c> {
    chain: &'c Chain,
    runs: Vec<Resolved>,
}

impl<'c> Content<'c> {
    fn of(chain: &'c Chain, space: u64) -> Self {
        Self { chain, runs: chain.resolve(space).filter(|run| run.source != Source::Absent).collect() }
    }

    /// Adds those of `pages`.
    fn count_in(&self, pages: Range<u64>, sources: &mut Sources) {
        for (part, source) in within(&self.runs, pages) {
            sources.add(self.chain, source, part);
        }
    }
}

/// How many pages of each of the runs are among `pages`.
fn within(runs: &[Resolved], pages: Range<u64>) -> impl Iterator<Item = (u64, Source)> + '_ {
    let end = |run: &Resolved| run.first_page + run.pages;
    let first = runs.partition_point(|run| end(run) <= pages.start);
    let runs = runs[first..].iter().take_while(move |run| run.first_page < pages.end);
    runs.map(move |run| (end(run).min(pages.end) - run.first_page.max(pages.start), run.source))
}

fn object(kind: &ObjectKind) -> (&'static str, String) {
    match kind {
        ObjectKind::SharedAnonymous => ("shared", String::new()),
        ObjectKind::Memfd(name) => ("memfd", name.clone()),
        ObjectKind::Deleted(path) => ("deleted", path.clone()),
        ObjectKind::Written(stamp) => ("shared file", stamp.path.clone()),
        ObjectKind::SystemV(id) => ("system v", format!("number {id}")),
    }
}

fn perms(mapping: &memory::Mapping) -> String {
    let bit = |bit: i32, letter: char| if mapping.prot & bit == 0 { '-' } else { letter };
    let sharing = if mapping.shared { 's' } else { 'p' };
    let huge = if mapping.advice & advice::HUGETLB == 0 { "" } else { " huge" };
    let letters = [bit(libc::PROT_READ, 'r'), bit(libc::PROT_WRITE, 'w'), bit(libc::PROT_EXEC, 'x'), sharing];
    letters.into_iter().collect::<String>() + huge
}

/// `/proc/PID/cmdline` with blanks for its zero bytes.
fn command_line(bytes: &[u8]) -> String {
    let words = bytes.split(|b| *b == 0).map(String::from_utf8_lossy);
    words.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// Nanoseconds since 1970 as RFC 3339.
fn rfc3339(ns: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(ns)).to_string()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_documented_names() {
        let report = Report {
            id: 2,
            parent: Some(1),
            taken_at: 1_700_000_000_123_000_000,
            dirty_pages: 3,
            stored_pages: 2,
            stored_bytes: 9000,
            frozen: Duration::from_micros(1500),
            total: Duration::from_millis(20),
            pid: 42,
            widened: vec!["why".into()],
            omitted: Omitted::default(),
        };
        let json = serde_json::to_value(Checkpoint::from(&report)).unwrap();
        let expected = serde_json::json!({
            "id": 2, "kind": "delta", "parent": 1, "taken_at": "2023-11-14T22:13:20.123Z", "dirty_pages": 3,
            "stored_pages": 2, "stored_bytes": 9000, "frozen_ms": 1.5, "total_ms": 20.0, "pid": 42, "widened": ["why"],
            "compacted_from": null, "left_out": [], "missing": [],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn pages_are_counted_within_a_range() {
        let run = |pages: Range<u64>| Resolved {
            first_page: pages.start,
            pages: pages.end - pages.start,
            source: Source::Zero,
        };
        let runs = [run(2..5), run(7..9)];
        let count = |pages: Range<u64>| within(&runs, pages).map(|(pages, _)| pages).sum::<u64>();
        assert_eq!([count(0..100), count(4..8), count(5..7), count(9..20)], [5, 2, 0, 0]);
    }

    #[test]
    fn a_command_line_is_parted_by_blanks() {
        assert_eq!(command_line(b"sleep\x00100\x00"), "sleep 100");
        assert_eq!(command_line(b""), "");
    }
}
