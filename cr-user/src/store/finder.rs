//! Pages of one space that are asked for in no order.

use super::{Resolve, Resolved, Source};

/// All runs of a space as a chain has them, in memory: each question takes one binary search, however many images there are.
///
/// Takes 48 bytes a run, and the time of [`Resolve`] to make. For all pages in order take that, for a few
/// [`Chain::lookup`](super::Chain::lookup).
#[derive(Debug)]
pub struct Finder {
    /// The first page of each run, ascending: apart, because a search reads nothing else.
    firsts: Vec<u64>,
    runs: Vec<Resolved>,
}

impl Finder {
    pub(super) fn new(resolve: Resolve<'_>) -> Self {
        let runs: Vec<Resolved> = resolve.collect();
        Self { firsts: runs.iter().map(|run| run.first_page).collect(), runs }
    }

    /// Where the contents of a page are.
    pub fn find(&self, page: u64) -> Source {
        let after = self.firsts.partition_point(|first| *first <= page);
        let Some(run) = self.runs[..after].last() else { return Source::Absent };
        let within = page - run.first_page;
        if within < run.pages { run.source.advanced(within) } else { Source::Absent }
    }
}
