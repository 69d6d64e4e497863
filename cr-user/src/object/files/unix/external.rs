//! Connections to somebody outside of the job who was named (`--external`): a restore makes them anew.
//!
//! The other end then sees a new client, as after a lost connection: what was under way is gone with the old one. So there may be
//! nothing unread when the checkpoint is taken; what the job had sent, and the other end had not read, is not known. The other end
//! may be one that has not accepted the job yet. In any case somebody must listen under its name: then, and when it is restored.

use std::collections::HashSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use super::super::{Description, Files, not_here};
use super::diag::All;
use super::{Peer, State, Unix, name};
use crate::error::{Error, Result};

/// Who was named: `unix:PATH`, `unix:@ABSTRACT` (the name of the other end, which is its listener's), or `unix:[INODE]` (of the
/// job's own socket, as its descriptors show it); and with `=PATH` or `=@ABSTRACT` whom to connect to instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key {
    which: String,
    instead: Option<String>,
}

const SCHEME: &str = "unix:";

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            format!("`{text}`: write unix:PATH, unix:@NAME or unix:[INODE], and with =PATH whom to connect to instead")
        };
        let key = text.strip_prefix(SCHEME).ok_or_else(wrong)?;
        let (which, instead) = match key.split_once('=') {
            Some((which, instead)) => (which, Some(instead.to_owned())),
            None => (key, None),
        };
        if which.is_empty() || instead.as_ref().is_some_and(String::is_empty) {
            return Err(wrong());
        }
        Ok(Self { which: which.to_owned(), instead })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.which)?;
        self.instead.as_ref().map_or(Ok(()), |instead| write!(f, "={instead}"))
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl Key {
    fn of(peer_name: &[u8]) -> Self {
        Self { which: name::shown(peer_name), instead: None }
    }

    /// Whether it names the other end of the socket `inode` by that end's name, or what was to take its place, or the socket.
    pub(super) fn names(&self, inode: u64, peer_name: &[u8]) -> bool {
        let shown = name::shown(peer_name);
        !peer_name.is_empty() && (self.which == shown || self.instead.as_ref() == Some(&shown))
            || self.which == format!("[{inode}]")
    }
}

/// A connection to somebody outside.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The name of whom to connect to.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub name: Vec<u8>,
    /// Who connects, as the other end is to see it.
    pub connector: Peer,
}

/// How long whoever listens may take until there is room for another client.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has a socket wait no longer than [`PATIENCE`] when it connects. Its own limit is set with its other options afterwards.
pub(super) fn limit_connect(fd: &OwnedFd) -> nix::Result<()> {
    setsockopt(fd, SendTimeout, &TimeVal::seconds(PATIENCE.as_secs() as i64))
}

impl External {
    /// Why it could not be connected.
    pub(super) fn not_connected(&self, failed: Error) -> Error {
        match failed {
            Error::System { source, .. } if source.raw_os_error() == Some(libc::EAGAIN) => {
                let what = format!("the Unix socket {}", name::shown(&self.name));
                let why = format!("as many clients as may wait there do, and none was accepted within {PATIENCE:?}");
                not_here(what, why, "have whoever listens there accept its clients, and restore again")
            }
            other => other,
        }
    }
}

/// The bytes of a name as it is shown.
fn bytes(shown: &str) -> Vec<u8> {
    match shown.strip_prefix('@') {
        Some(rest) => [&[0], rest.as_bytes()].concat(),
        None => shown.as_bytes().to_vec(),
    }
}

/// Everybody outside to whom the job of a record is connected.
pub fn keys(files: &Files) -> Vec<Key> {
    externals(files).map(|(_, external)| Key::of(&external.name)).collect()
}

fn externals(files: &Files) -> impl Iterator<Item = (&Unix, &External)> {
    super::all(files).filter_map(|(_, socket)| match &socket.state {
        State::External(external) => Some((socket, external)),
        _ => None,
    })
}

/// Has the job connect to those who were named instead of whom it was connected to. With `strict`, each of these must be found:
/// without, the keys are those of the whole job, which may have closed some of its connections.
///
/// # Errors
/// [`Error::NotHere`] when a key names nobody.
pub fn redirect(files: &mut Files, keys: &[Key], strict: bool) -> Result<()> {
    for key in keys {
        let Some(instead) = &key.instead else { continue };
        let mut found = false;
        for description in &mut files.descriptions {
            if let Description::Unix(socket) = description
                && let inode = socket.inode
                && let State::External(external) = &mut socket.state
                && key.names(inode, &external.name)
            {
                external.name = bytes(instead);
                found = true;
            }
        }
        if !found {
            let why = "the job has no connection to that one that was taken as external";
            if strict {
                let todo = "give the key that the checkpoint was taken with";
                return Err(not_here(format!("--external {key}"), why.to_owned(), todo));
            }
            log::warn!("--external {key}: {why}");
        }
    }
    Ok(())
}

/// Whether all who are to be connected to are here. Changes nothing.
///
/// # Errors
/// [`Error::NotHere`] that names the one that is not.
pub(super) fn check(files: &Files) -> Result<()> {
    let wanted: HashSet<(i32, &[u8])> = externals(files).map(|(s, external)| (s.kind, &external.name[..])).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let all = All::ask().map_err(|e| Error::system("asking about the sockets of this machine", e))?;
    for (kind, name) in wanted {
        if all.open_to(kind, name).is_none() {
            let shown = name::shown(name);
            let todo = format!("start whoever listens there, or name another: --external {SCHEME}{shown}=PATH");
            let why = format!("nobody listens there for {}, and the job is to be connected to it", of_kind(kind));
            return Err(not_here(format!("the Unix socket {shown}"), why, &todo));
        }
    }
    Ok(())
}

/// What is sent through sockets of a kind.
fn of_kind(kind: i32) -> &'static str {
    match kind {
        libc::SOCK_DGRAM => "datagrams",
        libc::SOCK_SEQPACKET => "packets in sequence",
        _ => "streams",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_the_other_end_or_the_socket() {
        let key = |text: &str| text.parse::<Key>().unwrap();
        assert!(key("unix:/run/a.sock").names(7, b"/run/a.sock"));
        assert!(key("unix:@a").names(7, b"\0a") && !key("unix:@a").names(7, b"@a/"));
        assert!(key("unix:[7]").names(7, b"/run/b.sock") && !key("unix:[7]").names(8, b""));
        let moved = key("unix:/run/a.sock=/run/b.sock");
        assert!(moved.names(7, b"/run/a.sock") && moved.names(7, b"/run/b.sock"));
        assert_eq!(moved.to_string(), "unix:/run/a.sock=/run/b.sock");
        for bad in ["", "/run/a.sock", "unix:", "unix:=b", "unix:a="] {
            assert!(bad.parse::<Key>().is_err(), "{bad}");
        }
    }
}
