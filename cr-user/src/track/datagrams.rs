//! What no system call shows of UDP sockets and the like: all that waits in the queue, without taking it out, and what no option
//! shows. See `net/ipv4/udp.c` and `linux/skbuff.h`.
//!
//! A socket has two queues, of which the first is what its readers have set aside. Each datagram is a buffer in the kernel, from which
//! the header of UDP has been taken, though it still lies before the data. What did not fit there is in pages, which cannot be found
//! from here, or in further buffers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::btf::{Btf, BtfError};
use super::hints::HintsError;

/// Most bytes that are read of a queue.
const MOST: usize = 4 << 20;
/// Most buffers that are looked at: a list that does not end is none.
const BUFFERS: usize = 1 << 16;

/// A datagram that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedDatagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// To which address.
    pub to: IpAddr,
    /// How many hops it had left.
    pub hops: u8,
    /// Its type of service.
    pub service: u8,
    /// Of several that came as one (`UDP_GRO`), how many bytes each has but the last; 0 of a single one.
    pub segment: usize,
    /// Its bytes; none, if they cannot be found, or are more than are read.
    pub bytes: Option<Vec<u8>>,
}

/// What no option of a socket shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The number of the interface by which its IPv4 multicasts leave (`IP_MULTICAST_IF`, which shows only an address that need not
    /// be set); 0 for whichever leads there.
    pub multicast_interface: u32,
    /// Whether a program chooses among the sockets that share its port (`SO_ATTACH_REUSEPORT_EBPF`, `_CBPF`).
    pub chooses_by_program: bool,
}

/// Where the fields are in this kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct DatagramLayout {
    file_private: u64,
    socket_sk: u64,
    queue: u64,
    readers_queue: u64,
    next: u64,
    len: u64,
    data_len: u64,
    head: u64,
    data: u64,
    end: u64,
    network_header: u64,
    transport_header: u64,
    fragments: u64,
    fragment_list: u64,
    segment: u64,
    multicast_interface: u64,
    shared_port: u64,
    shared_port_program: u64,
}

impl DatagramLayout {
    pub(super) fn of(kernel: &Btf) -> Result<Self, BtfError> {
        let at = |structure: &str, path: &str| kernel.offset(structure, path).map(u64::from);
        Ok(Self {
            file_private: at("file", "private_data")?,
            socket_sk: at("socket", "sk")?,
            queue: at("sock", "sk_receive_queue")?,
            readers_queue: at("udp_sock", "reader_queue")?,
            next: at("sk_buff", "next")?,
            len: at("sk_buff", "len")?,
            data_len: at("sk_buff", "data_len")?,
            head: at("sk_buff", "head")?,
            data: at("sk_buff", "data")?,
            end: at("sk_buff", "end")?,
            network_header: at("sk_buff", "network_header")?,
            transport_header: at("sk_buff", "transport_header")?,
            fragments: at("skb_shared_info", "nr_frags")?,
            fragment_list: at("skb_shared_info", "frag_list")?,
            segment: at("skb_shared_info", "gso_size")?,
            multicast_interface: at("inet_sock", "mc_index")?,
            shared_port: at("sock", "sk_reuseport_cb")?,
            shared_port_program: at("sock_reuseport", "prog")?,
        })
    }
}

/// A look through pointers.
struct Eye<P> {
    layout: DatagramLayout,
    peek: P,
    /// How many bytes may be read yet.
    left: usize,
}

/// What only the kernel's memory tells of sockets, of each that one of these files (the kernel's addresses) is of.
pub(super) fn hidden(
    files: &[u64],
    layout: DatagramLayout,
    mut peek: impl FnMut(&[u64]) -> Result<Vec<u64>, HintsError>,
) -> Result<Vec<Hidden>, HintsError> {
    // What is nowhere is 0 in the end.
    let mut follow = |places: &[u64], field: u64| {
        let at: Vec<u64> = places.iter().map(|place| if *place == 0 { 0 } else { place + field }).collect();
        peek(&at)
    };
    let sockets = follow(files, layout.file_private)?;
    let sockets = follow(&sockets, layout.socket_sk)?;
    let interfaces = follow(&sockets, layout.multicast_interface)?;
    let shared = follow(&sockets, layout.shared_port)?;
    let programs = follow(&shared, layout.shared_port_program)?;
    let of = |(interface, program): (u64, u64)| Hidden {
        multicast_interface: interface as u32,
        chooses_by_program: program != 0,
    };
    Ok(interfaces.into_iter().zip(programs).map(of).collect())
}

/// What waits in the socket that `file` (the kernel's address) is of, the oldest first. Nobody may read meanwhile.
pub(super) fn queue(
    file: u64,
    layout: DatagramLayout,
    peek: impl FnMut(&[u64]) -> Result<Vec<u64>, HintsError>,
) -> Result<Vec<QueuedDatagram>, HintsError> {
    let mut eye = Eye { layout, peek, left: MOST };
    let socket = eye.word(file + layout.file_private)?;
    let sk = if socket == 0 { 0 } else { eye.word(socket + layout.socket_sk)? };
    if sk == 0 {
        return Err(HintsError::Map { map: "PEEK", why: "a socket cannot be followed".into() });
    }
    let mut all = Vec::new();
    for head in [sk + layout.readers_queue, sk + layout.queue] {
        // The head of a queue begins like a buffer.
        let mut buffer = eye.word(head)?;
        while buffer != 0 && buffer != head && all.len() < BUFFERS {
            all.extend(eye.datagram(buffer)?);
            buffer = eye.word(buffer + layout.next)?;
        }
    }
    Ok(all)
}

impl<P: FnMut(&[u64]) -> Result<Vec<u64>, HintsError>> Eye<P> {
    fn word(&mut self, at: u64) -> Result<u64, HintsError> {
        Ok((self.peek)(&[at])?[0])
    }

    fn bytes(&mut self, at: u64, len: usize) -> Result<Vec<u8>, HintsError> {
        let (first, skip) = (at & !7, (at & 7) as usize);
        let words: Vec<u64> = (0..(skip + len).div_ceil(8)).map(|n| first + 8 * n as u64).collect();
        let bytes = (self.peek)(&words)?.into_iter().flat_map(u64::to_le_bytes);
        Ok(bytes.skip(skip).take(len).collect())
    }

    /// The datagram in a buffer; none, if it is of no version of IP.
    fn datagram(&mut self, buffer: u64) -> Result<Option<QueuedDatagram>, HintsError> {
        let DatagramLayout { head, end, network_header, transport_header, segment, .. } = self.layout;
        let told = (self.peek)(&[head, end, network_header, transport_header].map(|field| buffer + field))?;
        let (head, end) = (told[0], told[1] & 0xffff_ffff);
        let [network, transport] = [told[2], told[3]].map(|word| head + (word & 0xffff));
        let header = self.bytes(network, 40)?;
        let ports = self.bytes(transport, 2)?;
        let segment = (self.word(head + end + segment)? & 0xffff) as usize;
        let port = u16::from_be_bytes([ports[0], ports[1]]);
        let (from, to, hops, service) = match header[0] >> 4 {
            4 => {
                let ip =
                    |at: usize| IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("four")));
                (ip(12), ip(16), header[8], header[1])
            }
            6 => {
                let ip = |at: usize| {
                    IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen")))
                };
                (ip(8), ip(24), header[7], header[0] << 4 | header[1] >> 4)
            }
            _ => return Ok(None),
        };
        let bytes = self.content(buffer, false)?;
        Ok(Some(QueuedDatagram { from: SocketAddr::new(from, port), to, hops, service, segment, bytes }))
    }

    /// The bytes of a buffer and of those that hang on it.
    fn content(&mut self, buffer: u64, hangs: bool) -> Result<Option<Vec<u8>>, HintsError> {
        let DatagramLayout { len, data_len, head, data, end, fragments, fragment_list, next, .. } = self.layout;
        let told = (self.peek)(&[len, data_len, head, data, end].map(|field| buffer + field))?;
        let [len, elsewhere] = [told[0], told[1]].map(|word| (word & 0xffff_ffff) as usize);
        let (head, data, end) = (told[2], told[3], told[4] & 0xffff_ffff);
        let Some(here) = len.checked_sub(elsewhere).filter(|_| len <= self.left) else { return Ok(None) };
        let mut bytes = self.bytes(data, here)?;
        if !hangs {
            self.left -= len;
        }
        if elsewhere > 0 {
            let in_pages = self.word(head + end + fragments)? & 0xff;
            let mut more = self.word(head + end + fragment_list)?;
            if in_pages != 0 || hangs {
                return Ok(None);
            }
            while more != 0 && bytes.len() < len {
                let Some(part) = self.content(more, true)? else { return Ok(None) };
                bytes.extend(part);
                more = self.word(more + next)?;
            }
        }
        Ok((bytes.len() == len).then_some(bytes))
    }
}
