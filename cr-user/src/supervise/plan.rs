//! When the next checkpoint is due, and of which kind it will be: the [policy](crate::policy), with a clock and with what was
//! measured.

use std::time::Duration;

use tokio::time::Instant;

use super::engine::{Landed, Origin};
use crate::checkpoint::{Activity, Report};
use crate::image::Image;
use crate::policy::{Auto, Cadence, Reasons, Sample, Sizes};
use crate::store::{Chain, Source, Store};
use crate::sys::first_write;

/// What is planned for a job.
#[derive(Debug)]
pub(super) struct Plan {
    cadence: Option<Cadence>,
    auto: Option<Auto>,
    sizes: Sizes,
    /// What the first write to a protected page costs, once it was measured.
    first_write: Option<Duration>,
    next: Option<Instant>,
    /// When the checkpoint under way was ordered.
    began: Instant,
    /// How many write faults, and how many pages with content, there were at the end of the last checkpoint.
    faults: Option<u64>,
    content_pages: u64,
}

impl Plan {
    /// Begins to plan for a job that the engine holds by now.
    pub(super) fn begin(cadence: Option<Cadence>, store: &Store, origin: Origin) -> Self {
        let auto = match cadence {
            Some(Cadence::Auto { mtbf }) => Some(Auto::new(mtbf)),
            Some(Cadence::Every(_)) | None => None,
        };
        let sizes = cadence.and_then(|_| sizes_of(store, origin)).unwrap_or_default();
        let began = Instant::now();
        let mut plan =
            Self { cadence, auto, sizes, first_write: None, next: None, began, faults: None, content_pages: 0 };
        plan.next = plan.interval().map(|interval| began + interval);
        plan
    }

    /// The time from the start of one checkpoint to the start of the next, as it is now.
    pub(super) fn interval(&self) -> Option<Duration> {
        match (self.cadence?, &self.auto) {
            (Cadence::Every(interval), _) => Some(interval),
            (Cadence::Auto { .. }, auto) => auto.as_ref().map(Auto::interval),
        }
    }

    /// Why the interval is what it is, if it is ours to choose.
    pub(super) fn reasons(&self) -> Option<Reasons> {
        self.auto.as_ref().map(Auto::reasons)
    }

    /// When the next checkpoint is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next
    }

    /// It is due now. Should this one come to nothing, or not be taken because one is under way, the next is in its turn after an
    /// interval.
    pub(super) fn is_due(&mut self) {
        self.next = self.interval().map(|interval| Instant::now() + interval);
    }

    /// Why the next one that is taken because it is due shall be a full one; none: a delta where one is possible.
    pub(super) fn full_because(&self) -> Option<String> {
        self.sizes.full_because(self.content_pages)
    }

    /// A checkpoint begins.
    pub(super) fn begins(&mut self) {
        self.began = Instant::now();
    }

    /// The checkpoint that began last is durable: learns from it, and counts the interval from its start on.
    pub(super) fn learn(&mut self, Landed { report, activity, compacted }: &Landed) {
        let faults = self.faults_on_protected(report, activity);
        if let Some(bytes) = compacted {
            // Of what the job had at the checkpoint before.
            self.sizes.took_full(*bytes, self.content_pages);
        }
        self.faults = activity.write_faults;
        self.content_pages = activity.content_pages;
        if report.parent.is_none() {
            self.sizes.took_full(report.stored_bytes, self.content_pages);
        } else {
            self.sizes.took_delta(report.stored_bytes);
        }
        if let Some(auto) = &mut self.auto {
            // Not earlier: by now there are the programs that look at each fault.
            let each = *self.first_write.get_or_insert_with(measure_first_write);
            let faults = each * u32::try_from(faults).unwrap_or(u32::MAX);
            auto.learn(Sample { frozen: report.frozen, faults, durable: report.total });
            self.next = Some(self.began + auto.interval());
        }
    }

    /// How many faults there were since the last checkpoint because of it: an estimate. Each page that was written since raised one,
    /// unless it is hot; but not more than there were faults at all (a page of a file that was never protected, say, raises none).
    fn faults_on_protected(&self, report: &Report, activity: &Activity) -> u64 {
        // Nothing was protected before the first one of a job.
        if report.parent.is_none() && self.content_pages == 0 {
            return 0;
        }
        let written = report.dirty_pages.saturating_sub(activity.hot_pages);
        match (self.faults, activity.write_faults) {
            // With an address space, its count goes.
            (Some(before), Some(now)) if now >= before => written.min(now - before),
            _ => written,
        }
    }
}

fn measure_first_write() -> Duration {
    first_write::cost().unwrap_or_else(|e| {
        log::info!("the cost of page faults is taken to be nothing, as pages cannot be tracked here: {e}");
        Duration::ZERO
    })
}

/// The sizes of the chain that the job goes on with, as far as they can be read: without them, the next checkpoints tell.
fn sizes_of(store: &Store, origin: Origin) -> Option<Sizes> {
    let id = match origin {
        Origin::Child(_) => return None,
        Origin::Process(_) => None,
        Origin::Chain { id, .. } => id,
    };
    let chain = Chain::open(store, id).ok()?;
    let (mut stored, mut content) = (0, 0);
    for run in chain.space_ids().into_iter().flat_map(|space| chain.resolve(space)) {
        content += if run.source == Source::Absent { 0 } else { run.pages };
        stored += if matches!(run.source, Source::Stored { .. }) { run.pages } else { 0 };
    }
    let bytes = |image: &Image| image.summary().file_bytes;
    let deltas = chain.images().iter().filter(|image| image.parent().is_some()).rev().map(bytes);
    Some(Sizes::of_chain(deltas, stored, content))
}
