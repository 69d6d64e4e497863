//! Work of the frozen window on several CPUs: the job, which stands still, uses none. And work of the time after it, which is to
//! take little from the job.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::sys::task;

/// Does something with each, in order, on as many threads as there are CPUs.
pub fn on_all_cpus<T: Send, R: Send>(mut all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
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
            others.push(scope.spawn(move || part.into_iter().map(work).collect::<Vec<R>>()));
        }
        let mut done: Vec<R> = all.into_iter().map(&work).collect();
        for other in others.into_iter().rev() {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    })
}

/// Does something on a thread of the lowest ordinary priority: where the job leaves a CPU idle it goes as fast as ever, and where not
/// it gets the sixtieth part of one, so that it is never held up for ever. The calling thread waits.
pub fn quietly<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    const LOWEST: i32 = 19;
    std::thread::scope(|scope| {
        let quiet = scope.spawn(|| {
            // On a thread of its own, since without privilege there is no way back up. It works as well without.
            let _ = task::set_own_nice(LOWEST);
            work()
        });
        quiet.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

type Task = Box<dyn FnOnce() + Send>;

/// Threads that wait for work, because making one takes as long as copying a few hundred pages.
pub struct Crew {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    tasks: Mutex<Tasks>,
    changed: Condvar,
}

#[derive(Default)]
struct Tasks {
    waiting: VecDeque<Task>,
    ended: bool,
}

impl Queue {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread of the crew.
    fn serve(&self) {
        loop {
            let mut tasks = self.tasks();
            while tasks.waiting.is_empty() && !tasks.ended {
                tasks = self.changed.wait(tasks).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(task) = tasks.waiting.pop_front() else { return };
            drop(tasks);
            task();
        }
    }
}

impl Crew {
    /// A crew of nobody: all work is done by whoever has it.
    pub fn new() -> Self {
        Self { queue: Arc::default(), threads: Vec::new() }
    }

    /// Sees that there are so many threads beside the calling one, or nearly, if the kernel makes no more.
    pub fn grow(&mut self, helpers: usize) {
        while self.threads.len() < helpers {
            let queue = Arc::clone(&self.queue);
            match std::thread::Builder::new().name("cr-copy".to_owned()).spawn(move || queue.serve()) {
                Ok(thread) => self.threads.push(thread),
                Err(_) => return,
            }
        }
    }

    /// Does something with each, the calling thread too, and returns what came of it in order.
    pub fn each<T, R>(&self, all: Vec<T>, work: impl Fn(T) -> R + Send + Sync + 'static) -> Vec<R>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        if all.len() < 2 || self.threads.is_empty() {
            return all.into_iter().map(work).collect();
        }
        let (count, work) = (all.len(), Arc::new(work));
        let (done, results) = mpsc::channel();
        self.queue.tasks().waiting.extend(all.into_iter().enumerate().map(|(n, one)| {
            let (work, done) = (Arc::clone(&work), done.clone());
            // Nobody waits for it any more only when the calling thread panics.
            Box::new(move || drop(done.send((n, work(one))))) as Task
        }));
        drop(done);
        self.queue.changed.notify_all();
        loop {
            let task = self.queue.tasks().waiting.pop_front();
            let Some(task) = task else { break };
            task();
        }
        let mut results: Vec<_> = results.iter().collect();
        assert_eq!(results.len(), count, "no thread of the crew panics");
        results.sort_unstable_by_key(|(n, _)| *n);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.queue.tasks().ended = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Whatever it died of was told when its work was missed.
            let _ = thread.join();
        }
    }
}

impl Default for Crew {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crew_keeps_the_order_and_does_all() {
        let mut crew = Crew::new();
        for helpers in [0, 1, 3] {
            crew.grow(helpers);
            for count in [0, 1, 2, 100] {
                let squares = crew.each((0..count).collect(), |n: u64| n * n);
                assert_eq!(squares, (0..count).map(|n| n * n).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn quiet_work_has_the_lowest_priority_and_ours_stays() {
        let nice =
            || std::fs::read_to_string("/proc/thread-self/stat").unwrap().rsplit(") ").next().unwrap().to_owned();
        let field = |stat: String| stat.split(' ').nth(16).unwrap().to_owned();
        let before = field(nice());
        assert_eq!(field(quietly(nice)), "19");
        assert_eq!(field(nice()), before);
    }
}
