//! The store against power loss and failing disks: every point of the life of a small chain.
//!
//! A [`Recorder`] sees every change that the store makes to the disk. From its record a [`Machine`] works out what the disk
//! may hold if the power is lost after any of them; each such disk must open, hold every checkpoint whose publication had
//! been reported, hold others whole or not at all, and take the next delta. The same again with each change made to fail.

mod cut;
mod life;
mod machine;
mod model;
mod recorder;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use cr::seal::Keys;

use life::Life;
use machine::Machine;
use recorder::Fault;

/// In memory where that is to be had: nothing here depends on a real disk, and there are many thousands of small files.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("tempdir")
}

#[test]
fn nothing_published_is_lost_whatever_is_the_last_thing_that_happened() {
    let life = Life::live(None);
    assert!(life.attempts.iter().filter(|attempt| attempt.published_at.is_some()).count() >= 5);
    let states = life.check_every_crash(scratch().path(), 0, true);
    println!("{} changes, {states} states of the disk", life.changes().len());
    assert!(states > 500, "{states} states are too few to mean anything");
}

#[test]
fn nothing_sealed_and_signed_is_lost_whatever_is_the_last_thing_that_happened() {
    let keys = Keys { signer: Some(crate::sealed::signer().0), ..crate::sealed::key(1) };
    let life = Life::live_with(None, keys);
    assert!(life.attempts.iter().filter(|attempt| attempt.published_at.is_some()).count() >= 5);
    let states = life.check_every_crash(scratch().path(), 0, true);
    println!("{} changes, {states} states of the disk", life.changes().len());
    assert!(states > 500, "{states} states are too few to mean anything");
}

#[test]
fn nothing_published_is_lost_whatever_fails() {
    let asked = Life::live(None).asked();
    let wishes = (0..asked).flat_map(|at| Fault::ALL.map(|fault| (at, fault))).collect::<Vec<_>>();
    let (next, states, struck) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| {
                let folder = scratch();
                while let Some(wish) = wishes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let life = Life::live(Some(*wish));
                    let Some(since) = life.struck() else { continue };
                    struck.fetch_add(1, Ordering::Relaxed);
                    // Others have the same changes made as one of these, or as no fault.
                    if matches!(wish.1, Fault::Io | Fault::ShortThenFull) {
                        states.fetch_add(life.check_every_crash(folder.path(), since, false), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!("{asked} changes, {struck:?} faults, {states:?} states of the disk");
    assert!(struck.into_inner() > 2 * asked && states.into_inner() > 2000);
}

impl Life {
    /// Checks every disk that a power loss after more than `since` changes may leave, and says how many there were. Few
    /// cases alone, and those up to the next publication, unless `thorough`.
    fn check_every_crash(&self, folder: &Path, since: usize, thorough: bool) -> usize {
        let changes = self.changes();
        let next = self.attempts.iter().filter_map(|attempt| attempt.published_at).find(|at| *at > since && !thorough);
        let until = next.unwrap_or(changes.len());
        let mut machine = Machine::default();
        let mut seen = HashSet::new();
        for position in 0..=changes.len() {
            if position <= until && (position > since || thorough) {
                let published =
                    self.attempts.iter().filter(|a| a.published_at.is_some_and(|at| at <= position)).count();
                for state in machine.crash_states(thorough) {
                    if seen.insert((published, state.key())) {
                        let what = format!("{}, power lost after change {position}: {}", self.fault(), state.how);
                        state.tree.put_into(folder);
                        model::check(&folder.join(life::STORE), &self.keys, &self.attempts, position, &what);
                    }
                }
            }
            match changes.get(position) {
                Some(change) => machine.apply(change),
                None => assert!(machine.tree_as_seen().is_in(self.root()), "the simulation is not what happened"),
            }
        }
        seen.len()
    }
}
