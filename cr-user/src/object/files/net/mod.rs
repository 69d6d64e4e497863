//! Sockets that are neither Unix nor TCP ones. They have no other end whose state would have to agree with theirs: a socket is
//! what it is bound and connected to, its options, its groups and its filter, and all of that can be asked and set.
//!
//! | family | kind | restored |
//! |---|---|---|
//! | IPv4, IPv6 | UDP, UDP-Lite ([`udp`]) | bound, connected, with its multicast groups and, if it can be, with what it has not read ([`queue`]) |
//! | IPv4, IPv6 | ping (`SOCK_DGRAM` of ICMP, [`udp`]), raw ([`raw`]) | the same, without what it has not read |
//! | packets of interfaces ([`packet`]) | `SOCK_RAW`, `SOCK_DGRAM` | bound to interface and protocol, without what it has not read; none with rings or fanout |
//! | netlink ([`netlink`]) | route, diag, uevent, generic and the like | with its port and groups; none with a message that it has not read, or a running dump |
//! | all others | | refused by name (`families`) |
//!
//! An interface is recorded by its name. Whatever is not here any more, an address, an interface, a port, is found before
//! anything is made.

mod address;
mod families;
pub mod filters;
pub mod multicast;
pub mod netlink;
pub mod options;
pub mod packet;
pub mod queue;
pub mod raw;
pub mod udp;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use libc::SOL_SOCKET;
use nix::errno::Errno;

use super::inet::options::int;
use super::survey::{self, Group};
use super::{Description, Files, Holder, No, unix};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::fd::{fcntl, pidfd_getfd};
use crate::sys::network::namespace;
use crate::sys::socket::{polled, socket};

/// A socket.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// `AF_*`.
    pub family: i32,
    /// `SOCK_*`.
    pub kind: i32,
    /// Its protocol, as the family numbers them.
    pub protocol: i32,
    /// Status flags (`O_*`).
    pub flags: i32,
    /// User, group and permissions that `fstat` shows.
    pub owner: (u32, u32, u32),
    /// Its options.
    pub options: options::Options,
    /// What it lets in.
    pub filter: Option<filters::Filter>,
    /// Whether something waited to be read.
    pub waiting: bool,
    /// Whether an error waited to be told.
    pub reports: bool,
    /// What its family has besides.
    pub special: Special,
}

/// What differs by family.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Special {
    /// UDP, UDP-Lite, ping, raw.
    Ip(Box<udp::Ip>),
    /// Packets of interfaces.
    Packet(Box<packet::Packet>),
    /// Messages of the kernel.
    Netlink(Box<netlink::Netlink>),
}

/// What a socket is to the job.
pub(super) enum Found {
    /// One that is restored.
    Own(Box<Net>),
    /// The outside's standard input, output or error.
    Standard(i32),
}

/// What the kernel shows of all sockets at once, asked when it is needed.
#[derive(Default)]
pub(super) struct Tables {
    udp: udp::Tables,
    raw: raw::Tables,
    packet: packet::Tables,
    netlink: netlink::Tables,
    /// The job stands still.
    frozen: bool,
}

impl Tables {
    /// `frozen`: the job stands still.
    pub(super) fn new(frozen: bool) -> Self {
        Self { frozen, ..Self::default() }
    }

    /// Says what a socket is, or why it cannot be restored. `standard`: the standard descriptor that refers to it.
    pub(super) fn describe(
        &self,
        holders: &[Holder<'_>],
        group: &Group,
        standard: Option<i32>,
    ) -> std::result::Result<Found, No> {
        let seen = group.first();
        let ours = survey::fetch(holders, seen.pid, seen.fd)
            .map_err(|e| No::new(format!("is a socket that cannot be examined ({e})"), "try again"))?;
        let fd = ours.as_fd();
        // What came with the standard streams stays with whoever started the job.
        if let Some(number) = standard.filter(|_| unix::owner_of(seen.meta.ino(), holders).is_some()) {
            return Ok(Found::Standard(number));
        }
        let [family, kind, protocol] =
            [libc::SO_DOMAIN, libc::SO_TYPE, libc::SO_PROTOCOL].map(|name| int(fd, SOL_SOCKET, name));
        refuse_other_namespace(fd)?;
        let asked = Asked { fd, inode: seen.meta.ino(), family, kind, protocol, frozen: self.frozen };
        let special = match (family, kind, protocol) {
            (libc::AF_INET | libc::AF_INET6, ..) if udp::is_one(&asked) => {
                Special::Ip(Box::new(udp::describe(&asked, &self.udp)?))
            }
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => {
                Special::Ip(Box::new(raw::describe(&asked, &self.udp, &self.raw)?))
            }
            (libc::AF_INET | libc::AF_INET6, ..) => return Err(families::protocol(protocol, kind)),
            (libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_DGRAM, _) => {
                Special::Packet(Box::new(packet::describe(&asked, &self.packet)?))
            }
            (libc::AF_NETLINK, ..) => Special::Netlink(Box::new(netlink::describe(&asked, &self.netlink)?)),
            _ => return Err(families::family(family, kind)),
        };
        let filter = filters::read(fd)?;
        let events = polled(fd, libc::POLLIN);
        Ok(Found::Own(Box::new(Net {
            family,
            kind,
            protocol,
            flags: seen.flags,
            owner: (seen.meta.uid(), seen.meta.gid(), seen.meta.mode() & 0o7777),
            // Of a running job they are not kept.
            options: if self.frozen { options::read(fd) } else { options::Options::default() },
            filter,
            waiting: events & libc::POLLIN != 0,
            reports: events & libc::POLLERR != 0,
            special,
        })))
    }
}

/// A socket that is asked about.
struct Asked<'a> {
    fd: BorrowedFd<'a>,
    inode: u64,
    family: i32,
    kind: i32,
    protocol: i32,
    frozen: bool,
}

/// A socket stays in the network that it was made in, whatever its owner enters.
fn refuse_other_namespace(fd: BorrowedFd<'_>) -> std::result::Result<(), No> {
    let Ok(its) = namespace(fd).and_then(nix::sys::stat::fstat) else { return Ok(()) };
    let Ok(ours) = std::fs::metadata("/proc/thread-self/ns/net") else { return Ok(()) };
    if (its.st_dev, its.st_ino) == (ours.dev(), ours.ino()) {
        return Ok(());
    }
    let why = "is a socket of another network namespace".to_owned();
    Err(No::new(why, "run cr in that network namespace (nsenter -n)"))
}

impl Net {
    /// Its kind in a word.
    pub fn name(&self) -> &'static str {
        match (&self.special, self.kind) {
            (Special::Ip(_), libc::SOCK_RAW) => "raw socket",
            (Special::Ip(_), _) => udp::name(self.protocol),
            (Special::Packet(_), _) => "packet socket",
            (Special::Netlink(_), _) => "netlink socket",
        }
    }

    /// What it is called in messages.
    pub fn what(&self) -> String {
        let name = self.name();
        match &self.special {
            Special::Ip(ip) => format!("the {name} {}", ip.ends()),
            Special::Packet(packet) => format!("the {name} {}", packet.place()),
            Special::Netlink(netlink) => format!("the {name} {}", netlink.place(self.protocol)),
        }
    }

    /// A socket like it, without an address.
    fn new_like(&self) -> Result<OwnedFd> {
        let protocol = if matches!(self.special, Special::Packet(_)) { 0 } else { self.protocol };
        let fd = socket(self.family, self.kind, protocol).map_err(|e| self.cannot_be_made(e))?;
        self.options.set_first(fd.as_fd())?;
        Ok(fd)
    }

    fn cannot_be_made(&self, e: Errno) -> Error {
        let no = |why: String, todo: &str| super::not_here(self.what(), why, todo);
        match e {
            Errno::EACCES | Errno::EPERM
                if self.protocol == libc::IPPROTO_ICMP || self.protocol == libc::IPPROTO_ICMPV6 =>
            {
                no(
                    format!("cr may not make such sockets ({e})"),
                    "run cr as root, and let its group have them: /proc/sys/net/ipv4/ping_group_range",
                )
            }
            Errno::EACCES | Errno::EPERM => no(format!("cr may not make such sockets ({e})"), "run cr as root"),
            Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::ESOCKTNOSUPPORT => {
                no(format!("this kernel has no such sockets ({e})"), "load the kernel's module for them")
            }
            other => self.failed(other),
        }
    }

    fn failed(&self, e: Errno) -> Error {
        Error::system(format!("making {}", self.what()), e)
    }

    /// Makes it, up to where something could be taken or missing, for a look whether that is so.
    fn make_first(&self) -> Result<OwnedFd> {
        self.options.check(&self.what())?;
        let fd = self.new_like()?;
        match &self.special {
            Special::Ip(ip) => {
                ip.memberships.iter().try_for_each(|m| m.check(&self.what()))?;
                ip.bind(self, fd.as_fd())?;
                ip.connect(self, fd.as_fd())?;
            }
            Special::Packet(packet) => packet.check(self)?,
            Special::Netlink(netlink) => netlink.bind(self, fd.as_fd())?,
        }
        Ok(fd)
    }

    /// Makes it, with all that does not depend on whose it is. `earlier` are those that were made before.
    fn make(&self, earlier: &[&Self]) -> Result<OwnedFd> {
        let what = self.what();
        self.options.check(&what)?;
        let fd = self.new_like()?;
        // Nothing comes in that it would not have let in.
        self.filter.iter().try_for_each(|f| f.attach(fd.as_fd()))?;
        match &self.special {
            Special::Ip(ip) => ip.settle(self, fd.as_fd(), earlier)?,
            Special::Packet(_) => {}
            Special::Netlink(netlink) => netlink.bind(self, fd.as_fd())?,
        }
        self.options.set(fd.as_fd(), &what)?;
        match &self.special {
            Special::Ip(ip) => ip.finish(self, fd.as_fd())?,
            Special::Packet(packet) => packet.settle(self, fd.as_fd())?,
            Special::Netlink(netlink) => netlink.join(self, fd.as_fd())?,
        }
        self.filter.iter().try_for_each(|f| f.lock(fd.as_fd()))?;
        Ok(fd)
    }

    /// What comes when all are made: of those that share a port, all must be bound by one user.
    fn own(&self, fd: &OwnedFd) -> Result<()> {
        fcntl(fd.as_fd(), libc::F_SETFL, (self.flags & !libc::O_ASYNC).into()).map_err(|e| self.failed(e))?;
        let (uid, gid, mode) = self.owner;
        std::os::unix::fs::fchown(fd, Some(uid), Some(gid))
            .map_err(|e| Error::system(format!("making {}", self.what()), e))?;
        nix::sys::stat::fchmod(fd, nix::sys::stat::Mode::from_bits_truncate(mode)).map_err(|e| self.failed(e))
    }
}

/// The sockets among the descriptions, with their index.
fn all(files: &Files) -> impl Iterator<Item = (usize, &Net)> {
    files.descriptions.iter().enumerate().filter_map(|(index, d)| match d {
        Description::Net(net) => Some((index, &**net)),
        _ => None,
    })
}

/// A socket of which no option shows everything.
#[derive(Debug)]
pub struct Secretive {
    /// The index of its description.
    description: usize,
    /// A process that has it, and under which number.
    pub at: (i32, i32),
    /// What it is called.
    pub what: String,
    /// Whether it has something to do with multicasts, for all that it shows.
    pub uses_multicasts: bool,
    /// Whether it may share its port (`SO_REUSEPORT`).
    pub shares_port: bool,
}

/// The sockets of which no option shows everything.
pub fn secretive(files: &Files) -> Vec<Secretive> {
    let of = |(description, net): (usize, &Net)| {
        let Special::Ip(ip) = &net.special else { return None };
        let at = files.holders(description).first().copied()?;
        let chose_hops =
            net.options.get(libc::IPPROTO_IP, libc::IP_MULTICAST_TTL).is_some_and(|hops| hops.first() != Some(&1));
        let uses_multicasts = chose_hops || !ip.memberships.is_empty() || net.options.multicast_from != [0; 4];
        Some(Secretive { description, at, what: net.what(), uses_multicasts, shares_port: net.shares_port() })
    };
    // Of a TCP socket only who chooses among those that listen at the same port.
    let of_tcp = |(description, one): (usize, &Description)| {
        let Description::Inet(socket) = one else { return None };
        let at = files.holders(description).first().copied()?;
        let shares = Secretive { description, at, what: socket.what(), uses_multicasts: false, shares_port: true };
        socket.shares_port().then_some(shares)
    };
    all(files).filter_map(of).chain(files.descriptions.iter().enumerate().filter_map(of_tcp)).collect()
}

impl Secretive {
    /// Puts the number of the interface by which its multicasts leave into the record.
    pub fn set(&self, files: &mut Files, number: u32) {
        if let Description::Net(net) = &mut files.descriptions[self.description] {
            net.options.multicast_through = address::interface_name(number);
        }
    }
}

/// Whether a process of the job has a socket about which only the kernel's memory tells all.
pub fn has_any(holders: &[Holder<'_>]) -> bool {
    let is_ip = |fd: BorrowedFd<'_>| {
        let [family, kind, shares] =
            [libc::SO_DOMAIN, libc::SO_TYPE, libc::SO_REUSEPORT].map(|name| int(fd, SOL_SOCKET, name));
        [libc::AF_INET, libc::AF_INET6].contains(&family) && (kind != libc::SOCK_STREAM || shares != 0)
    };
    let is_socket = |pid: i32, fd: i32| {
        procfs::link(pid, &format!("fd/{fd}")).is_ok_and(|l| l.to_string_lossy().starts_with("socket:"))
    };
    holders.iter().any(|h| {
        let mut sockets = procfs::descriptors(h.pid).unwrap_or_default().into_iter().filter(|fd| is_socket(h.pid, *fd));
        sockets.any(|fd| pidfd_getfd(h.pidfd, fd).is_ok_and(|ours| is_ip(ours.as_fd())))
    })
}

/// Whether every address, port and interface can be had: each socket is made on trial, and closed again.
///
/// # Errors
/// [`Error::NotHere`] that names the socket and what it lacks.
pub(super) fn check(files: &Files) -> Result<()> {
    netlink::check(all(files).map(|(_, net)| net))?;
    all(files).try_for_each(|(_, net)| net.make_first().map(drop))
}

/// Makes every socket of the record, by the index of its description. Those that see what others send come last, so that they do
/// not see what we send.
///
/// # Errors
/// [`Error::NotHere`] when an address cannot be had, and [`Error::System`].
pub(super) fn open(files: &Files) -> Result<HashMap<usize, OwnedFd>> {
    let order = |net: &Net| match net.special {
        Special::Ip(_) if net.kind != libc::SOCK_RAW => 0,
        Special::Netlink(_) => 1,
        Special::Ip(_) | Special::Packet(_) => 2,
    };
    let mut sockets: Vec<(usize, &Net)> = all(files).collect();
    sockets.sort_by_key(|(_, net)| order(net));
    let nets: Vec<&Net> = sockets.iter().map(|(_, net)| *net).collect();
    let made = nets.iter().enumerate().map(|(nth, net)| net.make(&nets[..nth])).collect::<Result<Vec<_>>>()?;
    nets.iter().zip(&made).try_for_each(|(net, fd)| net.own(fd))?;
    Ok(sockets.into_iter().zip(made).map(|((index, _), fd)| (index, fd)).collect())
}
