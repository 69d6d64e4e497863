//! Changes inputs so that most of what they were is still there: words at their places rather than bytes anywhere.

use crate::forge::word;

/// A small xorshift generator: the same numbers every time.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed will do.
    pub fn new(seed: u64) -> Self {
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.draw() >> 11) as usize % end
    }
}

/// Numbers at which things break.
const INTERESTING: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    0x1000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 47,
    1 << 52,
    1 << 62,
    1 << 63,
    u64::MAX - 0xfff,
    u64::MAX,
];

/// Makes a few changes to an input, which stays shorter than `most` bytes.
pub fn mutate(input: &mut Vec<u8>, most: usize, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if input.is_empty() {
            input.extend(random.draw().to_le_bytes());
        }
        let at = random.below(input.len());
        match random.below(16) {
            0 | 1 => input[at] ^= 1 << random.below(8),
            2 => input[at] = random.draw() as u8,
            3..=8 => change_word(input, 8, random),
            9..=11 => change_word(input, 4, random),
            12 => {
                let from = random.below(input.len());
                let len = (1 + random.below(64)).min(input.len() - from.max(at));
                input.copy_within(from..from + len, at);
            }
            13 => {
                let len = (8 + 8 * random.below(8)).min(input.len() - at);
                let piece = input[at..at + len].to_vec();
                let to = random.below(input.len()) / 8 * 8;
                input.splice(to..to, piece);
            }
            14 => {
                let len = (8 + 8 * random.below(8)).min(input.len() - at);
                input.drain(at..at + len);
            }
            _ if random.below(8) == 0 => input.truncate(at),
            _ => input[at] = 0,
        }
    }
    input.truncate(most);
}

/// Changes a word at one of its places, which count from the beginning as from the end: records begin at the one, and the index
/// ends at the other.
fn change_word(input: &mut [u8], size: usize, random: &mut Random) {
    let words = input.len() / size;
    if words == 0 {
        return;
    }
    let skew = if random.below(2) == 0 { 0 } else { input.len() % size };
    let at = skew + size * random.below(words);
    let old = word(input, at, size);
    let new = match random.below(6) {
        0 | 1 => INTERESTING[random.below(INTERESTING.len())],
        2 => old.wrapping_add(1 + random.below(32) as u64),
        3 => old.wrapping_sub(1 + random.below(32) as u64),
        4 => word(input, skew + size * random.below(words), size),
        _ => old ^ INTERESTING[random.below(INTERESTING.len())],
    };
    input[at..at + size].copy_from_slice(&new.to_le_bytes()[..size]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_changes_every_time() {
        let change = |seed| {
            let (mut input, mut random) = (vec![7; 1000], Random::new(seed));
            (0..1000).for_each(|_| mutate(&mut input, 2000, &mut random));
            input
        };
        assert_eq!(change(1), change(1));
        assert_ne!(change(1), change(2));
        assert!(change(1).len() <= 2000);
    }
}
