//! Calls of which the kernel notes who made them, made by the process that is to be noted: with the user and groups that it had
//! then, which it gives back at once.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::unistd::{getegid, geteuid, getgroups};

use super::{Crew, Peer};
use crate::error::{Error, Result};
use crate::remote::Call;
use crate::sys::socket;

/// Makes two connected sockets.
pub(super) fn pair(crew: &mut dyn Crew, kind: i32, maker: Option<&Peer>) -> Result<[OwnedFd; 2]> {
    let what = "making a pair of Unix sockets";
    let Some(maker) = maker else { return socket::pair(kind).map_err(|e| Error::system(what, e)) };
    let at = crew.data(maker.pid)?;
    let kind = kind | libc::SOCK_CLOEXEC;
    let call = Call::new(libc::SYS_socketpair, &[libc::AF_UNIX as u64, kind as u64, 0, at]);
    act_as(crew, maker, vec![call], vec![0; 8], what)?;
    let mut numbers = [0; 8];
    crew.read(maker.pid, &mut numbers)?;
    let number = |at: usize| i32::from_ne_bytes(numbers[at..at + 4].try_into().expect("four bytes"));
    let both = [crew.fetch(maker.pid, number(0))?, crew.fetch(maker.pid, number(4))?];
    let close = |n: i32| Call::new(libc::SYS_close, &[n as u64]);
    crew.run(maker.pid, vec![close(number(0)), close(number(4))], &[], what)?;
    Ok(both)
}

/// Has a process listen; we do where nobody is noted.
pub(super) fn listen(crew: &mut dyn Crew, ours: &OwnedFd, who: Option<&Peer>, backlog: u32) -> Result<()> {
    let what = "listening on a Unix socket of the job";
    let Some(who) = who else { return socket::listen(ours, backlog).map_err(|e| Error::system(what, e)) };
    let (mut calls, mut pulled) = (Vec::new(), 0);
    pull(ours.as_raw_fd(), &mut calls, &mut pulled);
    calls.push(Call::new(libc::SYS_listen, &[0, backlog.into()]).first_from(pulled));
    drop_pulled(&mut calls, pulled);
    act_as(crew, who, calls, Vec::new(), what)
}

/// Has a process connect a socket; we do where nobody is noted.
pub(super) fn connect(
    crew: &mut dyn Crew,
    ours: &OwnedFd,
    address: &[u8],
    who: Option<&Peer>,
    what: &str,
) -> Result<()> {
    use std::os::fd::AsFd;
    let Some(who) = who else {
        return socket::connect(ours.as_fd(), address).map_err(|e| Error::system(what, e));
    };
    let bytes = socket::address(address);
    let at = crew.data(who.pid)?;
    let (mut calls, mut pulled) = (Vec::new(), 0);
    pull(ours.as_raw_fd(), &mut calls, &mut pulled);
    calls.push(Call::new(libc::SYS_connect, &[0, at, bytes.len() as u64]).first_from(pulled));
    drop_pulled(&mut calls, pulled);
    act_as(crew, who, calls, bytes, what)
}

fn act_as(crew: &mut dyn Crew, who: &Peer, mut calls: Vec<Call>, mut bytes: Vec<u8>, what: &str) -> Result<()> {
    const KEEP: u64 = u32::MAX as u64;
    /// `SECBIT_NO_SETUID_FIXUP` of `linux/securebits.h`: a change of users leaves the capabilities alone.
    const KEEP_CAPABILITIES: u64 = 1 << 2;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let groups: Vec<u32> =
        getgroups().map_err(|e| Error::system("reading our groups", e))?.iter().map(|g| g.as_raw()).collect();
    let same_groups = groups.iter().all(|g| who.groups.contains(g)) && groups.len() == who.groups.len();
    if (uid, gid) == (who.uid, who.gid) && same_groups {
        return crew.run(who.pid, calls, &bytes, what).map(drop);
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let at = crew.data(who.pid)?;
    let mut put = |groups: &[u32]| {
        let place = at + bytes.len() as u64;
        bytes.extend(groups.iter().flat_map(|g| g.to_ne_bytes()));
        Call::new(libc::SYS_setgroups, &[groups.len() as u64, place])
    };
    let (theirs, ours) = (put(&who.groups), put(&groups));
    let set_user = |uid: u32| Call::new(libc::SYS_setresuid, &[KEEP, uid.into(), KEEP]);
    let set_group = |gid: u32| Call::new(libc::SYS_setresgid, &[KEEP, gid.into(), KEEP]);
    let secure = |bits: u64| Call::new(libc::SYS_prctl, &[libc::PR_SET_SECUREBITS as u64, bits]);
    let bits = crate::sys::process::secure_bits().map_err(|e| Error::system("reading our securebits", e))?;
    let before = vec![secure(bits | KEEP_CAPABILITIES), theirs, set_group(who.gid), set_user(who.uid)];
    for call in &mut calls {
        call.first_from = call.first_from.map(|from| from + before.len());
    }
    let after = [set_user(uid), set_group(gid), ours, secure(bits)];
    crew.run(who.pid, before.into_iter().chain(calls).chain(after).collect(), &bytes, what).map(drop)
}

/// Adds calls that fetch our descriptor `ours`; the result of call `pulled` is then what was fetched.
fn pull(ours: i32, calls: &mut Vec<Call>, pulled: &mut usize) {
    let from = calls.len();
    calls.push(Call::new(libc::SYS_pidfd_open, &[u64::from(std::process::id()), 0]));
    calls.push(Call::new(libc::SYS_pidfd_getfd, &[0, ours as u64, 0]).first_from(from));
    *pulled = from + 1;
}

/// Adds calls that close what [`pull`] needed and fetched.
fn drop_pulled(calls: &mut Vec<Call>, pulled: usize) {
    calls.push(Call::new(libc::SYS_close, &[0]).first_from(pulled));
    calls.push(Call::new(libc::SYS_close, &[0]).first_from(pulled - 1));
}
