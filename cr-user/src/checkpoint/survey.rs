//! Asking what there is and what was written, and protecting it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::checkpoint::arena::Piece;
use crate::checkpoint::collect::State;
use crate::checkpoint::leave_out::{LeaveOut, Plan};
use crate::checkpoint::member::Member;
use crate::checkpoint::parallel::on_all_cpus;
use crate::checkpoint::sink::{Prior, Sink};
use crate::checkpoint::watch::Watch;
use crate::checkpoint::{Job, gone, refuse};
use crate::error::{Error, Result};
use crate::fault;
use crate::image::Space;
use crate::object::memory::backing::{Files, Source};
use crate::object::memory::mapping::{self, Mapping, Mappings};
use crate::object::memory::read::Memory;
use crate::object::omitted;
use crate::object::spaces::Spaces;
use crate::procfs::{self, Vma};
use crate::ranges::RangeSet;
use crate::sys::{PAGE, vm};
use crate::track::oracle::{self, Written};

/// What was found in a running job.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pages taken: written since they were last protected, and protected again now.
    pub taken: RangeSet,
    /// Pages of the process's own.
    pub own: RangeSet,
}

/// Takes what was written from every private mapping, putting those under tracking that are not yet.
///
/// # Errors
/// When the job is gone.
pub fn take_running(member: &mut Member, vmas: &[Vma]) -> Result<Seen> {
    let pagemap = oracle::pagemap_of(member.pid)?;
    let (mut taken, mut own) = (Vec::new(), Vec::new());
    for vma in vmas.iter().filter(|v| !v.shared && !v.name.starts_with("[v")) {
        let anonymous = vma.inode == 0 || vma.name.starts_with("/anon_hugepage");
        let Ok(backing) = oracle::backing(&pagemap, vma.start, vma.end, anonymous) else { continue };
        let worthwhile = anonymous || vma.prot & libc::PROT_WRITE != 0 || !backing.own.is_empty();
        if let Some(pages) = take(member, vma.start, vma.end, &backing.own, worthwhile)? {
            taken.extend(pages);
            own.extend(backing.own.iter());
        }
    }
    let taken = RangeSet::from_unsorted(taken);
    member.debt = member.debt.union(&taken);
    Ok(Seen { taken, own: RangeSet::from_unsorted(own) })
}

/// About how many pages the frozen window will have to copy.
///
/// # Errors
/// When the job is gone.
pub fn estimate(job: &Job) -> Result<u64> {
    let mut count = 0;
    for member in job.members.iter().filter(|m| m.has_own_memory()) {
        match estimate_one(member) {
            // It is not there in the frozen window either.
            Err(_) if member.has_ended() && member.pid != job.pid() => {}
            other => count += other?,
        }
    }
    Ok(count)
}

fn estimate_one(member: &Member) -> Result<u64> {
    let vmas = procfs::maps(member.pid).map_err(|_| gone(member.pid, "the pre-copy"))?;
    let pagemap = oracle::pagemap_of(member.pid)?;
    let mut count = member.late.count();
    for vma in vmas.iter().filter(|v| !v.shared && !v.name.starts_with("[v") && v.prot & libc::PROT_WRITE != 0) {
        let Ok(backing) = oracle::backing(&pagemap, vma.start, vma.end, vma.inode == 0) else { continue };
        let Some(oracle) = &member.oracle else { continue };
        for range in backing.own.iter() {
            count += match oracle.written(range.start * PAGE, range.end * PAGE, false)? {
                Written::Pages(pages) => pages.iter().map(|r| r.end - r.start).sum(),
                Written::Untracked => range.end - range.start,
            };
        }
    }
    Ok(count)
}

/// How many of these pages were written since they were taken.
pub fn rewritten(member: &Member, pages: &RangeSet) -> u64 {
    let count = |range: Range<u64>| match member.oracle.as_ref()?.written(range.start * PAGE, range.end * PAGE, false) {
        Ok(Written::Pages(found)) => Some(found.iter().map(|r| r.end - r.start).sum::<u64>()),
        Ok(Written::Untracked) | Err(_) => None,
    };
    pages.iter().filter_map(count).sum()
}

/// Takes what was written in one mapping, around its own pages; hot pages are only looked at. `None`: it is not tracked and
/// cannot be, or is not worth it.
fn take(member: &Member, start: u64, end: u64, own: &RangeSet, worthwhile: bool) -> Result<Option<Vec<Range<u64>>>> {
    let Some(oracle) = &member.oracle else { return Ok(None) };
    let written = |part: &Range<u64>, hot: bool| oracle.written(part.start * PAGE, part.end * PAGE, !hot);
    let mut pages = Vec::new();
    // A question that protects would fill the page tables of everything it is asked about, untouched reservations too.
    // Where there is no table yet, what comes to be is unprotected, and so counts as written; as it does in a mapping that is put
    // under tracking only when there is something in it.
    for window in windows(own, start / PAGE..end / PAGE).iter() {
        for (part, hot) in member.heat.split(window) {
            let mut found = written(&part, hot)?;
            if found == Written::Untracked && worthwhile && oracle.register(start, end).is_ok() {
                found = written(&part, hot)?;
            }
            match found {
                Written::Pages(found) => pages.extend(found),
                Written::Untracked => return Ok(None),
            }
        }
    }
    Ok(Some(pages))
}

/// Ranges widened to what one page table covers.
fn windows(pages: &RangeSet, within: Range<u64>) -> RangeSet {
    const TABLE: u64 = 512;
    let wide: RangeSet = pages.iter().map(|r| r.start / TABLE * TABLE..r.end.next_multiple_of(TABLE)).collect();
    wide.intersection(&RangeSet::from(within))
}

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
        for (pid, vmas) in state.take_vmas() {
            let (mappings, found, refused) = mapping::describe(pid, &vmas, &mut job.spaces, &mut files);
            described.push((pid, mappings));
            sources.extend(found);
            refusals.extend(refused);
        }
        refuse(refusals)?;
        let plan = Plan::of(leave_out, &described);
        let Job { members, content, watch, doubt, notes, .. } = job;
        watch.iter_mut().for_each(Watch::gather_written);
        let mut described: HashMap<i32, Vec<Mapping>> = described.into_iter().collect();
        let mut tasks = Vec::new();
        for member in members.iter_mut() {
            let Some(mappings) = described.remove(&member.pid) else { continue };
            let seen = watch.as_mut().map(|w| w.written(member.pid)).unwrap_or_default();
            tasks.push((member, mappings, seen));
        }
        let none = RangeSet::new();
        let processes = on_all_cpus(tasks, |(member, mappings, seen)| {
            let known = content.get(&member.space()).unwrap_or(&none);
            Surveyed::take(member, mappings, known, &plan.pages_of(member.space()), &seen, *doubt, sink)
        })?;
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
    /// `known`: pages that have content according to the chain. `unwanted`: pages that are left out; they lose their content in
    /// the chain, and so are stored whole once they are wanted again. `seen`: pages that a program saw being written.
    fn take(
        member: &mut Member,
        mut mappings: Vec<Mapping>,
        known: &RangeSet,
        unwanted: &RangeSet,
        seen: &RangeSet,
        doubt: bool,
        sink: &Sink,
    ) -> Result<Self> {
        let pagemap = oracle::pagemap_of(member.pid)?;
        let (mut own, mut taken, mut untracked) = (Vec::new(), Vec::new(), Vec::new());
        let mut untracked_mappings = 0;
        for mapping in mappings.iter_mut().filter(|m| m.has_own_content()) {
            let backing = oracle::backing(&pagemap, mapping.start, mapping.end, mapping.is_anonymous())
                .map_err(|e| Error::system(format!("PAGEMAP_SCAN of pid {}", member.pid), e))?;
            let worthwhile = mapping.is_anonymous() || mapping.prot & libc::PROT_WRITE != 0 || !backing.own.is_empty();
            mapping.guards = backing.guards.iter().map(|r| (r.start * PAGE, (r.end - r.start) * PAGE)).collect();
            if !worthwhile {
                // Nothing of the process's own is here, or will be.
                continue;
            }
            match take(member, mapping.start, mapping.end, &backing.own, worthwhile)? {
                Some(pages) => taken.extend(pages),
                None if !backing.own.is_empty() => {
                    untracked_mappings += 1;
                    untracked.extend(backing.own.iter());
                }
                None => {}
            }
            own.extend(backing.own.iter());
        }
        let (own, taken) = (RangeSet::from_unsorted(own), RangeSet::from_unsorted(taken));
        let left_out = own.intersection(unwanted);
        let own = own.difference(&left_out);
        let untracked = RangeSet::from_unsorted(untracked).intersection(&own);
        member.debt = member.debt.union(&taken);

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
        })
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
