//! Compactions in the lives of the model: some go on over several checkpoints, and take up what has come meanwhile.

use std::collections::BTreeSet;

use super::{Life, Memory};
use crate::store::Chain;
use crate::store::compact::Compaction;

impl Life {
    /// Begins to compact the newest checkpoint, or goes on with what was begun, and publishes it if all is there by then.
    pub(super) fn compact(&mut self) {
        let Some((newest, memory)) = self.newest() else { return };
        let begun = self.compaction.take().or_else(|| {
            let chain = Chain::open(self.writer.store(), Some(newest)).expect("a whole chain");
            let is_one = chain.images().len() == 1;
            let begin = || Compaction::begin(&self.writer, chain, spaces(&memory), u64::MAX).expect("a new image");
            (!is_one).then(begin)
        });
        let Some(mut compaction) = begun else { return };
        if self.random.below(2) == 0 {
            compaction.step(1 + self.random.below(100)).expect("pages can be copied");
            self.compaction = Some(compaction);
            return;
        }
        if compaction.from().id() != newest {
            let chain = Chain::open(self.writer.store(), Some(newest)).expect("a whole chain");
            compaction.catch_up(&self.writer, chain, spaces(&memory)).expect("a newer chain");
        }
        while compaction.left() > 0 {
            compaction.step(1 + self.random.below(40)).expect("pages can be copied");
        }
        let from = compaction.from().as_parent();
        let finished = compaction.finish(&self.writer, Vec::new()).expect("a finished image");
        let image = self.writer.publish_compacted(finished).expect("a published image");
        // Whoever has built on the chain builds on what it has become, or does not.
        if self.parent == Some(from) && self.random.below(4) > 0 {
            self.parent = Some(image);
            self.content.retain(|space, _| memory.contains_key(space));
        }
        self.taken.insert(image.id, (image, memory));
        self.compacted += 1;
        self.check(image.id);
    }

    fn newest(&self) -> Option<(u64, Memory)> {
        self.taken.last_key_value().map(|(id, (_, memory))| (*id, memory.clone()))
    }
}

fn spaces(memory: &Memory) -> BTreeSet<u64> {
    memory.keys().copied().collect()
}
