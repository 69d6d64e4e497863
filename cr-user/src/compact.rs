//! The story of a compaction: one full image of the newest checkpoint, so that a restore reads no chain and old checkpoints can go.
//!
//! [`store::compact`](crate::store::compact) copies pages; here is what it takes to know of the records: which content spaces the job
//! still has, and that open files are stored as what changed since the parent.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::image::{PAGE_SIZE, Parent, RecordKind};
use crate::object::files::stored::{self, Stored};
use crate::object::memory::backing::{Backing, Object};
use crate::object::memory::{self, Mappings};
use crate::object::process::{self, Process};
use crate::object::records;
use crate::object::spaces::Spaces;
use crate::object::{files, ipc};
use crate::store::compact::{self as copying, stored_pages};
use crate::store::{Chain, StoreWriter};

/// How a compaction is gone about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most bytes of memory of our own.
    pub memory_limit: u64,
    /// Most bytes a second that are read, and as many written; none: as many as there can be.
    pub bandwidth: Option<u64>,
}

/// What a compaction did. The names are those of the documented JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The number of the full checkpoint.
    pub id: u64,
    /// The checkpoint that it is the same as; none: that one was full already, and nothing was done.
    pub compacted_from: Option<u64>,
    /// How many images that was made up of.
    pub images: u64,
    /// Pages stored.
    pub stored_pages: u64,
    /// Bytes of its file.
    pub stored_bytes: u64,
    /// Pages that were copied.
    pub copied_pages: u64,
    /// Pages that the file system shares with the older images.
    pub shared_pages: u64,
    /// How long it took, in milliseconds.
    pub total_ms: u64,
}

/// A compaction under way.
#[derive(Debug)]
pub struct Compaction {
    copying: copying::Compaction,
    began: Instant,
}

/// What became of a compaction that had copied all pages.
#[derive(Debug)]
pub enum Conclusion {
    /// It is published, as this image, in place of the one that it is the same as. It has pages of these spaces.
    Published {
        /// What was done.
        report: Report,
        /// The checkpoint that it is the same as.
        from: Parent,
        /// What the next delta names as its parent.
        image: Parent,
        /// The content spaces that it speaks of.
        spaces: BTreeSet<u64>,
    },
    /// There are newer checkpoints, of which pages are still to be copied.
    Behind(Box<Compaction>),
    /// There is a newer checkpoint that is full: there is nothing to compact.
    Overtaken {
        /// Its number.
        by: u64,
    },
}

impl Compaction {
    /// Begins to make a full image of the newest checkpoint; none if that is full already.
    ///
    /// # Errors
    /// When the chain cannot be read, or the file not be made.
    pub fn begin(writer: &StoreWriter, options: &Options) -> Result<Option<Self>> {
        let began = Instant::now();
        let chain = Chain::open(writer.store(), None)?;
        if chain.images().len() == 1 {
            return Ok(None);
        }
        let spaces = spaces(&chain)?;
        let copying = copying::Compaction::begin(writer, chain, spaces, options.memory_limit)?;
        Ok(Some(Self { copying, began }))
    }

    /// The number of the checkpoint that is being compacted.
    pub fn from(&self) -> u64 {
        self.copying.from().id()
    }

    /// How many pages are still to be copied.
    pub fn left(&self) -> u64 {
        self.copying.left()
    }

    /// Copies up to so many pages, and says how many bytes that were; 0 once all are copied.
    ///
    /// # Errors
    /// When a page is damaged, or cannot be read or written.
    pub fn step(&mut self, pages: u64) -> Result<u64> {
        Ok(self.copying.step(pages)? * PAGE_SIZE as u64)
    }

    /// Publishes the image, all pages of which are copied; or finds out what else there is to be copied.
    ///
    /// # Errors
    /// When the image cannot be completed or published: it is gone then.
    pub fn conclude(mut self, writer: &StoreWriter) -> Result<Conclusion> {
        let from = self.copying.from().as_parent();
        if writer.store().newest_id()? != Some(from.id) {
            let chain = Chain::open(writer.store(), None)?;
            if chain.images().len() == 1 {
                return Ok(Conclusion::Overtaken { by: chain.newest().id() });
            }
            let spaces = spaces(&chain)?;
            self.copying.catch_up(writer, chain, spaces)?;
            return Ok(Conclusion::Behind(Box::new(self)));
        }
        let (figures, chain) = (self.copying.figures(), self.copying.chain());
        let (images, spaces) = (chain.images().len() as u64, self.copying.spaces().clone());
        let replaced = whole_records(chain)?;
        let finished = self.copying.finish(writer, replaced)?;
        let report = Report {
            id: finished.id,
            compacted_from: Some(from.id),
            images,
            stored_pages: finished.statistics.stored_pages,
            stored_bytes: finished.file_bytes,
            copied_pages: figures.copied_pages,
            shared_pages: figures.shared_pages,
            total_ms: self.began.elapsed().as_millis() as u64,
        };
        let image = writer.publish_compacted(finished)?;
        Ok(Conclusion::Published { report, from, image, spaces })
    }
}

/// Compacts the newest checkpoint of a store, from beginning to end.
///
/// # Errors
/// When the chain is damaged, or the image cannot be written. What was there before is as it was.
pub fn compact(writer: &StoreWriter, options: &Options) -> Result<Report> {
    /// Pages between two looks at the clock: 1 MiB.
    const SLICE: u64 = 256;
    let Some(mut compaction) = Compaction::begin(writer, options)? else { return nothing_to_do(writer) };
    let mut pace = Pace::new(options.bandwidth);
    loop {
        match compaction.step(SLICE)? {
            0 => match compaction.conclude(writer)? {
                Conclusion::Published { report, .. } => return Ok(report),
                Conclusion::Behind(behind) => compaction = *behind,
                Conclusion::Overtaken { .. } => return nothing_to_do(writer),
            },
            bytes => std::thread::sleep(pace.pause(bytes)),
        }
    }
}

/// What to say where the newest checkpoint is full.
///
/// # Errors
/// When it cannot be read.
pub fn nothing_to_do(writer: &StoreWriter) -> Result<Report> {
    let chain = Chain::open(writer.store(), None)?;
    let summary = chain.newest().summary();
    Ok(Report {
        id: summary.id,
        compacted_from: None,
        images: 1,
        stored_pages: summary.statistics.stored_pages,
        stored_bytes: summary.file_bytes,
        copied_pages: 0,
        shared_pages: 0,
        total_ms: 0,
    })
}

/// Keeps a bandwidth.
#[derive(Debug)]
pub struct Pace {
    bandwidth: Option<u64>,
    /// When all until now may have been done.
    until: Instant,
}

impl Pace {
    /// Begins now, with so many bytes a second.
    pub fn new(bandwidth: Option<u64>) -> Self {
        Self { bandwidth, until: Instant::now() }
    }

    /// How long to wait after so many bytes.
    pub fn pause(&mut self, bytes: u64) -> Duration {
        /// But for this much, as sleeping is inexact.
        const BURST: Duration = Duration::from_millis(20);
        let Some(bandwidth) = self.bandwidth else { return Duration::ZERO };
        let now = Instant::now();
        // Time in which nothing was done must not be made up for by doing more now.
        self.until = self.until.max(now.checked_sub(BURST).unwrap_or(now));
        self.until += Duration::from_secs_f64(bytes as f64 / bandwidth.max(1) as f64);
        self.until.saturating_duration_since(now)
    }
}

/// How many pages a full image of a chain would store.
///
/// # Errors
/// When its records are not valid.
pub fn weight(chain: &Chain) -> Result<u64> {
    Ok(stored_pages(chain, &spaces(chain)?))
}

/// The content spaces that the newest checkpoint of a chain still needs: those of its processes, and of the objects that they map or
/// have open, or that are the job's. What ended since is not taken along.
fn spaces(chain: &Chain) -> Result<BTreeSet<u64>> {
    let image = chain.newest();
    let processes: Vec<Process> = records::get(image, process::KIND)?;
    let mappings: Vec<Mappings> = records::get(image, memory::KIND)?;
    let objects: ipc::Ipc = records::get(image, ipc::KIND)?;
    let files = stored::read(chain.images())?;
    let mapped = mappings.iter().flat_map(|of_one| &of_one.all).filter_map(|mapping| match &mapping.backing {
        Backing::Object(Object { space, .. }) => Some(*space),
        _ => None,
    });
    let pids = processes.iter().map(|p| p.pid).chain(mappings.iter().map(|of_one| of_one.pid));
    Ok(pids
        .map(Spaces::of_process)
        .chain(mapped)
        .chain(files.descriptions.iter().filter_map(files::Description::space))
        .chain(objects.segments.iter().map(|segment| segment.space))
        .collect())
}

/// The records that only make sense together with those of older images, made whole.
fn whole_records(chain: &Chain) -> Result<Vec<(RecordKind, Vec<u8>)>> {
    let whole = Stored { files: stored::read(chain.images())?, inherited: Vec::new() };
    Ok(vec![(files::KIND, records::archive(files::KIND, &whole)?)])
}
