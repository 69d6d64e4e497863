//! What the record of a socket depends on, as one number: every word of its structure.

use aya_ebpf::Global;
use cr_common::covered;

use crate::{
    description::{Scratch, WORDS, at, load, mix},
    kernel::{offset, read},
};

/// Says for which kind of socket the second number is a hash of everything; `hash`: of what it has in common with all files.
#[inline(always)]
pub(crate) fn evidence(scratch: &mut Scratch, mut hash: u64) -> (u32, u64) {
    const NOTHING: (u32, u64) = (covered::NOTHING, 0);
    const AF_UNIX: u16 = 1;
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    const TCP: u16 = 6;
    let socket = scratch.of_file(&offset::FILE_PRIVATE);
    let sock: u64 = read(socket, &offset::SOCKET_SOCK);
    let family: u16 = read(sock, &offset::SOCK_FAMILY);
    let size = match family {
        AF_UNIX => &offset::UNIX_SIZE,
        AF_INET => &offset::TCP_SIZE,
        AF_INET6 => &offset::TCP6_SIZE,
        _ => return NOTHING,
    };
    // Of another protocol less of it is there, and more is read: it is not covered.
    let size = size.load();
    if !load(&mut scratch.words, sock, size as usize) {
        return NOTHING;
    }
    let is_empty = at(&scratch.words, sock, &offset::SOCK_RECEIVED) as u32 == 0
        && at(&scratch.words, sock, &offset::SOCK_ERRORS) as u32 == 0;
    // Of a filter this is only the address, and of a device the name is what is asked for.
    let is_simple = at(&scratch.words, sock, &offset::SOCK_FILTER) == 0
        && at(&scratch.words, sock, &offset::SOCK_DEVICE) as u32 == 0;
    if !is_empty || !is_simple {
        return NOTHING;
    }
    hash = mix(hash, read(socket, &offset::SOCKET_FLAGS));
    if family == AF_UNIX {
        let is_named = at(&scratch.words, sock, &offset::UNIX_ADDRESS) != 0;
        return if is_named { NOTHING } else { (covered::UNIX, mix(hash, all_words(scratch, size))) };
    }
    let pending = |to: &Global<u32>, from: &Global<u32>| {
        at(&scratch.words, sock, to) as u32 != at(&scratch.words, sock, from) as u32
    };
    if at(&scratch.words, sock, &offset::SOCK_PROTOCOL) as u16 != TCP
        || pending(&offset::TCP_WRITTEN, &offset::TCP_ACKNOWLEDGED)
        || pending(&offset::TCP_ARRIVED, &offset::TCP_READ)
    {
        return NOTHING;
    }
    let name: [u64; 2] = read(at(&scratch.words, sock, &offset::TCP_CONGESTION), &offset::CONGESTION_NAME);
    hash = mix(mix(hash, name[0]), name[1]);
    let net = at(&scratch.words, sock, &offset::SOCK_NET);
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
