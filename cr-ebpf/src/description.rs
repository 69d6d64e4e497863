//! What the record of an open file description depends on, as one number. The words themselves are taken, not counts of
//! changes: an object that comes to lie where another lay has other words, or is the same to whoever asks.
//!
//! Whatever is not known in full is said not to be covered; then it is looked at.

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel as probe_read, macros::map, maps::PerCpuArray};
use cr_common::{FileRecord, KernelField, covered};

use crate::{
    kernel::{offset, read, read_at},
    sockets,
};

/// Words of the largest structure that is taken whole (`tcp6_sock` has 2432 bytes in Linux 6.18).
pub(crate) const WORDS: usize = 512;
/// The same of a file, an inode and a directory entry, of which only the beginning is taken: nearly all that is asked for is there.
const FILE: usize = 18;
const INODE: usize = 16;
const DENTRY: usize = 12;

/// What several descriptions have in common, and room for structures. A call to the kernel's helper costs more than to copy what
/// a dozen of them would read one by one.
#[repr(C)]
pub(crate) struct Scratch {
    /// The pass that the following is of.
    session: u64,
    /// A directory, the mount that it was reached by, its name as a number, and whether that is known.
    parent: u64,
    mount: u64,
    name: u64,
    is_known: u64,
    /// A network, and its defaults as a number.
    pub(crate) net: u64,
    pub(crate) defaults: u64,
    /// A super block, what kind of file system it is of, and its device.
    super_block: u64,
    magic: u64,
    device: u64,
    /// A mount, and its root.
    rooted: u64,
    root: u64,
    /// A task, and which 64 of its descriptors these bits say of whether `exec` closes them.
    task: u64,
    sixty_four: u64,
    cloexec: u64,
    /// A file, its inode and its directory entry.
    names: [u64; 3],
    file: [u64; FILE],
    inode: [u64; INODE],
    dentry: [u64; DENTRY],
    pub(crate) words: [u64; WORDS],
}

impl Scratch {
    #[inline(always)]
    pub(crate) fn of_file(&self, field: &Global<u32>) -> u64 {
        at(&self.file, self.names[0], field)
    }

    #[inline(always)]
    fn of_inode(&self, field: &Global<u32>) -> u64 {
        at(&self.inode, self.names[1], field)
    }

    #[inline(always)]
    fn of_entry(&self, field: &Global<u32>) -> u64 {
        at(&self.dentry, self.names[2], field)
    }
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Sets every field of the record of a descriptor, which still holds the previous one's. `session` names the pass.
#[inline(always)]
pub(crate) fn describe(record: &mut FileRecord, task: u64, fd: u32, file: u64, session: u64) {
    record.file = file;
    record.fd = fd;
    // Until it is known better: somebody has a lock, and it must be looked at.
    (record.locks, record.covered, record.evidence) = (1, covered::NOTHING, 0);
    (record.cloexec, record.watched, record.references) = (0, u64::MAX, 0);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: the map's value for this CPU, which no other program touches: programs of one kind do not nest.
    let scratch = unsafe { &mut *scratch };
    if scratch.session != session {
        scratch.session = session;
        (scratch.parent, scratch.net, scratch.super_block, scratch.rooted, scratch.task) = (0, 0, 0, 0, 0);
    }
    record.cloexec = is_closed_by_exec(scratch, task, fd);
    scratch.names[0] = file;
    if !load(&mut scratch.file, file, FILE * 8) {
        return;
    }
    record.watched = watches(scratch.of_file(&offset::FILE_WATCHES));
    let inode = scratch.of_file(&offset::FILE_INODE);
    scratch.names[1] = inode;
    if !load(&mut scratch.inode, inode, INODE * 8) {
        return;
    }
    record.locks = scratch.of_inode(&offset::INODE_LOCKS);
    (record.covered, record.evidence) = evidence(scratch, record.locks);
    if record.covered == covered::EPOLL {
        record.references = read(scratch.of_file(&offset::FILE_PRIVATE), &offset::EPOLL_REFERENCES);
    }
}

#[inline(always)]
fn is_closed_by_exec(scratch: &mut Scratch, task: u64, fd: u32) -> u32 {
    let sixty_four = u64::from(fd / 64);
    if scratch.task != task || scratch.sixty_four != sixty_four {
        let table: u64 = read(read(task, &offset::TASK_FILES), &offset::FILES_TABLE);
        let bits: u64 = read(table, &offset::TABLE_CLOEXEC);
        (scratch.task, scratch.sixty_four) = (task, sixty_four);
        scratch.cloexec = read_at(bits + sixty_four * 8);
    }
    (scratch.cloexec >> (fd % 64) & 1) as u32
}

/// Says for which kind of description the second number is a hash of everything.
#[inline(always)]
fn evidence(scratch: &mut Scratch, locks: u64) -> (u32, u64) {
    const NOTHING: (u32, u64) = (covered::NOTHING, 0);
    if locks != 0 || has_owner(scratch) {
        return NOTHING;
    }
    let super_block = scratch.of_inode(&offset::INODE_SB);
    if scratch.super_block != super_block {
        scratch.super_block = super_block;
        scratch.magic = read(super_block, &offset::SUPER_BLOCK_MAGIC);
        scratch.device = u64::from(read::<u32>(super_block, &offset::SUPER_BLOCK_DEV));
    }
    let mode = u64::from(scratch.of_inode(&offset::INODE_MODE) as u16);
    let mut hash = scratch.of_file(&offset::FILE_FLAGS) << 32 | mode;
    hash = mix(hash, scratch.of_inode(&offset::INODE_INO));
    let (user, group) = (scratch.of_inode(&offset::INODE_UID), scratch.of_inode(&offset::INODE_GID) as u32);
    hash = mix(hash, user << 32 | u64::from(group));
    match scratch.magic {
        magic::SOCKETS => sockets::evidence(scratch, hash),
        magic::ANONYMOUS => anonymous(scratch, hash),
        magic::PIPES => pipe(scratch, hash),
        magic::EXT | magic::XFS | magic::BTRFS | magic::TMPFS => named(scratch, hash),
        _ => NOTHING,
    }
}

/// Magic numbers of file systems (`linux/magic.h`), of those that keep all that `stat` shows in the inode.
mod magic {
    pub(super) const EXT: u64 = 0xef53;
    pub(super) const XFS: u64 = 0x5846_5342;
    pub(super) const BTRFS: u64 = 0x9123_683e;
    pub(super) const TMPFS: u64 = 0x0102_1994;
    pub(super) const SOCKETS: u64 = 0x534f_434b;
    pub(super) const ANONYMOUS: u64 = 0x0904_1934;
    pub(super) const PIPES: u64 = 0x5049_5045;
}

/// Whether somebody is, or was, to be signalled. Kernels before 6.12 have that within the structure.
#[inline(always)]
fn has_owner(scratch: &Scratch) -> bool {
    if offset::FILE_OWNER_PID.load() == KernelField::ABSENT {
        return scratch.of_file(&offset::FILE_OWNER) != 0;
    }
    scratch.of_file(&offset::FILE_OWNER_PID) != 0 || scratch.of_file(&offset::FILE_OWNER_SIGNAL) as u32 != 0
}

/// Another word: each is told from all others, whatever was before.
#[inline(always)]
pub(crate) fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

#[inline(always)]
fn named(scratch: &mut Scratch, mut hash: u64) -> (u32, u64) {
    const NOTHING: (u32, u64) = (covered::NOTHING, 0);
    hash = mix(hash, scratch.of_file(&offset::FILE_POSITION));
    hash = mix(hash, scratch.of_inode(&offset::INODE_SIZE));
    hash = mix(hash, scratch.of_inode(&offset::INODE_MTIME));
    let pair = |high: u64, low: u64| high << 32 | u64::from(low as u32);
    let (nanoseconds, generation) =
        (scratch.of_inode(&offset::INODE_MTIME_NSEC), scratch.of_inode(&offset::INODE_GENERATION));
    hash = mix(hash, pair(nanoseconds, generation));
    let (links, device) = (scratch.of_inode(&offset::INODE_NLINK), scratch.of_inode(&offset::INODE_RDEV));
    hash = mix(hash, pair(links, device));
    hash = mix(hash, scratch.device);

    let (dentry, mount) = (scratch.of_file(&offset::FILE_DENTRY), scratch.of_file(&offset::FILE_MOUNT));
    scratch.names[2] = dentry;
    if !load(&mut scratch.dentry, dentry, DENTRY * 8) {
        return NOTHING;
    }
    hash = mix(hash, loaded_entry(scratch, dentry));
    if scratch.rooted != mount {
        (scratch.rooted, scratch.root) = (mount, read(mount, &offset::MOUNT_ROOT));
    }
    if dentry == scratch.root {
        let (name, is_known) = up_to_root::<32>(dentry, mount);
        return if is_known { (covered::NAMED, mix(hash, name)) } else { NOTHING };
    }
    let parent = scratch.of_entry(&offset::DENTRY_PARENT);
    // Files tend to lie together.
    if scratch.parent != parent || scratch.mount != mount {
        let (name, is_known) = up_to_root::<32>(parent, mount);
        (scratch.parent, scratch.mount, scratch.name, scratch.is_known) = (parent, mount, name, u64::from(is_known));
    }
    if scratch.is_known == 0 { NOTHING } else { (covered::NAMED, mix(hash, scratch.name)) }
}

/// As [`entry`], of the one that was loaded. Short names stand within the structure.
#[inline(always)]
fn loaded_entry(scratch: &Scratch, dentry: u64) -> u64 {
    let name = scratch.of_entry(&offset::DENTRY_NAME);
    let within = name.wrapping_sub(dentry);
    let index = (within / 8) as usize;
    let start = if within % 8 == 0 && index < DENTRY - 1 {
        [word(&scratch.dentry, index), word(&scratch.dentry, index + 1)]
    } else {
        read_at(name)
    };
    let is_removed = scratch.of_entry(&offset::DENTRY_HASHED) == 0;
    let lengths = scratch.of_entry(&offset::DENTRY_HASH_LEN);
    entry_of(dentry, scratch.of_entry(&offset::DENTRY_SEQ) as u32, is_removed, lengths, start)
}

/// A directory entry: itself, its name, and how often it was renamed or removed.
#[inline(always)]
fn entry(dentry: u64) -> u64 {
    let is_removed = read::<u64>(dentry, &offset::DENTRY_HASHED) == 0;
    let start = read_at(read(dentry, &offset::DENTRY_NAME));
    let lengths = read(dentry, &offset::DENTRY_HASH_LEN);
    entry_of(dentry, read(dentry, &offset::DENTRY_SEQ), is_removed, lengths, start)
}

#[inline(always)]
fn entry_of(dentry: u64, renamed: u32, is_removed: bool, lengths: u64, start: [u64; 2]) -> u64 {
    let hash = mix(dentry, u64::from(renamed) << 32 | u64::from(is_removed));
    mix(mix(mix(hash, lengths), start[0]), start[1])
}

/// The path of whatever it is, as one number; 0 if it cannot be told: longer ones than of `DEEPEST` parts and mounts are looked at.
#[inline(never)]
pub(crate) fn path<const DEEPEST: u32>(dentry: u64, mount: u64) -> u64 {
    match up_to_root::<DEEPEST>(dentry, mount) {
        (hash, true) => hash | 1,
        _ => 0,
    }
}

/// The path of a directory, and all mounts of its namespace.
#[inline(never)]
fn up_to_root<const DEEPEST: u32>(dentry: u64, mount: u64) -> (u64, bool) {
    let around = u64::from(offset::MOUNT_OF.load());
    let namespace: u64 = read(mount.wrapping_sub(around), &offset::MOUNT_NS);
    let (mut hash, mut dentry, mut mount) = (read(namespace, &offset::MOUNT_NS_EVENT), dentry, mount);
    for _ in 0..DEEPEST {
        hash = mix(hash, entry(dentry));
        if dentry == read(mount, &offset::MOUNT_ROOT) {
            hash = mix(hash, mount);
            let whole = mount.wrapping_sub(around);
            let parent: u64 = read(whole, &offset::MOUNT_PARENT);
            if parent == whole {
                return (hash, true);
            }
            dentry = read(whole, &offset::MOUNT_POINT);
            mount = parent.wrapping_add(around);
        } else {
            let parent: u64 = read(dentry, &offset::DENTRY_PARENT);
            if parent == dentry {
                // Outside of every mount: its path cannot be told.
                return (0, false);
            }
            dentry = parent;
        }
    }
    (0, false)
}

/// Reads a structure, or its beginning.
#[inline(always)]
pub(crate) fn load<const N: usize>(room: &mut [u64; N], from: u64, size: usize) -> bool {
    // SAFETY: the helper checks the kernel's address, and the buffer has as many bytes.
    from != 0
        && size <= N * 8
        && unsafe { probe_read(room.as_mut_ptr().cast(), size as u32, from as *const core::ffi::c_void) } == 0
}

/// A field, and what stands behind it in its word, of a structure whose beginning was read; 0 if the kernel has no such field.
#[inline(always)]
pub(crate) fn at<const N: usize>(words: &[u64; N], structure: u64, field: &Global<u32>) -> u64 {
    let offset = field.load();
    match words.get(offset as usize / 8) {
        _ if offset == KernelField::ABSENT => 0,
        Some(word) => word >> (offset % 8 * 8),
        None => read_at(structure.wrapping_add(u64::from(offset))),
    }
}

#[inline(always)]
fn word<const N: usize>(words: &[u64; N], index: usize) -> u64 {
    words.get(index).copied().unwrap_or(0)
}

#[inline(always)]
fn anonymous(scratch: &Scratch, hash: u64) -> (u32, u64) {
    const EVENTFD: u64 = u64::from_le_bytes(*b"[eventfd");
    const EPOLL: u64 = u64::from_le_bytes(*b"[eventpo");
    let private = scratch.of_file(&offset::FILE_PRIVATE);
    let name: u64 = read(scratch.of_file(&offset::FILE_DENTRY), &offset::DENTRY_NAME);
    match read_at(name) {
        EVENTFD => {
            let flags: u32 = read(private, &offset::EVENTFD_FLAGS);
            (covered::EVENTFD, mix(mix(hash, read(private, &offset::EVENTFD_COUNT)), u64::from(flags)))
        }
        // Before 6.4 no references were counted.
        EPOLL if offset::EPOLL_REFERENCES.load() != KernelField::ABSENT => {
            (covered::EPOLL, mix(hash, read(private, &offset::EPOLL_BUSY_POLL)))
        }
        _ => (covered::NOTHING, 0),
    }
}

/// A pipe that nothing is in: how much it can hold, and how many readers and writers it has.
#[inline(always)]
fn pipe(scratch: &Scratch, hash: u64) -> (u32, u64) {
    let pipe = scratch.of_file(&offset::FILE_PRIVATE);
    let (head, tail): (u32, u32) = (read(pipe, &offset::PIPE_HEAD), read(pipe, &offset::PIPE_TAIL));
    if pipe == 0 || head != tail {
        return (covered::NOTHING, 0);
    }
    let (readers, writers): (u32, u32) = (read(pipe, &offset::PIPE_READERS), read(pipe, &offset::PIPE_WRITERS));
    let hash = mix(hash, u64::from(readers) << 32 | u64::from(writers));
    (covered::PIPE, mix(hash, u64::from(read::<u32>(pipe, &offset::PIPE_ROOM))))
}

/// All watches of a file by epoll sets, in any order.
#[inline(always)]
fn watches(head: u64) -> u64 {
    /// A file is rarely in more sets.
    const SETS: u32 = 4;
    if head == 0 {
        return 0;
    }
    let (mut node, mut all): (u64, u64) = (read_at(head), 0);
    for _ in 0..SETS {
        if node == 0 {
            return all;
        }
        let item = node.wrapping_sub(u64::from(offset::WATCH_LINK.load()));
        let event: [u32; 3] = read(item, &offset::WATCH_EVENT);
        let number: u32 = read(item, &offset::WATCH_NUMBER);
        let mut one = mix(read(item, &offset::WATCH_SET), u64::from(number) << 32 | u64::from(event[0]));
        one = mix(one, u64::from(event[1]) << 32 | u64::from(event[2]));
        all = all.wrapping_add(one);
        node = read_at(node);
    }
    if node == 0 { all } else { u64::MAX }
}
