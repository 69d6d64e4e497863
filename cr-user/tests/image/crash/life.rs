//! The life of a small chain: what a controller does with a store, and again after it failed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cr::disk::Disk;
use cr::image::{IndexInfo, PAGE_SIZE};
use cr::seal::Keys;
use cr::store::compact::Compaction;
use cr::store::prune::Rules;
use cr::store::{Chain, Store, StoreWriter};

use super::model::{Attempt, Memory};
use super::recorder::{Change, Fault, Recorder, Trap};
use super::scratch;
use crate::KNOWN;

/// Where the store is; neither directory is there before.
pub const STORE: &str = "jobs/store";

/// What was done, and what is to be expected of it.
pub struct Life {
    folder: tempfile::TempDir,
    recorder: Arc<Recorder>,
    fault: Option<(usize, Fault)>,
    pub keys: Keys,
    /// All checkpoints that were tried, in their order.
    pub attempts: Vec<Attempt>,
}

type Failed = Box<dyn std::error::Error>;

impl Life {
    /// Lives it, with one change failing.
    pub fn live(fault: Option<(usize, Fault)>) -> Self {
        Self::live_with(fault, Keys::default())
    }

    /// The same with keys.
    pub fn live_with(fault: Option<(usize, Fault)>, keys: Keys) -> Self {
        let folder = scratch();
        let recorder = Arc::new(Recorder::new(folder.path(), fault));
        let mut life = Self { folder, recorder, fault, keys, attempts: Vec::new() };
        let disk = Disk::watched(life.recorder.clone());
        life.first_session(&disk);
        life.second_session(&disk);
        life
    }

    /// Full, delta, one that cannot be published, one that is given up and cannot be removed, a large delta, one that cannot
    /// be published and not be removed either, and a last delta.
    fn first_session(&mut self, disk: &Disk) {
        let writer = self.open(disk);
        let full = self.insist("the full checkpoint", |life| life.take(&writer, None, 0));
        let delta = self.insist("a delta", |life| life.take(&writer, Some(full), 0));

        self.recorder.set_traps(&[Trap::SyncDir]);
        assert!(self.take(&writer, Some(delta), 0).map_err(|why| self.is_one_sentence(&why)).is_err());
        self.recorder.set_traps(&[Trap::Remove]);
        let given_up = writer.begin().map(|image| drop(image.put(&[7; 2 * PAGE_SIZE])));
        if let Err(why) = given_up {
            self.is_one_sentence(&why.into());
        }
        self.recorder.set_traps(&[]);

        let large = self.insist("a large delta", |life| life.take(&writer, Some(delta), 33));
        self.recorder.set_traps(&[Trap::SyncDir, Trap::Remove]);
        assert!(self.take(&writer, Some(large), 0).map_err(|why| self.is_one_sentence(&why)).is_err());
        self.recorder.set_traps(&[]);
        self.insist("a delta after one that was neither published nor removed", |life| {
            life.take(&writer, Some(large), 0)
        });

        // One that is given up and cannot be removed, one that cannot be published, and one that is a checkpoint.
        self.recorder.set_traps(&[Trap::Remove]);
        let given_up = begin(&writer).and_then(|mut compaction| Ok(compaction.step(3).map(drop)?));
        if let Err(why) = given_up {
            self.is_one_sentence(&why);
        }
        self.recorder.set_traps(&[Trap::SyncDir]);
        assert!(self.compact(&writer).map_err(|why| self.is_one_sentence(&why)).is_err());
        self.recorder.set_traps(&[]);
        let compacted = self.insist("a compaction", |life| life.compact(&writer));
        self.insist("a delta on what was compacted", |life| life.take(&writer, Some(compacted), 0));
    }

    /// Another controller comes, finds leftovers, and goes on from the newest. Old checkpoints are removed.
    fn second_session(&mut self, disk: &Disk) {
        let writer = self.open(disk);
        let newest = self.newest(&writer);
        let delta = self.insist("a delta on what was found", |life| life.take(&writer, Some(newest), 0));
        self.insist("a pruning", |life| life.prune(&writer));
        self.insist("a delta on what was kept", |life| life.take(&writer, Some(delta), 0));
        self.insist("a compaction of what was kept", |life| life.compact(&writer));
        self.insist("another pruning", |life| life.prune(&writer));
    }

    /// Which attempt is the newest checkpoint.
    fn newest(&self, writer: &StoreWriter) -> usize {
        let newest = Chain::open(writer.store(), None).expect("the newest").newest().as_parent();
        self.attempts.iter().position(|attempt| attempt.identity == Some(newest)).expect("one of ours")
    }

    /// Compacts the newest checkpoint.
    fn compact(&mut self, writer: &StoreWriter) -> Result<usize, Failed> {
        let memory = self.attempts[self.newest(writer)].memory.clone();
        let number = self.attempts.len();
        self.attempts.push(Attempt::default());
        let mut compaction = begin(writer)?;
        while compaction.step(5)? > 0 {}
        let finished = compaction.finish(writer, Vec::new())?;
        self.attempts[number] = Attempt { memory, identity: Some(finished.as_parent()), ..Attempt::default() };
        writer.publish_compacted(finished)?;
        self.attempts[number].published_at = Some(self.recorder.position());
        Ok(number)
    }

    /// Removes all that the newest checkpoint does not need.
    fn prune(&mut self, writer: &StoreWriter) -> Result<(), Failed> {
        let rules = Rules { last: Some(1), ..Rules::default() };
        let plan = writer.store().plan_pruning(&rules, None)?;
        for fate in &plan.removed {
            let identity = Some(writer.store().open_image(fate.id)?.as_parent());
            // A compaction that is tried again makes the same image.
            for attempt in self.attempts.iter_mut().filter(|attempt| attempt.identity == identity) {
                attempt.removed_at.get_or_insert(self.recorder.position());
            }
        }
        let pruned = writer.prune(&rules, None)?;
        assert_eq!(pruned.removed, plan.removed);
        Ok(())
    }

    fn open(&mut self, disk: &Disk) -> StoreWriter {
        let path = self.folder.path().join(STORE);
        let open = |life: &mut Self| Ok(Store::create_or_open_with(disk, &path, KNOWN, &life.keys)?);
        let store: Store = self.insist("opening the store", open);
        let writer = self.insist("taking the lock", |_| Ok(store.lock()?));
        assert!(leftovers(&path).is_empty(), "{}: {:?}", self.fault(), leftovers(&path));
        writer
    }

    /// One thing fails, and at most the next one as well; then it has to work.
    fn insist<T>(&mut self, what: &str, mut act: impl FnMut(&mut Self) -> Result<T, Failed>) -> T {
        for _ in 0..3 {
            match act(self) {
                Ok(done) => return done,
                Err(why) => {
                    self.is_one_sentence(&why);
                    assert!(self.struck().is_some(), "{}: {what}: {why}", self.fault());
                    println!("{}: {what}: {why}", self.fault());
                }
            }
        }
        panic!("{}: {what} does not work any more", self.fault())
    }

    /// For people: what, where and why.
    fn is_one_sentence(&self, why: &Failed) {
        // Directories above the root are made durable as well.
        let (text, above) = (why.to_string(), self.root().parent().expect("it is somewhere"));
        let is_one = text.starts_with("cannot ") && text.contains(&*above.to_string_lossy()) && !text.contains('\n');
        assert!(is_one, "{}: {text}", self.fault());
    }

    /// Takes a checkpoint with other contents than any before, and publishes it.
    fn take(&mut self, writer: &StoreWriter, on: Option<usize>, large: u64) -> Result<usize, Failed> {
        let number = self.attempts.len();
        let mut memory = on.map_or_else(Memory::default, |on| self.attempts[on].memory.clone());
        let parent = on.and_then(|on| self.attempts[on].identity);
        self.attempts.push(Attempt::default());
        let image = writer.begin()?;
        let spaces = memory.change(&image, number as u64 + 1, large)?;
        let finished = image.finish(IndexInfo { parent, spaces, ..IndexInfo::default() })?;
        self.attempts[number] = Attempt { memory, identity: Some(finished.as_parent()), ..Attempt::default() };
        writer.publish(finished)?;
        self.attempts[number].published_at = Some(self.recorder.position());
        Ok(number)
    }

    pub fn changes(&self) -> Vec<Change> {
        self.recorder.changes()
    }

    pub fn asked(&self) -> usize {
        self.recorder.asked()
    }

    /// After how many changes the fault struck, if it did.
    pub fn struck(&self) -> Option<usize> {
        self.recorder.struck()
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn fault(&self) -> String {
        self.fault.map_or_else(|| "no fault".into(), |(at, fault)| format!("{fault:?} at operation {at}"))
    }
}

/// Begins to compact the newest checkpoint.
fn begin(writer: &StoreWriter) -> Result<Compaction, Failed> {
    let chain = Chain::open(writer.store(), None)?;
    let spaces = chain.space_ids();
    Ok(Compaction::begin(writer, chain, spaces, 64 << 20)?)
}

/// Names of unfinished files in a store.
pub fn leftovers(store: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(store).expect("list").map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "tmp")).collect()
}
