//! Asking what there is and what was written, and protecting it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::checkpoint::arena::Piece;
use crate::checkpoint::audit;
use crate::checkpoint::collect::State;
use crate::checkpoint::history::History;
use crate::checkpoint::leave_out::{LeaveOut, Plan};
use crate::checkpoint::look::{self, Ask};
use crate::checkpoint::member::Member;
use crate::checkpoint::narrow::{Noted, Scope, Settled, Why};
use crate::checkpoint::parallel::on_all_cpus;
use crate::checkpoint::place::Place;
use crate::checkpoint::prior::Prior;
use crate::checkpoint::sink::Sink;
use crate::checkpoint::watch::Watch;
use crate::checkpoint::{Job, refuse};
use crate::error::{Error, Result};
use crate::fault;
use crate::image::Space;
use crate::object::memory::backing::{Files, Source};
use crate::object::memory::mapping::{self, Mapping, Mappings};
use crate::object::memory::read::Memory;
use crate::object::omitted;
use crate::object::spaces::Spaces;
use crate::procfs::Vma;
use crate::ranges::RangeSet;
use crate::sys::{PAGE, vm};
use crate::track::oracle;

/// What a stopped job's memory is, and what of it must be copied.
#[derive(Debug)]
pub struct Survey {
    /// By process that has an address space of its own, in the job's order.
    processes: Vec<Surveyed>,
    /// Stored objects: by space, the file and the pages that the image must hold.
    objects: BTreeMap<u64, (Arc<File>, RangeSet)>,
    object_pages: u64,
    /// What is left out.
    omitted: Vec<omitted::Memory>,
    /// Why more is read than the oracle said.
    pub widened: Vec<String>,
}

/// The address space of one process.
#[derive(Debug)]
struct Surveyed {
    pid: i32,
    /// Every mapping.
    mappings: Vec<Mapping>,
    /// Private pages with content, without those that are left out.
    own: RangeSet,
    /// Private pages with content that are left out.
    left_out: RangeSet,
    /// Of its own ones, those that were or may have been written since the last checkpoint.
    dirty: RangeSet,
    /// Of the dirty ones, those that must be copied now.
    copy: RangeSet,
    /// Pages that may be the same as in the older images.
    doubtful: RangeSet,
    /// Mappings that are not tracked, and their pages.
    untracked: (usize, u64),
    /// Pages that a program saw written and the page tables did not show.
    missed: u64,
    /// Why the page tables were asked about everything, if that was not to be expected.
    asked_all: Option<Why>,
}

impl Surveyed {
    fn space(&self) -> u64 {
        Spaces::of_process(self.pid)
    }
}

impl Survey {
    /// Looks at a stopped job, and protects its pages again.
    ///
    /// # Errors
    /// When the job holds what could not be restored, or is gone.
    pub fn take(job: &mut Job, state: &mut State, leave_out: &LeaveOut, sink: &Sink) -> Result<Self> {
        let mut sources = state.take_file_contents();
        let mut described = Vec::new();
        let mut refusals = Vec::new();
        let mut files = Files::default();
        let mut declared = HashMap::new();
        for (pid, vmas) in state.take_vmas() {
            let own = Declared::of(pid, &vmas, job.declared.remove(&pid));
            let (mappings, found, refused) = mapping::describe(pid, &vmas, &own.plain, &mut job.spaces, &mut files);
            declared.insert(pid, own);
            described.push((pid, mappings));
            sources.extend(found);
            refusals.extend(refused);
        }
        refuse(refusals)?;
        let plan = Plan::of(leave_out, &described);
        // Those of processes that have ended go.
        job.declared = declared;
        let Job { members, content, watch, doubt, notes, declared, .. } = job;
        watch.iter_mut().for_each(Watch::gather_written);
        let mut described: HashMap<i32, Vec<Mapping>> = described.into_iter().collect();
        let (none, mut tasks) = (RangeSet::new(), Vec::new());
        for member in members.iter_mut() {
            let Some(mappings) = described.remove(&member.pid) else { continue };
            let watched = declared.get(&member.pid).map_or(&none, |declared| &declared.watched);
            let history = History::take(member, watch.as_mut());
            tasks.push((member, mappings, watched, history));
        }
        let processes = on_all_cpus(tasks, |(member, mappings, watched, history)| {
            let known = content.get(&member.space()).unwrap_or(&none);
            Surveyed::take(member, mappings, watched, known, &plan.pages_of(member.space()), history, *doubt, sink)
        });
        // Of each what it owes is known, whichever failed.
        let processes = processes.into_iter().collect::<Result<Vec<_>>>()?;
        // What several tries have found is said once.
        let mut said = HashSet::new();
        notes.retain(|note| said.insert(note.clone()));
        let mut survey = Self {
            processes,
            objects: BTreeMap::new(),
            object_pages: 0,
            omitted: Vec::new(),
            widened: std::mem::take(notes),
        };
        survey.say_what_widened();
        survey.add_objects(sources, plan)?;
        Ok(survey)
    }

    fn say_what_widened(&mut self) {
        // The page tables are the oracle. A write that a program saw and they do not show would be a bug, of ours or of the
        // kernel's: it is copied all the same, and said.
        let missed: u64 = self.processes.iter().map(|p| p.missed).sum();
        if missed > 0 {
            self.widened.push(format!("{missed} pages that a program saw written were not marked in the page tables"));
        }
        let asked_all: HashSet<Why> = self.processes.iter().filter_map(|p| p.asked_all).collect();
        self.widened
            .extend(asked_all.into_iter().map(|why| format!("the page tables were asked about everything: {why}")));
        let mappings: usize = self.processes.iter().map(|p| p.untracked.0).sum();
        if mappings > 0 {
            let pages: u64 = self.processes.iter().map(|p| p.untracked.1).sum();
            self.widened.push(format!("{mappings} mappings are not tracked: {pages} pages read"));
        }
    }

    /// Finds the parts of stored objects that are there. Objects can be written through any mapping and by `write(2)`: they
    /// are read whole and compared.
    fn add_objects(&mut self, sources: Vec<Source>, plan: Plan) -> Result<()> {
        let mut left_out: HashMap<u64, RangeSet> =
            self.processes.iter_mut().map(|p| (p.space(), std::mem::take(&mut p.left_out))).collect();
        for source in sources {
            let data = data_pages(&source.file, source.range)
                .map_err(|e| Error::system("reading a shared memory object", e))?;
            let entry = self.objects.entry(source.space).or_insert((Arc::new(source.file), RangeSet::new()));
            let skipped = data.intersection(&plan.pages_of(source.space));
            entry.1 = entry.1.union(&data.difference(&skipped));
            let of_space = left_out.entry(source.space).or_default();
            *of_space = of_space.union(&skipped);
        }
        self.omitted = plan.found(&left_out);
        self.object_pages = self.objects.values().map(|(_, pages)| pages.count()).sum();
        if self.object_pages > 0 {
            let pages = self.object_pages;
            self.widened
                .push(format!("{} shared objects are compared by content: {pages} pages read", self.objects.len()));
        }
        Ok(())
    }

    /// Copies what must not change any more.
    ///
    /// # Errors
    /// When a page cannot be read, or (only beyond the memory limit) the image cannot be written.
    pub fn copy(&self, job: &mut Job, sink: &mut Sink, prior: Option<&Prior>) -> Result<()> {
        fault::point("collect.memory")?;
        let Job { members, arena, .. } = job;
        let memories: HashMap<u64, (i32, Memory)> =
            members.iter().map(|m| (m.space(), (m.pid, m.memory.clone()))).collect();
        let (mut plain, mut compared) = (Vec::new(), Vec::new());
        for process in &self.processes {
            plain.push((process.space(), process.copy.difference(&process.doubtful)));
            compared.push((process.space(), process.copy.intersection(&process.doubtful)));
        }
        let mut pieces = Piece::cut(plain.iter().map(|(space, pages)| (*space, pages)), vm::MAX_PIECES, false);
        pieces.extend(Piece::cut(compared.iter().map(|(space, pages)| (*space, pages)), vm::MAX_PIECES, true));
        arena.fill(pieces, sink, prior, move |part, buf| {
            let (pid, memory) = &memories[&part.space];
            let unread = memory.read(&part.ranges, buf);
            unread.iter().next().map_or(Ok(()), |r| Err(unreadable(*pid, r.start)))
        })?;
        let objects = self.objects.iter().map(|(space, (_, pages))| (*space, pages));
        let pieces = Piece::cut(objects, usize::MAX, true);
        let files: HashMap<u64, Arc<File>> =
            self.objects.iter().map(|(space, (file, _))| (*space, Arc::clone(file))).collect();
        arena.fill(pieces, sink, prior, move |part, buf| read_file(&files[&part.space], &part.ranges, buf))
    }

    /// Pages that were, or may have been, written.
    pub fn dirty_pages(&self) -> u64 {
        self.processes.iter().map(|p| p.dirty.count()).sum::<u64>() + self.object_pages
    }

    /// Pages of a process that were, or may have been, written.
    pub fn dirty_of(&self, pid: i32) -> Option<&RangeSet> {
        self.processes.iter().find(|p| p.pid == pid).map(|p| &p.dirty)
    }

    /// The record of every process's mappings.
    pub fn take_mappings(&mut self) -> Vec<Mappings> {
        let take = |p: &mut Surveyed| Mappings { pid: p.pid, all: std::mem::take(&mut p.mappings) };
        self.processes.iter_mut().map(take).collect()
    }

    /// What is left out.
    pub fn take_omitted(&mut self) -> Vec<omitted::Memory> {
        std::mem::take(&mut self.omitted)
    }

    /// What the image says of the job's memory and of the stored objects.
    pub fn spaces(&self, job: &Job, sink: &Sink) -> Vec<Space> {
        let own = self.processes.iter().map(|p| (p.space(), &p.own));
        let objects = self.objects.iter().map(|(space, (_, pages))| (*space, pages));
        own.chain(objects)
            .map(|(space, content)| {
                let known = job.content.get(&space).cloned().unwrap_or_default();
                sink.space(space, content, &known.difference(content))
            })
            .collect()
    }

    /// What has content, by space.
    pub fn into_content(self) -> impl Iterator<Item = (u64, RangeSet)> {
        let objects = self.objects.into_iter().map(|(space, (_, pages))| (space, pages));
        self.processes.into_iter().map(|p| (p.space(), p.own)).chain(objects)
    }
}

impl Surveyed {
    /// `watched`: mappings that are under tracking. `known`: pages that have content according to the chain. `unwanted`: pages that
    /// are left out; they lose their content in the chain, and so are stored whole once they are wanted again.
    #[expect(clippy::too_many_arguments, reason = "each is of another owner, and none belongs to another")]
    fn take(
        member: &mut Member,
        mut mappings: Vec<Mapping>,
        watched: &RangeSet,
        known: &RangeSet,
        unwanted: &RangeSet,
        history: History,
        doubt: bool,
        sink: &Sink,
    ) -> Result<Self> {
        let pagemap = oracle::pagemap_of(member.pid)?;
        let History { noted, scope, before } = history;
        log::debug!("pid {}: page tables are asked about {scope}", member.pid);
        member.wide = scope.why_everything();
        let (mut own, mut taken, mut untracked, mut settled) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut asks, mut guards) = (Vec::new(), vec![Vec::new(); mappings.len()]);
        for (index, mapping) in mappings.iter().enumerate().filter(|(_, m)| m.has_own_content()) {
            let place = Place::of(mapping);
            let question = match &scope {
                Scope::Only(question) if before.covers(mapping, watched) => question,
                Scope::Only(_) | Scope::Everything(_) => {
                    asks.extend(Ask::anew(index, place, place.pages()));
                    continue;
                }
            };
            for part in question.asked.within(place.pages()) {
                for pages in question.renewed.within(part.clone()) {
                    asks.extend(Ask::anew(index, place, pages));
                }
                for pages in question.renewed.gaps(part) {
                    guards[index].extend(before.guards.within(pages.clone()));
                    let own = Some(before.own.within(pages.clone()).collect());
                    asks.push(Ask { index, place, pages, own });
                }
            }
            for pages in question.asked.gaps(place.pages()) {
                guards[index].extend(before.guards.within(pages.clone()));
                own.extend(before.own.within(pages));
            }
        }
        let mut strays: HashMap<usize, Vec<Range<u64>>> = HashMap::new();
        let mut failed = None;
        for (ask, mut found) in look::take_all(member, &pagemap, asks) {
            failed = failed.or(found.failed);
            guards[ask.index].append(&mut found.guards);
            if found.untracked {
                strays.entry(ask.index).or_default().extend(found.own.iter().cloned());
            }
            taken.append(&mut found.taken);
            own.append(&mut found.own);
        }
        // Before anything can fail: what was taken is owed.
        let taken = RangeSet::from_unsorted(taken);
        member.debt = member.debt.union(&taken);
        failed.map_or(Ok(()), Err)?;
        let untracked_mappings = strays.values().filter(|pages| !pages.is_empty()).count();
        for (index, (mapping, guards)) in mappings.iter_mut().zip(guards).enumerate() {
            mapping.guards =
                RangeSet::from_unsorted(guards).iter().map(|r| (r.start * PAGE, (r.end - r.start) * PAGE)).collect();
            match strays.remove(&index) {
                None if mapping.has_own_content() => settled.push(Place::of(mapping).pages()),
                None => {}
                Some(mut pages) => untracked.append(&mut pages),
            }
        }
        let own = RangeSet::from_unsorted(own);
        if matches!(scope, Scope::Only(_)) && audit::is_strict() {
            audit::compare(member, &pagemap, &mappings, &own)?;
        }
        let seen = noted.as_ref().map(Noted::written).unwrap_or_default();
        if let Some(noted) = noted {
            member.settled = Settled::new(&noted, &before, member.heat.hot());
            member.settled.mappings = RangeSet::from_unsorted(settled);
            let guards = mappings.iter().flat_map(|m| &m.guards);
            member.settled.guards = guards.map(|(at, len)| at / PAGE..(at + len) / PAGE).collect();
            member.settled.own = own.clone();
        }
        let left_out = own.intersection(unwanted);
        let own = own.difference(&left_out);
        let untracked = RangeSet::from_unsorted(untracked).intersection(&own);

        let mut dirty = member.debt.union(&untracked).union(&own.difference(known)).intersection(&own);
        let missed = seen.intersection(&own).difference(&dirty);
        dirty = dirty.union(&missed);
        // Copied already, and neither written again nor of unknown history.
        let held = sink.held(member.space());
        let copied = held.difference(&taken).difference(&untracked).difference(&member.late);
        member.heat.judge_precopy(held.intersection(&taken).count(), held.count());
        let doubtful = if doubt { own.clone() } else { untracked.union(member.heat.hot()) };
        Ok(Self {
            pid: member.pid,
            mappings,
            copy: dirty.difference(&copied),
            own,
            left_out,
            dirty,
            doubtful,
            untracked: (untracked_mappings, untracked.count()),
            missed: missed.count(),
            asked_all: match scope {
                Scope::Everything(why) if !why.is_usual() => Some(why),
                Scope::Everything(_) | Scope::Only(_) => None,
            },
        })
    }
}

/// What the mappings of a process say of themselves, from one frozen window to the next.
#[derive(Debug)]
pub struct Declared {
    /// Of these mappings.
    vmas: Arc<Vec<Vma>>,
    /// The records of those that nothing stands behind.
    plain: Vec<Option<Mapping>>,
    /// Pages of those that are under tracking.
    watched: RangeSet,
}

impl Declared {
    /// Looks at them, if they are not the `last` ones.
    fn of(pid: i32, vmas: &Arc<Vec<Vma>>, last: Option<Self>) -> Self {
        if let Some(last) = last.filter(|last| Arc::ptr_eq(&last.vmas, vmas)) {
            return last;
        }
        let watched = vmas.iter().filter(|v| v.has("uw")).map(|v| v.start / PAGE..v.end / PAGE).collect();
        Self { vmas: Arc::clone(vmas), plain: vmas.iter().map(|vma| mapping::plain(pid, vma)).collect(), watched }
    }
}

/// A page that could not be read in the frozen window.
fn unreadable(pid: i32, page: u64) -> Error {
    Error::system(format!("reading the memory of pid {pid} at {:#x}", page * PAGE), Errno::EFAULT)
}

/// Pages of the file that are not holes, within the bytes of `range`.
fn data_pages(file: &File, range: Range<u64>) -> nix::Result<RangeSet> {
    let mut found = Vec::new();
    let mut at = range.start as i64;
    while (at as u64) < range.end {
        let data = match lseek(file, at, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e),
        };
        let hole = lseek(file, data as i64, Whence::SeekHole)? as u64;
        found.push(data.max(range.start) / PAGE..hole.min(range.end).div_ceil(PAGE));
        at = hole as i64;
    }
    Ok(RangeSet::from_unsorted(found))
}

fn read_file(file: &File, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<()> {
    let mut at = 0;
    for range in ranges {
        let end = at + ((range.end - range.start) * PAGE) as usize;
        let mut offset = range.start * PAGE;
        while at < end {
            let n = file
                .read_at(&mut buf[at..end], offset)
                .map_err(|e| Error::system("reading a shared memory object", e))?;
            if n == 0 {
                // The last page of a file is zero beyond the file's end.
                buf[at..end].fill(0);
                break;
            }
            at += n;
            offset += n as u64;
        }
        at = end;
    }
    Ok(())
}
