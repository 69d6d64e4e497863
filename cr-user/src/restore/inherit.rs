//! What a process that was made as a copy of its parent must still be given: the pages that differ.

use crate::ranges::RangeSet;
use crate::store::{Chain, Resolved, Source};

/// Pages to be put into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The first one's number.
    pub first_page: u64,
    /// How many.
    pub pages: u64,
    /// Where the first page's content is.
    pub source: Source,
    /// Something else may be there already, from its parent.
    pub over: bool,
}

/// The pages of `space` that a copy of the process whose pages are `parent` lacks. In `common` the copy has its parent's
/// pages; elsewhere it has none.
pub fn patches(chain: &Chain, space: u64, parent: u64, common: &RangeSet) -> Vec<Patch> {
    let own: Vec<Resolved> = chain.resolve(space).collect();
    if common.is_empty() {
        return own.iter().map(|r| patch(r.first_page..r.first_page + r.pages, r.source, false)).collect();
    }
    let theirs: Vec<Resolved> = chain.resolve(parent).collect();
    let mut patches = compare(&own, &theirs, common);
    let pages = own.iter().map(|r| r.first_page..r.first_page + r.pages);
    for range in RangeSet::from_unsorted(pages.collect()).difference(common).iter() {
        let mut at = range.start;
        while at < range.end {
            let (source, end) = look(&own, at);
            patches.push(patch(at..end.min(range.end), source, false));
            at = end;
        }
    }
    patches.sort_unstable_by_key(|p| p.first_page);
    patches
}

fn patch(pages: std::ops::Range<u64>, source: Source, over: bool) -> Patch {
    Patch { first_page: pages.start, pages: pages.end - pages.start, source, over }
}

/// Where both have pages: those that differ.
fn compare(own: &[Resolved], theirs: &[Resolved], common: &RangeSet) -> Vec<Patch> {
    let mut patches = Vec::new();
    for range in common.iter() {
        let mut at = range.start;
        while at < range.end {
            let ((mine, my_end), (other, other_end)) = (look(own, at), look(theirs, at));
            let end = my_end.min(other_end).min(range.end);
            if mine != other {
                patches.push(patch(at..end, mine, other != Source::Absent));
            }
            at = end;
        }
    }
    patches
}

/// What a page holds, and where that ends.
fn look(runs: &[Resolved], page: u64) -> (Source, u64) {
    let at = runs.partition_point(|r| r.first_page + r.pages <= page);
    match runs.get(at) {
        Some(run) if run.first_page <= page => (run.source.advanced(page - run.first_page), run.first_page + run.pages),
        Some(next) => (Source::Absent, next.first_page),
        None => (Source::Absent, u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_page: u64, pages: u64, source: Source) -> Resolved {
        Resolved { first_page, pages, source }
    }

    fn stored(offset: u64) -> Source {
        Source::Stored { image: 0, offset: offset * 4096 }
    }

    #[test]
    fn only_what_differs_is_patched() {
        let theirs = [run(10, 10, stored(1)), run(30, 2, Source::Zero)];
        // 12 to 14 rewritten, 18 and 19 dropped, 31 written.
        let own = [
            run(10, 2, stored(1)),
            run(12, 2, stored(40)),
            run(14, 4, stored(5)),
            run(30, 1, Source::Zero),
            run(31, 1, stored(50)),
        ];
        let found = compare(&own, &theirs, &RangeSet::from_unsorted(vec![8..20, 28..40]));
        let wanted =
            [patch(12..14, stored(40), true), patch(18..20, Source::Absent, true), patch(31..32, stored(50), true)];
        assert_eq!(found, wanted);
    }
}
