//! Pages of one image that are the same: each is stored once.

/// The most entries: pages of 16 GiB, in 128 MiB.
const MOST: u64 = 1 << 22;
/// Of the memory that pages on their way may take, this part goes to the table.
const PART: u64 = 32;

/// Which slot has which page, as far as there is room: a page takes the place of another one by chance. Pages are told apart by 128 bits of
/// XXH3, of which a job of 2^28 pages has two that agree by accident with a probability below 2^-72.
#[derive(Debug)]
pub struct Twins {
    entries: Vec<Entry>,
    /// One bit a slot: several pages are in it.
    shared: Vec<u64>,
}

/// All zeroes (so that what is not used takes no memory): none.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    digest: u128,
    /// One more than its number.
    slot: u64,
}

impl Twins {
    /// A table for a checkpoint that uses up to `memory_limit` bytes for pages on their way.
    pub fn within(memory_limit: u64) -> Self {
        Self { entries: vec![Entry::default(); entries(memory_limit) as usize], shared: Vec::new() }
    }

    /// Bytes that the table of such a checkpoint may come to take.
    pub fn room(memory_limit: u64) -> u64 {
        entries(memory_limit) * size_of::<Entry>() as u64
    }

    /// The slot that was last said to have such a page. It may have another one by now.
    pub fn find(&self, digest: u128) -> Option<u64> {
        let entry = &self.entries[self.place(digest)];
        (entry.digest == digest).then(|| entry.slot.checked_sub(1)).flatten()
    }

    /// A slot has this page.
    pub fn note(&mut self, digest: u128, slot: u64) {
        let place = self.place(digest);
        self.entries[place] = Entry { digest, slot: slot + 1 };
    }

    fn place(&self, digest: u128) -> usize {
        digest as usize & (self.entries.len() - 1)
    }

    /// Several pages are in these slots.
    pub fn share(&mut self, slots: std::ops::Range<u64>) {
        let words = (slots.end as usize).div_ceil(64);
        if self.shared.len() < words {
            self.shared.resize(words, 0);
        }
        for slot in slots {
            self.shared[slot as usize / 64] |= 1 << (slot % 64);
        }
    }

    /// Whether several pages are in one of these slots.
    pub fn is_shared(&self, slots: std::ops::Range<u64>) -> bool {
        slots
            .into_iter()
            .any(|slot| self.shared.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1))
    }
}

fn entries(memory_limit: u64) -> u64 {
    let entries = memory_limit / PART / size_of::<Entry>() as u64;
    (entries / 2 + 1).next_power_of_two().clamp(1 << 10, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_forgets_but_does_not_mix_up() {
        let mut twins = Twins::within(1 << 20);
        let places = twins.entries.len() as u128;
        assert_eq!(places, 1 << 10);
        assert_eq!((Twins::room(256 << 20), Twins::room(u64::MAX)), (8 << 20, 128 << 20));
        assert_eq!(twins.find(0), None);
        twins.note(0, 0);
        twins.note(5, 7);
        assert_eq!((twins.find(0), twins.find(5), twins.find(5 + places)), (Some(0), Some(7), None));
        twins.note(5 + places, 9);
        assert_eq!((twins.find(5), twins.find(5 + places)), (None, Some(9)));
    }

    #[test]
    fn shared_slots_are_known() {
        let mut twins = Twins::within(1 << 20);
        twins.share(62..66);
        twins.share(200..201);
        for slot in 0..300 {
            assert_eq!(twins.is_shared(slot..slot + 1), (62..66).contains(&slot) || slot == 200, "{slot}");
        }
        assert!(twins.is_shared(0..63) && !twins.is_shared(66..200) && !twins.is_shared(5..5));
    }
}
