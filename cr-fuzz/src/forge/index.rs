//! The index of a forged image: an archive of which only the root's fields are known, at the places that `docs/image-format.md` gives.

use super::word;

/// Bytes of the root, which is at the end.
const ROOT: usize = 176;
/// Where things are in the root.
const ID: usize = 0;
const JOB: usize = 8;
const PARENT: usize = 24;
const PARENT_ID: usize = 32;
const PARENT_HASH: usize = 40;
const COUNTS: [usize; 3] = [88, 96, 104];
const SPACES: usize = 160;

/// An index, however short or wrong.
pub struct Index(pub Vec<u8>);

impl Index {
    /// Whether it has a root.
    pub fn has_root(&self) -> bool {
        self.0.len() >= ROOT
    }

    /// The number that it gives the checkpoint.
    pub fn id(&self) -> u64 {
        self.number(ID)
    }

    /// The number that it gives the parent.
    pub fn parent(&self) -> Option<u64> {
        let root = self.0.len().checked_sub(ROOT)?;
        (self.0[root + PARENT] == 1).then(|| self.number(PARENT_ID))
    }

    /// The job that it names; something else where it has no root.
    pub fn job(&self) -> Vec<u8> {
        self.bytes(JOB, 16)
    }

    /// The parent's hash that it names, likewise.
    pub fn parent_hash(&self) -> Vec<u8> {
        self.bytes(PARENT_HASH, 32)
    }

    /// Has it name this job.
    pub fn set_job(&mut self, job: [u8; 16]) {
        self.put(JOB, &job);
    }

    /// Has it name this parent's hash.
    pub fn set_parent_hash(&mut self, hash: [u8; 32]) {
        self.put(PARENT_HASH, &hash);
    }

    /// Writes the sums over the extents to where it has its page counts, as far as the extents can be found.
    pub fn count_pages(&mut self) {
        let Some(root) = self.0.len().checked_sub(ROOT) else { return };
        let mut counts = [0_u64; 3];
        for space in self.elements(root + SPACES, 24) {
            for extent in self.elements(space + 8, 32) {
                if let Some(count) = counts.get_mut(self.0[extent + 16] as usize) {
                    *count = count.saturating_add(word(&self.0, extent + 8, 8));
                }
            }
        }
        for (at, count) in COUNTS.into_iter().zip(counts) {
            self.put(at, &count.to_le_bytes());
        }
    }

    /// Where the elements of the vector at `at` are: those that are inside the index.
    fn elements(&self, at: usize, size: usize) -> Vec<usize> {
        let (distance, count) = (word(&self.0, at, 8) as i64, word(&self.0, at + 8, 8));
        let first = (at as i64).checked_add(distance).and_then(|first| usize::try_from(first).ok());
        let Some(first) = first.filter(|first| *first < self.0.len()) else { return Vec::new() };
        let fitting = (self.0.len() - first) / size;
        (0..fitting.min(count as usize)).map(|n| first + n * size).collect()
    }

    fn number(&self, at: usize) -> u64 {
        self.0.len().checked_sub(ROOT).map_or(0, |root| word(&self.0, root + at, 8))
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let root = self.0.len().checked_sub(ROOT);
        root.map_or_else(|| vec![1; len], |root| self.0[root + at..][..len].to_vec())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(root) = self.0.len().checked_sub(ROOT) {
            self.0[root + at..root + at + bytes.len()].copy_from_slice(bytes);
        }
    }
}
