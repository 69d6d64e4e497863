//! Work of the frozen window on several CPUs: the job, which stands still, uses none.

use crate::error::Result;

/// Does something with each, in order, on as many threads as there are CPUs.
///
/// # Errors
/// The first that one of them has.
pub fn on_all_cpus<T: Send, R: Send>(mut all: Vec<T>, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    /// A thread takes longer to start than a small process to look at.
    const WORTHWHILE: usize = 8;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cpus.min(all.len() / WORTHWHILE).max(1);
    let share = all.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut others = Vec::new();
        while all.len() > share {
            let part = all.split_off(all.len() - share);
            let work = &work;
            others.push(scope.spawn(move || part.into_iter().map(work).collect::<Result<Vec<R>>>()));
        }
        let mut done = all.into_iter().map(&work).collect::<Result<Vec<R>>>();
        for other in others.into_iter().rev() {
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done = done.and_then(|mut done| {
                done.extend(other?);
                Ok(done)
            });
        }
        done
    })
}
