//! Where an upload waits while a checkpoint is taken: the job, which stands still for a part of that, comes first.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After so long it is passed all the same: servers end connections on which nothing happens.
const LONGEST: Duration = Duration::from_secs(5);

/// Shared by those who hold it shut and those who wait before it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Since when it is shut; none: it is open.
    shut: Mutex<Option<Instant>>,
    opened: Condvar,
}

/// Keeps a gate shut until it is dropped.
#[derive(Debug)]
pub struct Shut<'g>(&'g Shared);

impl Gate {
    /// Shuts it. There is one who does, once at a time.
    pub fn shut(&self) -> Shut<'_> {
        *self.0.since() = Some(Instant::now());
        Shut(&self.0)
    }

    /// Waits until it is open, or has been shut for long.
    pub(super) fn pass(&self) {
        let mut shut = self.0.since();
        while let Some(left) = shut.and_then(|since| LONGEST.checked_sub(since.elapsed())) {
            shut = self.0.opened.wait_timeout(shut, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        // An instant is whole, whoever panicked.
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        *self.0.since() = None;
        self.0.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_comes_while_it_is_shut_waits() {
        let gate = Gate::default();
        gate.pass();
        let shut = gate.shut();
        let other = gate.clone();
        let waiting = thread::spawn(move || other.pass());
        thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(shut);
        waiting.join().unwrap();
        gate.pass();
    }

    #[test]
    fn nobody_waits_for_ever() {
        let gate = Gate::default();
        let _shut = gate.shut();
        *gate.0.since() = Some(Instant::now().checked_sub(LONGEST).unwrap());
        gate.pass();
    }
}
