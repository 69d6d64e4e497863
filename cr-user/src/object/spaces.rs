//! Numbers for the things whose bytes an image holds: address spaces, and files whose content nobody else keeps.

use std::collections::HashMap;

/// First number of a content space that is not an address space (those are numbered by pid).
const FIRST_OBJECT: u64 = 1 << 32;

/// Stands for a device where segments are numbered.
const SEGMENTS: u64 = u64::MAX;

/// One past the last number that an image can have (`image/validate.rs`): there is always room for new ones.
const END: u64 = 1 << 63;

/// Whether the number can be that of an object, and another one can follow it.
pub fn is_object_space(space: u64) -> bool {
    Spaces::is_object(space) && space < END
}

/// Content spaces by the file that they belong to. A number stays with its object for the whole chain.
#[derive(Clone, Debug, Default)]
pub struct Spaces {
    by_file: HashMap<(u64, u64), u64>,
    next: u64,
}

impl Spaces {
    /// The space of the address space of process `pid`.
    pub fn of_process(pid: i32) -> u64 {
        pid as u64
    }

    /// Whether the number is that of an object rather than an address space.
    pub fn is_object(space: u64) -> bool {
        space >= FIRST_OBJECT
    }

    /// The space of the file with device `dev` and inode `ino`; a new one where it has none yet.
    pub fn of_file(&mut self, dev: u64, ino: u64) -> u64 {
        let next = &mut self.next;
        *self.by_file.entry((dev, ino)).or_insert_with(|| {
            let space = FIRST_OBJECT + *next;
            *next += 1;
            space
        })
    }

    /// The space of a System V shared memory segment; a new one where it has none yet. As a file it has its id for an inode,
    /// which may well be that of another file of the same device.
    pub fn of_segment(&mut self, id: i32) -> u64 {
        self.of_file(SEGMENTS, id as u64)
    }

    /// Says that the segment is the one that an older image calls `space`.
    pub fn adopt_segment(&mut self, id: i32, space: u64) {
        self.adopt(SEGMENTS, id as u64, space);
    }

    /// Says that the file is the one that an older image calls `space`.
    pub fn adopt(&mut self, dev: u64, ino: u64, space: u64) {
        self.by_file.insert((dev, ino), space);
        self.reserve(space);
    }

    /// Keeps `space` from being given to another file: an older image of the chain uses it.
    pub fn reserve(&mut self, space: u64) {
        if Self::is_object(space) {
            self.next = self.next.max(space - FIRST_OBJECT + 1);
        }
    }
}
