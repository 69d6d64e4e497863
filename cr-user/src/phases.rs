//! Timing of the parts of something long, for the log.

use std::fmt;
use std::time::{Duration, Instant};

/// How long each part took, so far.
#[derive(Debug)]
pub struct Phases {
    last: Instant,
    all: Vec<(&'static str, Duration)>,
}

impl Phases {
    /// Begins at `start`.
    pub fn new(start: Instant) -> Self {
        Self { last: start, all: Vec::new() }
    }

    /// Ends a part, and begins the next.
    pub fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.all.push((name, now - self.last));
        self.last = now;
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.iter().try_for_each(|(name, time)| write!(f, "{name} {:.2} ms ", time.as_secs_f64() * 1e3))
    }
}
