//! Where in the new image pages of the old ones are, by the image and slot that they come from.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use crate::ranges::RangeSet;

/// Consecutive slots of an old image, and the place of the first in the new one; the others follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The old image's number.
    pub(super) image: u64,
    /// First slot there.
    pub(super) slot: u64,
    /// How many.
    pub(super) pages: u64,
    /// First slot in the new one.
    pub(super) own: u64,
}

impl Part {
    /// Takes up to `most` pages from its beginning.
    pub(super) fn take(&mut self, most: u64) -> Self {
        let taken = Self { pages: self.pages.min(most), ..*self };
        self.slot += taken.pages;
        self.own += taken.pages;
        self.pages -= taken.pages;
        taken
    }

    /// Takes `next` in, if it continues this one in both images.
    pub(super) fn join(&mut self, next: &Self) -> bool {
        let end = Self { slot: self.slot + self.pages, own: self.own + self.pages, ..*next };
        let continues = self.image == next.image && end == *next;
        if continues {
            self.pages += next.pages;
        }
        continues
    }
}

/// The account of it. What is no longer needed leaves room, which is used before the image is made longer.
#[derive(Debug)]
pub(super) struct Places {
    /// Room that was left can be written.
    rewrites: bool,
    /// By image, by first slot: how many pages, and the first slot in the new image.
    taken: HashMap<u64, BTreeMap<u64, (u64, u64)>>,
    free: VecDeque<Range<u64>>,
}

impl Places {
    /// None yet. Unless the image `rewrites` slots, what is no longer needed stays.
    pub(super) fn new(rewrites: bool) -> Self {
        Self { rewrites, taken: HashMap::new(), free: VecDeque::new() }
    }

    /// The first part of a run of slots of an image, of which either all pages have a place or none has: how many pages, and the place.
    pub(super) fn next(&self, image: u64, slot: u64, pages: u64) -> (u64, Option<u64>) {
        let Some(taken) = self.taken.get(&image) else { return (pages, None) };
        if let Some((first, (count, own))) = taken.range(..=slot).next_back()
            && slot < first + count
        {
            return ((first + count - slot).min(pages), Some(own + (slot - first)));
        }
        let until = taken.range(slot..slot + pages).next().map_or(slot + pages, |(first, _)| *first);
        (until - slot, None)
    }

    /// Gives some pages of an image a place, of which none has one yet: as many as there is room for in one piece. `allocate` makes the
    /// image longer, and gives the first of so many slots.
    pub(super) fn add(&mut self, image: u64, slot: u64, pages: u64, allocate: impl FnOnce(u64) -> u64) -> Part {
        let (own, pages) = match self.free.front_mut() {
            Some(room) => {
                let pages = pages.min(room.end - room.start);
                let own = room.start;
                room.start += pages;
                if room.is_empty() {
                    self.free.pop_front();
                }
                (own, pages)
            }
            None => (allocate(pages), pages),
        };
        let taken = self.taken.entry(image).or_default();
        // Runs that continue each other in both images are one.
        match taken.range_mut(..slot).next_back() {
            Some((first, (count, place))) if first + *count == slot && *place + *count == own => *count += pages,
            _ => drop(taken.insert(slot, (pages, own))),
        }
        Part { image, slot, pages, own }
    }

    /// Takes the places of these parts, which were never written, away.
    pub(super) fn forget(&mut self, parts: impl Iterator<Item = Part>) {
        for Part { image, slot, pages, .. } in parts {
            let Some(taken) = self.taken.get(&image) else { continue };
            let all = RangeSet::from(slot..slot + pages);
            let touched = taken.range(..slot + pages).rev().take_while(|(first, (count, _))| **first + count > slot);
            for (first, (count, own)) in touched.map(|(first, place)| (*first, *place)).collect::<Vec<_>>() {
                self.keep_of(image, first, count, own, all.gaps(first..first + count));
            }
        }
    }

    /// Keeps the places of pages that are still needed, by image.
    pub(super) fn keep(&mut self, needed: &HashMap<u64, RangeSet>) {
        let images: Vec<u64> = self.taken.keys().copied().collect();
        let none = RangeSet::new();
        for image in images {
            let needed = needed.get(&image).unwrap_or(&none);
            let all: Vec<_> = self.taken[&image].iter().map(|(first, place)| (*first, *place)).collect();
            for (first, (count, own)) in all {
                self.keep_of(image, first, count, own, needed.within(first..first + count).collect());
            }
        }
    }

    /// Of one run with places, keeps these parts.
    fn keep_of(&mut self, image: u64, first: u64, count: u64, own: u64, kept: Vec<Range<u64>>) {
        let taken = self.taken.entry(image).or_default();
        taken.remove(&first);
        for gap in
            RangeSet::from_unsorted(kept.clone()).gaps(first..first + count).into_iter().filter(|_| self.rewrites)
        {
            self.free.push_back(own + (gap.start - first)..own + (gap.end - first));
        }
        for part in kept {
            taken.insert(part.start, (part.end - part.start, own + (part.start - first)));
        }
    }
}
