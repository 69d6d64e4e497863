//! What the record of an open file description depends on, as one number. The words themselves are taken, not counts of
//! changes: an object that comes to lie where another lay has other words, or is the same to whoever asks.
//!
//! Whatever is not known in full is said not to be covered; then it is looked at.

use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_buf, generated::bpf_probe_read_kernel as probe_read},
    macros::map,
    maps::PerCpuArray,
};
use cr_common::{KernelField, covered};

use crate::kernel::{offset, read};

/// Words of the largest structure that is taken whole (`tcp6_sock` has 2432 bytes in Linux 6.18).
const WORDS: usize = 512;

/// What several descriptions have in common, and room for a structure.
#[repr(C)]
struct Scratch {
    /// The pass that the following is of.
    session: u64,
    /// A directory, the mount that it was reached by, its name as a number, and whether that is known.
    parent: u64,
    mount: u64,
    name: u64,
    is_known: u64,
    /// A network, and its defaults as a number.
    net: u64,
    defaults: u64,
    words: [u64; WORDS],
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Says for which kind of description the second number is a hash of everything.
#[inline(always)]
pub(crate) fn evidence(file: u64, locks: u64, session: u64) -> (u32, u64) {
    const NOTHING: (u32, u64) = (covered::NOTHING, 0);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return NOTHING };
    // SAFETY: the map's value for this CPU, which no other program touches: programs of one kind do not nest.
    let scratch = unsafe { &mut *scratch };
    if scratch.session != session {
        (scratch.session, scratch.parent, scratch.net) = (session, 0, 0);
    }
    if locks != 0 || has_owner(file) {
        return NOTHING;
    }
    let inode: u64 = read(file, &offset::FILE_INODE);
    let super_block: u64 = read(inode, &offset::INODE_SB);
    let magic: u64 = read(super_block, &offset::SUPER_BLOCK_MAGIC);
    let mode: u16 = read(inode, &offset::INODE_MODE);
    let mut hash = u64::from(read::<u32>(file, &offset::FILE_FLAGS)) << 32 | u64::from(mode);
    hash = mix(hash, read(inode, &offset::INODE_INO));
    hash = mix(hash, owner(inode));
    let private: u64 = read(file, &offset::FILE_PRIVATE);
    match magic {
        magic::SOCKETS => socket(scratch, private, hash),
        magic::ANONYMOUS => anonymous(file, private, hash),
        magic::EXT | magic::XFS | magic::BTRFS | magic::TMPFS => named(scratch, file, inode, super_block, hash),
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
}

/// Whether somebody is, or was, to be signalled. Kernels before 6.12 have that within the structure.
#[inline(always)]
fn has_owner(file: u64) -> bool {
    if offset::FILE_OWNER_PID.load() == KernelField::ABSENT {
        return read::<u64>(file, &offset::FILE_OWNER) != 0;
    }
    read::<u64>(file, &offset::FILE_OWNER_PID) != 0 || read::<u32>(file, &offset::FILE_OWNER_SIGNAL) != 0
}

#[inline(always)]
fn owner(inode: u64) -> u64 {
    u64::from(read::<u32>(inode, &offset::INODE_UID)) << 32 | u64::from(read::<u32>(inode, &offset::INODE_GID))
}

/// Another word: each is told from all others, whatever was before.
#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

#[inline(always)]
fn named(scratch: &mut Scratch, file: u64, inode: u64, super_block: u64, mut hash: u64) -> (u32, u64) {
    hash = mix(hash, read(file, &offset::FILE_POSITION));
    hash = mix(hash, read(inode, &offset::INODE_SIZE));
    hash = mix(hash, read(inode, &offset::INODE_MTIME));
    let nanoseconds: u32 = read(inode, &offset::INODE_MTIME_NSEC);
    let generation: u32 = read(inode, &offset::INODE_GENERATION);
    hash = mix(hash, u64::from(nanoseconds) << 32 | u64::from(generation));
    let (links, device): (u32, u32) = (read(inode, &offset::INODE_NLINK), read(inode, &offset::INODE_RDEV));
    hash = mix(hash, u64::from(links) << 32 | u64::from(device));
    hash = mix(hash, u64::from(read::<u32>(super_block, &offset::SUPER_BLOCK_DEV)));

    let (dentry, mount): (u64, u64) = (read(file, &offset::FILE_DENTRY), read(file, &offset::FILE_MOUNT));
    hash = mix(hash, entry(dentry));
    if dentry == read(mount, &offset::MOUNT_ROOT) {
        let (name, is_known) = up_to_root(dentry, mount);
        return if is_known { (covered::NAMED, mix(hash, name)) } else { (covered::NOTHING, 0) };
    }
    let parent: u64 = read(dentry, &offset::DENTRY_PARENT);
    // Files tend to lie together.
    if scratch.parent != parent || scratch.mount != mount {
        let (name, is_known) = up_to_root(parent, mount);
        (scratch.parent, scratch.mount, scratch.name, scratch.is_known) = (parent, mount, name, u64::from(is_known));
    }
    if scratch.is_known == 0 { (covered::NOTHING, 0) } else { (covered::NAMED, mix(hash, scratch.name)) }
}

/// A directory entry: itself, its name, and how often it was renamed or removed.
#[inline(always)]
fn entry(dentry: u64) -> u64 {
    let is_removed = u32::from(read::<u64>(dentry, &offset::DENTRY_HASHED) == 0);
    let mut hash = mix(dentry, u64::from(read::<u32>(dentry, &offset::DENTRY_SEQ)) << 32 | u64::from(is_removed));
    hash = mix(hash, read(dentry, &offset::DENTRY_HASH_LEN));
    let name: u64 = read(dentry, &offset::DENTRY_NAME);
    // SAFETY: the helper checks the address and fails on a bad one.
    let start = unsafe { bpf_probe_read_kernel(name as *const [u64; 2]) }.unwrap_or_default();
    mix(mix(hash, start[0]), start[1])
}

/// The path of a directory, and all mounts of its namespace.
#[inline(never)]
fn up_to_root(dentry: u64, mount: u64) -> (u64, bool) {
    /// Longer paths are looked at.
    const DEEPEST: u32 = 32;
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

#[inline(always)]
fn socket(scratch: &mut Scratch, socket: u64, mut hash: u64) -> (u32, u64) {
    const NOTHING: (u32, u64) = (covered::NOTHING, 0);
    const AF_UNIX: u16 = 1;
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    const TCP: u16 = 6;
    let sock: u64 = read(socket, &offset::SOCKET_SOCK);
    let family: u16 = read(sock, &offset::SOCK_FAMILY);
    let size = match family {
        AF_UNIX => offset::UNIX_SIZE.load(),
        AF_INET => offset::TCP_SIZE.load(),
        AF_INET6 => offset::TCP6_SIZE.load(),
        _ => return NOTHING,
    };
    // Of another protocol less of it is there, and more is read: it is not covered.
    if sock == 0 || !load(scratch, sock, size) {
        return NOTHING;
    }
    let is_empty = word(scratch, &offset::SOCK_RECEIVED) as u32 == 0 && word(scratch, &offset::SOCK_ERRORS) as u32 == 0;
    // Of a filter this is only the address, and of a device the name is what is asked for.
    let is_simple = word(scratch, &offset::SOCK_FILTER) == 0 && word(scratch, &offset::SOCK_DEVICE) as u32 == 0;
    if !is_empty || !is_simple {
        return NOTHING;
    }
    hash = mix(hash, read(socket, &offset::SOCKET_FLAGS));
    if family == AF_UNIX {
        let is_named = word(scratch, &offset::UNIX_ADDRESS) != 0;
        return if is_named { NOTHING } else { (covered::UNIX, mix(hash, all_words(scratch, size))) };
    }
    let pending = |to: &Global<u32>, from: &Global<u32>| word(scratch, to) as u32 != word(scratch, from) as u32;
    if word(scratch, &offset::SOCK_PROTOCOL) as u16 != TCP
        || pending(&offset::TCP_WRITTEN, &offset::TCP_ACKNOWLEDGED)
        || pending(&offset::TCP_ARRIVED, &offset::TCP_READ)
    {
        return NOTHING;
    }
    let name: [u64; 2] = read(word(scratch, &offset::TCP_CONGESTION), &offset::CONGESTION_NAME);
    hash = mix(mix(hash, name[0]), name[1]);
    let net = word(scratch, &offset::SOCK_NET);
    if scratch.net != net {
        (scratch.net, scratch.defaults) = (net, defaults(net));
    }
    (covered::TCP, mix(mix(hash, scratch.defaults), all_words(scratch, size)))
}

/// What options show that were never set.
#[inline(always)]
fn defaults(net: u64) -> u64 {
    let interfaces: u64 = read(net, &offset::NET_INTERFACES);
    let hops: u32 = read(interfaces, &offset::INTERFACES_HOP_LIMIT);
    let mut hash = u64::from(hops) << 32 | u64::from(read::<u8>(net, &offset::NET_TTL));
    hash = mix(hash, u64::from(read::<u32>(net, &offset::NET_KEEPALIVE_TIME)));
    hash = mix(hash, u64::from(read::<u8>(net, &offset::NET_KEEPALIVE_PROBES)));
    hash = mix(hash, u64::from(read::<u32>(net, &offset::NET_KEEPALIVE_INTERVAL)));
    hash = mix(hash, u64::from(read::<u8>(net, &offset::NET_SYN_RETRIES)));
    mix(hash, u64::from(read::<u32>(net, &offset::NET_FIN_TIMEOUT)))
}

/// Reads a structure.
#[inline(always)]
fn load(scratch: &mut Scratch, at: u64, size: u32) -> bool {
    // SAFETY: the helper checks the kernel's address, and the buffer has as many bytes.
    size as usize <= WORDS * 8
        && unsafe { probe_read(scratch.words.as_mut_ptr().cast(), size, at as *const core::ffi::c_void) } == 0
}

/// A field of the structure that was read, and what stands behind it in its word.
#[inline(always)]
fn word(scratch: &Scratch, offset: &Global<u32>) -> u64 {
    let at = offset.load() as usize;
    scratch.words[at / 8 & (WORDS - 1)] >> (at % 8 * 8)
}

/// Every word of the structure that was read. Four numbers side by side, since each waits for its own product only.
#[inline(always)]
fn all_words(scratch: &Scratch, size: u32) -> u64 {
    let mut lanes = [1u64, 2, 3, 4];
    for four in 0..WORDS / 4 {
        if (four as u32 + 1) * 32 > size {
            break;
        }
        for lane in 0..4 {
            lanes[lane] = mix(lanes[lane], scratch.words[four * 4 + lane]);
        }
    }
    // What is left of four; all structures here have whole words.
    let tail = (size as usize / 32 * 4) & (WORDS - 1);
    for word in 0..3 {
        let index = tail + word;
        if index < WORDS && (index as u32 + 1) * 8 <= size {
            lanes[word] = mix(lanes[word], scratch.words[index]);
        }
    }
    mix(mix(mix(lanes[0], lanes[1]), lanes[2]), lanes[3])
}

#[inline(always)]
fn anonymous(file: u64, private: u64, hash: u64) -> (u32, u64) {
    const EVENTFD: u64 = u64::from_le_bytes(*b"[eventfd");
    const EPOLL: u64 = u64::from_le_bytes(*b"[eventpo");
    let dentry: u64 = read(file, &offset::FILE_DENTRY);
    let name: u64 = read(dentry, &offset::DENTRY_NAME);
    let mut start = [0u8; 8];
    // SAFETY: the helper checks the address and fails on a bad one.
    if unsafe { bpf_probe_read_kernel_buf(name as *const u8, &mut start) }.is_err() {
        return (covered::NOTHING, 0);
    }
    match u64::from_le_bytes(start) {
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

/// All watches of a file by epoll sets, in any order.
#[inline(always)]
pub(crate) fn watches(file: u64) -> u64 {
    /// A file is rarely in more sets.
    const SETS: u32 = 4;
    let head: u64 = read(file, &offset::FILE_WATCHES);
    if head == 0 {
        return 0;
    }
    let (mut node, mut all) = (first_word(head), 0u64);
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
        node = first_word(node);
    }
    if node == 0 { all } else { u64::MAX }
}

/// How many references there are to an epoll set.
#[inline(always)]
pub(crate) fn references(file: u64) -> u32 {
    read(read(file, &offset::FILE_PRIVATE), &offset::EPOLL_REFERENCES)
}

#[inline(always)]
fn first_word(at: u64) -> u64 {
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(at as *const u64) }.unwrap_or(0)
}
