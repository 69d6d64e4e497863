//! Copying while the job runs: what is copied now and not written again need not be copied while it stands still.

use std::ops::Range;
use std::sync::mpsc;
use std::time::Duration;

use memmap2::MmapMut;

use crate::checkpoint::arena::{Arena, groups};
use crate::checkpoint::audit;
use crate::checkpoint::history::History;
use crate::checkpoint::leave_out::LeaveOut;
use crate::checkpoint::look;
use crate::checkpoint::member::Member;
use crate::checkpoint::prior::Prior;
use crate::checkpoint::sink::{Sink, Summed};
use crate::checkpoint::watch::Watch;
use crate::checkpoint::{Job, gone};
use crate::error::Result;
use crate::fault;
use crate::image::page_digests;
use crate::object::memory::aio;
use crate::object::memory::read::Memory;
use crate::procfs;
use crate::ranges::RangeSet;
use crate::sys::{PAGE, vm};

/// Most rounds. Each takes what was written during the one before.
const MAX_ROUNDS: usize = 6;
/// A rest of this many pages is copied as fast in the frozen window as it takes to open that.
const SMALL: u64 = 256;

/// After this many chunks it is looked at whether copying pays at all.
const SAMPLE: usize = 4;

/// Takes and copies what was written, again and again, until what is left is little or does not shrink: one process after
/// the other. Says for how long the job stood still in between.
///
/// # Errors
/// When the image cannot be written, or the job is gone. What was taken stays in the job's debt.
pub fn precopy(job: &mut Job, leave_out: &LeaveOut, sink: &mut Sink, prior: Option<&Prior>) -> Result<Duration> {
    job.watch.iter_mut().for_each(Watch::gather_ahead);
    let pays = |m: &mut Member| m.oracle.is_some() && m.has_own_memory() && m.heat.precopy_pays();
    let pids: Vec<i32> = job.members.iter_mut().filter_map(|m| pays(m).then_some(m.pid)).collect();
    rounds(job, pids.iter().map(|pid| (*pid, Begin::WithAll)), leave_out, sink, prior)?;
    let (histories, stood_still) = stand_still(job, &pids)?;
    rounds(
        job,
        histories.into_iter().map(|(pid, history)| (pid, Begin::Since(Box::new(history)))),
        leave_out,
        sink,
        prior,
    )?;
    Ok(stood_still)
}

/// With what the rounds begin.
enum Begin {
    /// With all that was written since the last checkpoint.
    WithAll,
    /// With what was written until a moment at which the process stood still, and was not taken yet.
    Since(Box<History>),
}

/// Where much was noted since the last frozen window, the next one would ask about all that again, though most of it was taken in the
/// rounds: a fault that is noted may be under way still. So the job stands still for a moment, in which nothing is done but to take
/// the notes; what they say is asked about while it runs.
fn stand_still(job: &mut Job, pids: &[i32]) -> Result<(Vec<(i32, History)>, Duration)> {
    /// About so many page-table entries are looked at in the time that the moment takes.
    const MUCH: u64 = 1 << 17;
    /// To stop more processes than these takes longer than to ask.
    const FEW: usize = 8;
    let is_taken = |m: &Member| pids.contains(&m.pid);
    let Some(watch) = job.watch.as_mut().filter(|_| job.members.len() <= FEW) else {
        return Ok((Vec::new(), Duration::ZERO));
    };
    watch.gather_ahead();
    let questions = job.members.iter().filter(|m| is_taken(m)).filter_map(|m| m.hint(watch.noted(m.pid).as_ref()));
    let asked: u64 = questions.map(|question| question.asked.count()).sum();
    // An audit looks at whether it is right, however little there is.
    if asked < MUCH && !(audit::is_strict() && asked > 0) {
        return Ok((Vec::new(), Duration::ZERO));
    }
    let (frozen, since) = job.freeze()?;
    fault::point("precopy.still")?;
    let Job { members, watch, .. } = job;
    watch.iter_mut().for_each(Watch::gather_written);
    let taken = members.iter_mut().filter(|m| is_taken(m)).map(|m| (m.pid, History::take(m, watch.as_mut()))).collect();
    frozen.thaw()?;
    Ok((taken, since.elapsed()))
}

fn rounds(
    job: &mut Job,
    begins: impl Iterator<Item = (i32, Begin)>,
    leave_out: &LeaveOut,
    sink: &mut Sink,
    prior: Option<&Prior>,
) -> Result<()> {
    let Job { members, arena, content, doubt, watch, .. } = job;
    for (pid, begin) in begins {
        let Some(member) = members.iter_mut().find(|m| m.pid == pid) else { continue };
        let known = content.get(&member.space()).cloned().unwrap_or_default();
        match precopy_one(member, begin, watch.as_mut(), arena, &known, leave_out, sink, prior.filter(|_| *doubt)) {
            // It is not there in the frozen window either.
            Err(_) if member.is_ending() => {}
            other => other?,
        }
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "each is of another owner, and none belongs to another")]
fn precopy_one(
    member: &mut Member,
    begin: Begin,
    mut watch: Option<&mut Watch>,
    arena: &mut Arena,
    known: &RangeSet,
    leave_out: &LeaveOut,
    sink: &mut Sink,
    prior: Option<&Prior>,
) -> Result<()> {
    let mut before = u64::MAX;
    let (is_first, mut history) = match begin {
        Begin::WithAll => (true, None),
        Begin::Since(history) => (false, Some(history)),
    };
    for round in 0..MAX_ROUNDS {
        // What tells of advice takes longer.
        let maps = if leave_out.dont_dump { procfs::smaps } else { procfs::maps };
        let vmas = maps(member.pid).map_err(|_| gone(member.pid, "the pre-copy"))?;
        if vmas.iter().any(aio::is_ring) {
            // What an operation writes that is under way now does not show in the page tables: it began before.
            return Ok(());
        }
        if let Some(watch) = watch.as_mut().filter(|_| round > 0) {
            watch.gather_ahead();
        }
        let seen = match history.take() {
            Some(history) => look::take_since(member, &vmas, *history)?,
            None => look::take_running(member, &vmas, watch.as_ref().and_then(|w| w.noted(member.pid)))?,
        };
        let mut wanted = seen.taken.intersection(&seen.own);
        if round == 0 && is_first {
            wanted = member.debt.union(&seen.own.difference(known)).intersection(&seen.own);
        }
        // What is written all the time would have to be copied again.
        wanted = wanted.difference(&leave_out.pages_of(member.pid, &vmas)).difference(member.heat.hot());
        let count = wanted.count();
        if (round > 0 || !is_first) && (count <= SMALL || count > before / 10 * 7) {
            // Taken, hence in debt: the frozen window copies it.
            member.late = member.late.union(&wanted);
            return Ok(());
        }
        before = count;
        let chunks = arena.pair()?;
        let rewritten = |pages: &RangeSet| look::rewritten(member, pages);
        let (missed, chunks) = copy(&member.memory, member.space(), &wanted, chunks, sink, prior, rewritten);
        arena.give_back(chunks);
        member.late = member.late.difference(&wanted).union(&missed?);
        if count <= SMALL {
            return Ok(());
        }
    }
    Ok(())
}

/// Copies pages of a running job. One thread reads, another writes. Returns the pages that could not be read: gone
/// meanwhile, or to be tried again in the frozen window.
fn copy(
    memory: &Memory,
    space: u64,
    wanted: &RangeSet,
    chunks: Vec<MmapMut>,
    sink: &mut Sink,
    prior: Option<&Prior>,
    rewritten: impl Fn(&RangeSet) -> u64,
) -> (Result<RangeSet>, Vec<MmapMut>) {
    let (full_in, full_out) = mpsc::channel::<Filled>();
    let (empty_in, empty_out) = mpsc::channel();
    for chunk in chunks {
        empty_in.send(chunk).expect("the receiver is below");
    }
    let result = std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> Result<()> {
            for filled in full_out {
                filled.absorb_into(sink, space, prior)?;
                // The reader may have stopped.
                let _ = empty_in.send(filled.chunk);
            }
            Ok(())
        });
        let (mut missed, mut copied) = (RangeSet::new(), RangeSet::new());
        for (count, ranges) in groups(wanted.iter(), vm::MAX_PIECES).into_iter().enumerate() {
            if count == SAMPLE && rewritten(&copied) * 2 > copied.count() {
                // The job writes faster than we copy: the frozen window will copy it all.
                missed = missed.union(&wanted.difference(&copied));
                break;
            }
            copied = copied.union(&ranges.iter().cloned().collect());
            // No chunk comes back when the writer has failed.
            let Ok(mut chunk) = empty_out.recv() else { break };
            let len = ranges.iter().map(|r| (r.end - r.start) * PAGE).sum::<u64>() as usize;
            let unread = memory.read(&ranges, &mut chunk[..len]);
            // Here, because the writer has more to do than the reader.
            let sums = page_digests(&chunk[..len]);
            missed = missed.union(&unread);
            if full_in.send(Filled { ranges, unread, sums, chunk }).is_err() {
                break;
            }
        }
        drop(full_in);
        writer.join().expect("the writing thread does not panic").map(|()| missed)
    });
    (result, empty_out.try_iter().collect())
}

/// A chunk of copied pages on its way from the reader to the writer.
struct Filled {
    ranges: Vec<Range<u64>>,
    /// Pages of these that could not be read: their bytes mean nothing.
    unread: RangeSet,
    sums: Vec<u128>,
    chunk: MmapMut,
}

impl Filled {
    fn absorb_into(&self, sink: &mut Sink, space: u64, prior: Option<&Prior>) -> Result<()> {
        let mut at = 0;
        for range in &self.ranges {
            for part in RangeSet::from(range.clone()).difference(&self.unread).iter() {
                let from = at + (part.start - range.start) as usize;
                let to = from + (part.end - part.start) as usize;
                let bytes = &self.chunk[from * PAGE as usize..to * PAGE as usize];
                sink.absorb(space, &[part], Summed { bytes, sums: &self.sums[from..to] }, prior)?;
            }
            at += (range.end - range.start) as usize;
        }
        Ok(())
    }
}
