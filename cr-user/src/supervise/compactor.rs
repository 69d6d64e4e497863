//! Compaction as the engine does it, in slices between its orders: when the chain has become too long, or when somebody asks.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use tokio::sync::oneshot;

use super::journal::{Journal, Trigger};
use super::protocol::{self, CompactionState, Done, Failure, Response};
use crate::checkpoint::{Job, Report};
use crate::compact::{self, Compaction, Conclusion, Options, Pace};
use crate::error::{Error, Result};
use crate::image::PAGE_SIZE;
use crate::policy::{Because, Length};
use crate::store::{Chain, StoreWriter};
use crate::sys::task;

/// Pages between two looks at whether there is an order: 1 MiB.
const SLICE: u64 = 256;
/// So often checkpoints may get ahead of a compaction. Then it catches up with the last one before the next is taken, which waits for as
/// long as copying one delta takes.
const CATCHES: u32 = 8;
/// Class "idle" of `ioprio_set(2)`: the disk is ours when nobody else wants it.
const IDLE: i32 = 3 << 13;

/// When a controller compacts the chain by itself, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Automatic {
    /// As soon as a chain has so many images; 0 for never.
    pub after: u32,
    /// How.
    pub options: Options,
}

impl Automatic {
    /// Never.
    pub const NEVER: Self = Self { after: 0, options: Options { memory_limit: 256 << 20, bandwidth: None } };
}

/// What is compacted, and what is known of the chain on which the next delta builds.
#[derive(Debug)]
pub(super) struct Compactor {
    automatic: Automatic,
    /// None as long as nobody had to know.
    length: Option<Length>,
    running: Option<Running>,
    /// After a failure: not by itself before the chain has so many images.
    not_before: u32,
    /// Bytes of the full image that was published last, until that is told.
    news: Option<u64>,
    /// The last one that has ended, and when.
    last: Option<(Option<u64>, CompactionState, Instant)>,
    journal: Journal,
}

#[derive(Debug)]
struct Running {
    compaction: Compaction,
    trigger: Trigger,
    pace: Pace,
    began: Instant,
    /// When the next slice is in its turn.
    resume: Instant,
    /// How often there were newer checkpoints when all pages had been copied.
    behind: u32,
    /// Those who wait for it.
    replies: Vec<oneshot::Sender<Response>>,
}

impl Compactor {
    /// `dir` is the store's directory.
    pub(super) fn new(automatic: Automatic, dir: &Path) -> Self {
        let journal = Journal::open(dir);
        Self { automatic, length: None, running: None, not_before: 0, news: None, last: None, journal }
    }

    /// How long until there is something to do; none if there is nothing.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.running.as_ref().map(|running| running.resume.saturating_duration_since(Instant::now()))
    }

    /// What is being compacted, or was last.
    pub(super) fn seen(&self) -> Option<protocol::Compaction> {
        let (from, state, since) = match (&self.running, &self.last) {
            (Some(Running { compaction, began, .. }), _) => {
                (Some(compaction.from()), CompactionState::UnderWay { left_pages: compaction.left() }, *began)
            }
            (None, Some((from, state, ended))) => (*from, state.clone(), *ended),
            (None, None) => return None,
        };
        Some(protocol::Compaction { from, state, age_ms: since.elapsed().as_millis() as u64 })
    }

    /// Bytes of the full image that was made since this was last asked.
    pub(super) fn take_news(&mut self) -> Option<u64> {
        self.news.take()
    }

    /// Somebody wants the newest checkpoint compacted, and hears once it is.
    pub(super) fn ask(&mut self, bandwidth: Option<u64>, writer: &StoreWriter, reply: oneshot::Sender<Response>) {
        if let Some(running) = &mut self.running {
            running.pace = Pace::new(bandwidth);
            running.resume = Instant::now();
            running.replies.push(reply);
            return;
        }
        let options = Options { bandwidth, ..self.automatic.options };
        match Compaction::begin(writer, &options) {
            Ok(Some(compaction)) => self.start(compaction, Trigger::Request, bandwidth, vec![reply]),
            Ok(None) => drop(reply.send(answer(compact::nothing_to_do(writer)))),
            Err(error) => self.fail(Trigger::Request, newest(writer), vec![reply], error),
        }
    }

    /// A checkpoint was published: begins to compact if the chain is too long by now.
    pub(super) fn landed(&mut self, report: &Report, writer: &StoreWriter) {
        if self.automatic.after == 0 {
            return;
        }
        match (&mut self.length, report.parent) {
            (length, None) => *length = Some(Length::full(report.stored_pages)),
            (Some(length), Some(_)) => length.add(report.stored_pages),
            (none, Some(_)) => {
                *none = length_of(writer).inspect_err(|e| log::info!("no look at the length of the chain: {e}")).ok();
            }
        }
        if self.running.is_none()
            && let Some(because) = self.because()
            && let Err(error) = self.begin(because, writer)
        {
            self.failed(newest(writer), &error);
        }
    }

    /// A checkpoint failed: a disk that is full needs the room.
    pub(super) fn make_room(&mut self) {
        if let Some(running) = self.running.take() {
            log::info!("the disk is full: gave up a compaction");
            let full = Error::system("compacting", nix::errno::Errno::ENOSPC);
            let from = running.compaction.from();
            drop(running.compaction);
            self.fail(running.trigger, Some(from), running.replies, full);
        }
    }

    /// Does a little, if it is time. What was published becomes what the job's next delta builds on.
    pub(super) fn work(&mut self, writer: &StoreWriter, job: Option<&mut Job>) {
        let Some(mut running) = self.running.take_if(|running| running.resume <= Instant::now()) else { return };
        loop {
            let from = running.compaction.from();
            match at_idle_priority(|| running.compaction.step(SLICE)) {
                Err(error) => {
                    // Whoever hears of it finds nothing left behind.
                    drop(running.compaction);
                    return self.fail(running.trigger, Some(from), running.replies, error);
                }
                // Concluded at once: were it put off, a checkpoint might come first, time and again.
                Ok(_) if running.compaction.left() == 0 => {}
                Ok(_) if running.behind > CATCHES => continue,
                Ok(bytes) => {
                    // The first pass keeps to the bandwidth. What checkpoints have added since is not more than they wrote.
                    let pause = if running.behind == 0 { running.pace.pause(bytes) } else { Duration::ZERO };
                    running.resume = Instant::now() + pause;
                    self.running = Some(running);
                    return;
                }
            }
            match running.compaction.conclude(writer) {
                Ok(Conclusion::Behind(compaction)) => {
                    running = Running { compaction: *compaction, behind: running.behind + 1, ..running };
                    if running.behind <= CATCHES {
                        self.running = Some(running);
                        return;
                    }
                }
                Ok(Conclusion::Overtaken { .. }) => {
                    return answer_all(running.replies, || compact::nothing_to_do(writer));
                }
                Ok(Conclusion::Published { report, from, image, spaces }) => {
                    let (id, images) = (report.id, report.images);
                    log::info!("checkpoint {id} is checkpoint {} compacted ({images} images)", from.id);
                    self.journal.note_compaction(running.trigger, Ok(&report));
                    let (stored_bytes, total_ms) = (report.stored_bytes, report.total_ms);
                    let done = CompactionState::Done { id, stored_bytes, total_ms };
                    self.last = Some((Some(from.id), done, Instant::now()));
                    if job.is_some_and(|job| job.builds_on_instead(from, image, &spaces)) {
                        self.length = Some(Length::full(report.stored_pages));
                        self.news = Some(report.stored_bytes);
                        self.not_before = 0;
                    }
                    return answer_all(running.replies, || Ok(report.clone()));
                }
                Err(error) => return self.fail(running.trigger, Some(from), running.replies, error),
            }
        }
    }

    /// Why the chain is to be compacted now; none: it is not.
    fn because(&self) -> Option<Because> {
        let length = self.length.as_ref().filter(|length| length.images() >= self.not_before)?;
        length.compact_because(self.automatic.after)
    }

    /// Begins by itself, unless a closer look shows that there is no need, or no room.
    fn begin(&mut self, because: Because, writer: &StoreWriter) -> Result<()> {
        let chain = Chain::open(writer.store(), None)?;
        let pages = compact::weight(&chain)?;
        drop(chain);
        if let (Because::Pages { .. }, Some(length)) = (because, &mut self.length) {
            // What a full image would take was a guess: the size of the last one.
            length.learn_full(pages);
            if self.because().is_none() {
                return Ok(());
            }
        }
        // As much again, for checkpoints meanwhile.
        let needed = 2 * pages * PAGE_SIZE as u64;
        let free = statvfs(writer.store().dir()).map(|disk| disk.blocks_available() * disk.fragment_size());
        if free.is_ok_and(|free| free < needed) {
            return Err(Error::system(
                "making room for a full image and the next checkpoints",
                nix::errno::Errno::ENOSPC,
            ));
        }
        log::info!("compacting: {because}");
        if let Some(compaction) = Compaction::begin(writer, &self.automatic.options)? {
            self.start(compaction, Trigger::Chain, self.automatic.options.bandwidth, Vec::new());
        }
        Ok(())
    }

    fn start(
        &mut self,
        compaction: Compaction,
        trigger: Trigger,
        bandwidth: Option<u64>,
        replies: Vec<oneshot::Sender<Response>>,
    ) {
        let (pace, began) = (Pace::new(bandwidth), Instant::now());
        self.running = Some(Running { compaction, trigger, pace, began, resume: began, behind: 0, replies });
    }

    /// `from`: the checkpoint that was to be compacted.
    fn fail(&mut self, trigger: Trigger, from: Option<u64>, replies: Vec<oneshot::Sender<Response>>, error: Error) {
        match trigger {
            Trigger::Chain => self.failed(from, &error),
            _ => self.note_failure(trigger, from, &error),
        }
        let response = answer(Err(error));
        for reply in replies {
            let _ = reply.send(response.clone());
        }
    }

    /// It could not be compacted, which nobody had asked for: says so, and tries again when as many images have come again.
    fn failed(&mut self, from: Option<u64>, error: &Error) {
        self.note_failure(Trigger::Chain, from, error);
        log::warn!("the chain of checkpoints stays as long as it is, for the time being: {error}");
        let images = self.length.as_ref().map_or(0, Length::images);
        self.not_before = images + self.automatic.after;
    }

    fn note_failure(&mut self, trigger: Trigger, from: Option<u64>, error: &Error) {
        let failure = Failure::from(error);
        self.journal.note_compaction(trigger, Err(&failure));
        self.last = Some((from, CompactionState::Failed { error: failure }, Instant::now()));
    }
}

fn answer_all(replies: Vec<oneshot::Sender<Response>>, done: impl Fn() -> Result<compact::Report>) {
    for reply in replies {
        let _ = reply.send(answer(done()));
    }
}

fn answer(done: Result<compact::Report>) -> Response {
    match done {
        Ok(report) => Response::ok(Done::Compacted(report)),
        Err(error) => Response::error(error.exit_code(), error.to_string()),
    }
}

/// What there is to compact.
fn newest(writer: &StoreWriter) -> Option<u64> {
    writer.store().newest_id().ok().flatten()
}

/// The length of the chain of the newest checkpoint.
fn length_of(writer: &StoreWriter) -> Result<Length> {
    let chain = Chain::open(writer.store(), None)?;
    let stored = |image: &crate::image::Image| image.summary().statistics.stored_pages;
    let (root, deltas) = chain.images().split_last().expect("a chain has an image");
    let mut length = Length::full(stored(root));
    deltas.iter().rev().for_each(|delta| length.add(stored(delta)));
    Ok(length)
}

/// Does something with this thread's reads and writes coming after those of everybody else.
fn at_idle_priority<T>(act: impl FnOnce() -> T) -> T {
    // 0 is the calling thread. Where it cannot be set, the bandwidth has to do.
    let before = task::ioprio(0).and_then(|before| task::set_ioprio(0, IDLE).map(|()| before));
    let done = act();
    if let Ok(before) = before
        && let Err(e) = task::set_ioprio(0, before)
    {
        log::info!("cannot set the I/O priority back: {e}");
    }
    done
}
