//! What is written all the time, guessed before anything is protected for the first time: of a job that writes to all of its memory
//! between two looks, each page would fault once for nothing, and each huge page be split.

use std::thread::sleep;
use std::time::Duration;

use crate::checkpoint::member::Member;
use crate::procfs;
use crate::ranges::RangeSet;
use crate::track::{Glimpse, oracle};

/// Between the two looks. Whatever is written less often than this is worth protecting.
const BETWEEN: Duration = Duration::from_millis(250);
/// Fewer windows than this are not worth waiting for: protecting them costs less than a thousandth of a second.
const WORTHWHILE: usize = 8;

/// Looks twice at the memory of those processes of which nothing is known yet, while they run.
pub fn guess(members: &mut [Member]) {
    let mut looks: Vec<(&mut Member, Glimpse)> = Vec::new();
    for member in members.iter_mut().filter(|m| m.oracle.is_some() && m.has_own_memory() && !m.heat.is_informed()) {
        // One that has ended meanwhile has no memory.
        if let Some(present) = present(member) {
            let glimpse = Glimpse::of(member.pid, &present);
            looks.push((member, glimpse));
        }
    }
    if looks.iter().map(|(_, glimpse)| glimpse.windows()).sum::<usize>() < WORTHWHILE {
        return;
    }
    sleep(BETWEEN);
    for (member, glimpse) in looks {
        let windows = glimpse.changed();
        log::debug!(
            "pid {}: {} of {} MiB seem to be written all the time",
            member.pid,
            windows.len() * 2,
            glimpse.windows() * 2
        );
        member.heat.suspect(windows);
    }
}

/// Pages of its own that it may write.
fn present(member: &Member) -> Option<RangeSet> {
    let (vmas, pagemap) = (procfs::maps(member.pid).ok()?, oracle::pagemap_of(member.pid).ok()?);
    let writable = vmas.iter().filter(|v| !v.shared && v.inode == 0 && v.prot & libc::PROT_WRITE != 0);
    let own = writable.filter_map(|v| Some(oracle::backing(&pagemap, v.start, v.end, true).ok()?.own));
    Some(own.fold(RangeSet::new(), |all, own| all.union(&own)))
}
