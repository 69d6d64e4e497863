//! Looking at the page tables of a mapping: which pages there are, and which were written. What was written is protected again
//! in the same step.

use std::fs::File;
use std::ops::Range;

use nix::errno::Errno;

use crate::checkpoint::gone;
use crate::checkpoint::history::History;
use crate::checkpoint::member::Member;
use crate::checkpoint::narrow::{Noted, Question, Scope, Settled, tables};
use crate::checkpoint::parallel::on_all_cpus;
use crate::checkpoint::place::Place;
use crate::error::{Error, Result};
use crate::procfs::{self, Vma};
use crate::ranges::RangeSet;
use crate::sys::PAGE;
use crate::track::oracle::{self, Backing, Written};

/// What page tables say.
#[derive(Debug, Default)]
pub struct Found {
    /// Pages of the process's own.
    pub own: Vec<Range<u64>>,
    /// Guard pages.
    pub guards: Vec<Range<u64>>,
    /// Pages taken: written since they were last protected, and protected again now.
    pub taken: Vec<Range<u64>>,
    /// The mapping is not under tracking: anything may have been written.
    pub untracked: bool,
    /// Pages that were put under tracking just now: the mapping's and what had to go with it.
    pub tracked: Vec<Range<u64>>,
    /// Why not all was found, as when the process is gone. What was taken is owed all the same.
    pub failed: Option<Error>,
}

/// A question about pages of a mapping.
#[derive(Debug)]
pub struct Ask {
    /// Which mapping, for whoever asks.
    pub index: usize,
    /// The mapping.
    pub place: Place,
    /// The pages.
    pub pages: Range<u64>,
    /// Which of them are the process's own, if that is known.
    pub own: Option<RangeSet>,
}

/// Most pages of one question: several threads share the work.
const PIECE: u64 = 32768;

impl Ask {
    /// Asks about pages of which nothing is known.
    pub fn anew(index: usize, place: Place, pages: Range<u64>) -> impl Iterator<Item = Self> {
        let cuts = (pages.start / PIECE..pages.end.div_ceil(PIECE)).map(|n| n * PIECE..(n + 1) * PIECE);
        let pieces = cuts.map(move |cut| cut.start.max(pages.start)..cut.end.min(pages.end));
        pieces.map(move |pages| Self { index, place, pages, own: None })
    }
}

/// Asks, on all CPUs where it is much. By question.
pub fn take_all(member: &Member, pagemap: &File, asks: Vec<Ask>) -> Vec<(Ask, Found)> {
    /// A question about fewer pages takes less time than a thread takes to start.
    const WORTHWHILE: u64 = 2 * PIECE;
    let answer = |ask: Ask| {
        let found = take(member, pagemap, &ask);
        (ask, found)
    };
    let much = asks.iter().map(|ask| ask.pages.end - ask.pages.start).sum::<u64>() > WORTHWHILE;
    if much { on_all_cpus(asks, answer) } else { asks.into_iter().map(answer).collect() }
}

/// Looks at pages of a mapping, and takes what was written; hot pages are only looked at. The mapping is put under tracking if it
/// is not yet, and there is something in it, or will be.
pub fn take(member: &Member, pagemap: &File, ask: &Ask) -> Found {
    let place = &ask.place;
    let backing = match &ask.own {
        Some(own) => Ok(Backing { own: own.clone(), guards: RangeSet::new() }),
        None => backing(member, pagemap, place, ask.pages.clone()),
    };
    let backing = match backing {
        Ok(backing) => backing,
        Err(e) => return Found { failed: Some(e), ..Found::default() },
    };
    let mut found = Found { guards: backing.guards.iter().collect(), ..Found::default() };
    if place.anonymous || place.writable || !backing.own.is_empty() {
        written(member, place, &windows(&backing.own, ask.pages.clone()), &mut found);
        found.own = backing.own.iter().collect();
    }
    found
}

/// What there is of these pages of a mapping.
///
/// # Errors
/// When the process is gone.
pub fn backing(member: &Member, pagemap: &File, place: &Place, pages: Range<u64>) -> Result<Backing> {
    let failed = |e: Errno| Error::system(format!("PAGEMAP_SCAN of pid {}", member.pid), e);
    oracle::backing(pagemap, pages.start * PAGE, pages.end * PAGE, place.anonymous).map_err(failed)
}

/// The process's own pages of a mapping that are marked as written now; none where it is not tracked. Nothing is protected.
///
/// # Errors
/// When the process is gone.
pub fn written_now(member: &Member, pagemap: &File, place: &Place) -> Result<Vec<Range<u64>>> {
    let Some(oracle) = &member.oracle else { return Ok(Vec::new()) };
    let own = backing(member, pagemap, place, place.pages())?.own;
    let mut pages = Vec::new();
    for part in windows(&own, place.pages()).iter() {
        match oracle.written(part.start * PAGE, part.end * PAGE, false)? {
            Written::Pages(found) => pages.extend(found.into_iter().flat_map(|r| own.within(r).collect::<Vec<_>>())),
            Written::Untracked => return Ok(Vec::new()),
        }
    }
    Ok(pages)
}

/// Finds what was written in these pages of a mapping.
fn written(member: &Member, place: &Place, windows: &RangeSet, found: &mut Found) {
    let Some(oracle) = &member.oracle else {
        found.untracked = true;
        return;
    };
    let hot = member.heat.hot().within(place.pages()).collect::<RangeSet>();
    let (cold, hot) = (windows.difference(&hot), windows.intersection(&hot));
    for (part, protect) in cold.iter().map(|part| (part, true)).chain(hot.iter().map(|part| (part, false))) {
        let ask = || oracle.written(part.start * PAGE, part.end * PAGE, protect);
        let mut answer = ask();
        if protect && !matches!(answer, Ok(Written::Pages(_))) {
            // Which pages were protected before it failed is not known.
            found.taken.push(part.clone());
        }
        if matches!(answer, Ok(Written::Untracked))
            && let Some(pages) = place.track(oracle)
        {
            found.tracked.push(pages);
            answer = ask();
        }
        match answer {
            Ok(Written::Pages(pages)) => found.taken.extend(pages),
            Ok(Written::Untracked) => {
                found.untracked = true;
                return;
            }
            Err(e) => {
                found.failed = Some(e);
                return;
            }
        }
    }
}

/// Ranges widened to what one page table covers. A question that protects would fill the page tables of everything it is asked
/// about, untouched reservations too. Where there is no table yet, what comes to be is unprotected, and so counts as written; as it
/// does in a mapping that is put under tracking only when there is something in it.
fn windows(pages: &RangeSet, within: Range<u64>) -> RangeSet {
    tables(pages).within(within).collect()
}

/// What was found in a running process.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pages taken.
    pub taken: RangeSet,
    /// Pages of the process's own.
    pub own: RangeSet,
}

/// Takes what was written from every private mapping of a process that runs, putting those under tracking that are not yet. With
/// what was `noted`, looks only where something was: the frozen window finds the rest.
///
/// # Errors
/// When the job is gone.
pub fn take_running(member: &mut Member, vmas: &[Vma], noted: Option<Noted>) -> Result<Seen> {
    let hint = member.hint(noted.as_ref());
    let mut before = std::mem::take(&mut member.settled);
    let looked = look_over(member, vmas, hint.as_ref(), &mut before);
    member.settled = before;
    let looked = looked?;
    if let (None, Some(noted)) = (hint, noted.filter(|n| member.noted_from == Some(n.space))) {
        // Everything is protected now, and what is written from here on is noted.
        member.settled = looked.leaves(&noted, &member.settled, member.heat.hot());
    }
    Ok(Seen { taken: looked.taken, own: looked.own })
}

/// The same after a moment at which the process stood still: what was noted until then is not asked about again.
///
/// # Errors
/// When the job is gone.
pub fn take_since(member: &mut Member, vmas: &[Vma], history: History) -> Result<Seen> {
    let History { noted, scope, mut before } = history;
    let question = match scope {
        Scope::Only(question) => Some(question),
        Scope::Everything(_) => None,
    };
    let looked = look_over(member, vmas, question.as_ref(), &mut before)?;
    if let Some(noted) = noted {
        member.noted_from = Some(noted.space);
        member.settled = looked.leaves(&noted, &before, member.heat.hot());
    }
    Ok(Seen { taken: looked.taken, own: looked.own })
}

/// What a look over a running process has found, and made of it.
struct Looked {
    taken: RangeSet,
    own: RangeSet,
    guards: RangeSet,
    /// Mappings in which every page is protected now, or was before.
    whole: RangeSet,
}

impl Looked {
    fn leaves(&self, noted: &Noted, before: &Settled, hot: &RangeSet) -> Settled {
        let mut settled = Settled::new(noted, before, hot);
        settled.mappings = self.whole.clone();
        (settled.own, settled.guards) = (self.own.clone(), self.guards.clone());
        settled
    }
}

/// Takes what was written. Mappings that were put under tracking are not those that were looked at `before`.
fn look_over(member: &mut Member, vmas: &[Vma], hint: Option<&Question>, before: &mut Settled) -> Result<Looked> {
    /// A mapping that is put under tracking while it is looked at is looked at again: it may have taken the place of another. One that is
    /// replaced all the time is left to the frozen window.
    const TRIES: usize = 3;
    let pagemap = oracle::pagemap_of(member.pid)?;
    let (mut taken, mut own, mut guards, mut whole) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for place in (0..vmas.len()).filter_map(|index| Place::in_motion(vmas, index)) {
        for _ in 0..TRIES {
            let seen = look_at(member, &pagemap, &place, hint, before);
            taken.extend(seen.taken);
            if !seen.tracked.is_empty() {
                // What has come into a hole meanwhile is tracked, and not known.
                seen.tracked.into_iter().for_each(|pages| before.forget(pages));
                continue;
            }
            own.extend(seen.own);
            guards.extend(seen.guards);
            if seen.all {
                whole.push(place.pages());
            }
            break;
        }
    }
    let taken = RangeSet::from_unsorted(taken);
    member.debt = member.debt.union(&taken);
    let [own, guards, whole] = [own, guards, whole].map(RangeSet::from_unsorted);
    Ok(Looked { taken, own, guards, whole })
}

/// What there is of one mapping, and what was taken of it.
struct Sight {
    taken: Vec<Range<u64>>,
    own: Vec<Range<u64>>,
    guards: Vec<Range<u64>>,
    /// It was looked at to the end.
    all: bool,
    /// What was put under tracking meanwhile.
    tracked: Vec<Range<u64>>,
}

fn look_at(member: &Member, pagemap: &File, place: &Place, hint: Option<&Question>, before: &Settled) -> Sight {
    let mut sight = Sight { taken: Vec::new(), own: Vec::new(), guards: Vec::new(), all: true, tracked: Vec::new() };
    let (parts, unasked) = parts(before, place, hint);
    for gap in unasked {
        sight.own.extend(before.own.within(gap.clone()));
        sight.guards.extend(before.guards.within(gap));
    }
    for ask in parts.into_iter().flat_map(|pages| Ask::anew(0, *place, pages)) {
        // A mapping that is gone meanwhile is not there in the frozen window either; of what is left of it, all is owed.
        let found = take(member, pagemap, &ask);
        sight.taken.extend(found.taken);
        sight.tracked.extend(found.tracked);
        if found.untracked || found.failed.is_some() {
            sight.all = false;
            continue;
        }
        sight.own.extend(found.own);
        sight.guards.extend(found.guards);
    }
    sight
}

/// The parts of a mapping that are worth a look while the process runs, and those that are not.
fn parts(before: &Settled, place: &Place, hint: Option<&Question>) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
    match hint.filter(|_| before.mappings.covers(&place.pages())) {
        Some(Question { asked, .. }) => (asked.within(place.pages()).collect(), asked.gaps(place.pages())),
        None => (vec![place.pages()], Vec::new()),
    }
}

/// About how many pages of a running process the frozen window will have to copy.
///
/// # Errors
/// When the job is gone.
pub fn estimate(member: &Member, noted: Option<&Noted>) -> Result<u64> {
    let vmas = procfs::maps(member.pid).map_err(|_| gone(member.pid, "the pre-copy"))?;
    let pagemap = oracle::pagemap_of(member.pid)?;
    let hint = member.hint(noted);
    let mut count = member.late.count();
    let Some(oracle) = &member.oracle else { return Ok(count) };
    for place in vmas.iter().filter_map(Place::of_vma).filter(|p| p.writable) {
        for part in parts(&member.settled, &place, hint.as_ref()).0 {
            let backing = oracle::backing(&pagemap, part.start * PAGE, part.end * PAGE, place.anonymous);
            let Ok(backing) = backing else { continue };
            for range in backing.own.iter() {
                count += match oracle.written(range.start * PAGE, range.end * PAGE, false)? {
                    Written::Pages(pages) => pages.iter().map(|r| r.end - r.start).sum(),
                    Written::Untracked => range.end - range.start,
                };
            }
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
