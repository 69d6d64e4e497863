//! Names of sockets: paths, and abstract ones that begin with a zero byte.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};

use super::super::{FilePath, not_here, open_again, own_link};
use super::diag::{All, Shown, short_file};
use crate::error::{Error, Result};
use crate::sys::socket;

/// A name.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// As it was given to `bind`.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub bytes: Vec<u8>,
    /// The file that is still there under it.
    pub file: Option<SocketFile>,
}

/// The file of a named socket.
#[derive(serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SocketFile {
    /// Where a relative name begins.
    pub directory: FilePath,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The name of a socket, and whether there is still a file of that name that leads to it. A relative name began where one of
/// the processes was.
pub(super) fn describe(shown: &Shown, pids: impl Iterator<Item = i32>) -> Option<Name> {
    let bytes = shown.name.clone();
    let path = match bytes.first() {
        None => return None,
        Some(0) => return Some(Name { bytes, file: None }),
        Some(_) => Path::new(std::ffi::OsStr::from_bytes(&bytes)),
    };
    let directories: Vec<PathBuf> = if path.is_absolute() {
        vec![PathBuf::from("/")]
    } else {
        pids.filter_map(|pid| crate::procfs::link(pid, "cwd").ok()).collect()
    };
    let file = directories.iter().find_map(|directory| {
        let meta = fs::symlink_metadata(directory.join(path)).ok()?;
        let is_it = meta.file_type().is_socket() && shown.file == Some(short_file(meta.dev(), meta.ino()));
        is_it.then(|| SocketFile {
            directory: FilePath::from(directory.as_path()),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
        })
    });
    Some(Name { bytes, file })
}

impl Name {
    fn path(&self) -> &Path {
        Path::new(std::ffi::OsStr::from_bytes(&self.bytes))
    }

    fn is_abstract(&self) -> bool {
        self.bytes.first() == Some(&0)
    }

    /// Whether it can be had: what is there under it is nothing, or a socket's file that was left behind.
    pub(super) fn check(&self, shown: &All) -> Result<()> {
        let taken = |why: String, todo: &str| Err(not_here(format!("the Unix socket {self}"), why, todo));
        if self.is_abstract() && shown.named(&self.bytes).is_some() {
            return taken("another socket has that name".to_owned(), "end the program that has it");
        }
        let Some(file) = &self.file else { return Ok(()) };
        let path = file.directory.as_path().join(self.path());
        match fs::symlink_metadata(&path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                taken("there is a file of that name that is no socket".to_owned(), "move it away")
            }
            Ok(meta) if shown.has_file(meta.dev(), meta.ino()) => {
                taken("another program's socket has that name".to_owned(), "end that program, or have it use another")
            }
            Ok(_) => Ok(()),
            Err(_) if path.parent().is_some_and(Path::is_dir) => Ok(()),
            Err(e) => taken(format!("its directory cannot be used ({e})"), "make the directory again"),
        }
    }

    /// Gives the name to a socket, with the file that was left behind in the way, where there is one for it now. Gives back
    /// the name under which it can be connected to while what is with it lives.
    pub(in super::super) fn bind(&self, fd: BorrowedFd<'_>) -> Result<Bound> {
        let failed = |e: io::Error| Error::system(format!("naming the Unix socket {self}"), e);
        let Some(file) = &self.file else { return self.bind_apart(fd) };
        let directory = file.directory.as_path();
        let path = directory.join(self.path());
        let (above, name) =
            path.parent().zip(path.file_name()).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        refuse_planted_links(above).map_err(failed)?;
        // From here on by way of the directory itself: others may write to it, and to those above.
        let held = open_again(above, libc::O_PATH | libc::O_DIRECTORY).map_err(failed)?;
        let path = Path::new(&own_link(held.as_raw_fd())).join(name);
        if fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket()) {
            fs::remove_file(&path).map_err(failed)?;
        }
        // From elsewhere only if the name is relative.
        let bound = if self.path().is_absolute() {
            socket::bind(fd, &self.bytes).map_err(io::Error::from)
        } else {
            elsewhere(|| {
                std::env::set_current_dir(directory)?;
                Ok(socket::bind(fd, &self.bytes)?)
            })
        };
        bound.map_err(failed)?;
        // If it is not there, or no socket, somebody has changed the way to it meanwhile.
        let handle = open_again(&path, libc::O_PATH | libc::O_NOFOLLOW).map_err(failed)?;
        if !handle.metadata().map_err(failed)?.file_type().is_socket() {
            return Err(failed(io::Error::other("somebody has put something else in its place")));
        }
        let made = own_link(handle.as_raw_fd());
        chown(&made, Some(file.uid), Some(file.gid)).map_err(failed)?;
        fs::set_permissions(&made, Permissions::from_mode(file.mode)).map_err(failed)?;
        Ok(Bound::Path(handle.into()))
    }

    /// Gives the name to a socket, but no file of that name: it is bound in a directory that is thrown away.
    pub(super) fn bind_apart(&self, fd: BorrowedFd<'_>) -> Result<Bound> {
        let failed = |e: io::Error| Error::system(format!("naming the Unix socket {self}"), e);
        if self.is_abstract() {
            socket::bind(fd, &self.bytes).map_err(|e| failed(e.into()))?;
            return Ok(Bound::Abstract(self.bytes.clone()));
        }
        let root = std::env::temp_dir().join(format!(".cr-{}-name", std::process::id()));
        fs::create_dir(&root).map_err(failed)?;
        let bound = elsewhere(|| {
            std::os::unix::fs::chroot(&root)?;
            std::env::set_current_dir("/")?;
            self.path().parent().map_or(Ok(()), fs::create_dir_all)?;
            socket::bind(fd, &self.bytes)?;
            open_again(self.path(), libc::O_PATH)
        });
        let removed = fs::remove_dir_all(&root);
        let handle = bound.and_then(|handle| removed.map(|()| handle)).map_err(failed)?;
        Ok(Bound::Path(handle.into()))
    }
}

/// Symbolic links on the way to a socket's name are the job's business, as long as root or we have made them: with others, somebody who
/// may write to a directory on the way could have the socket made elsewhere.
fn refuse_planted_links(directory: &Path) -> io::Result<()> {
    let us = nix::unistd::geteuid().as_raw();
    for at in directory.ancestors() {
        let Ok(meta) = fs::symlink_metadata(at) else { continue };
        if meta.is_symlink() && meta.uid() != 0 && meta.uid() != us {
            let what =
                format!("{} is a symbolic link of user {}; put the directory itself there", at.display(), meta.uid());
            return Err(io::Error::other(what));
        }
    }
    Ok(())
}

/// How a named socket can be connected to.
#[derive(Debug)]
pub(in super::super) enum Bound {
    /// By its abstract name.
    Abstract(Vec<u8>),
    /// Through a descriptor of ours for its file, whatever names that has.
    Path(OwnedFd),
}

impl Bound {
    /// The name to connect to, for us and for others who may see our descriptors.
    pub(super) fn address(&self) -> Vec<u8> {
        match self {
            Self::Abstract(bytes) => bytes.clone(),
            Self::Path(handle) => {
                format!("/proc/{}/fd/{}", std::process::id(), handle.as_fd().as_raw_fd()).into_bytes()
            }
        }
    }
}

/// Does something in a thread that may change its directories without changing ours.
fn elsewhere<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            act()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.bytes, f)
    }
}

/// A name as tools show it: `@` for the zero of abstract names.
pub(super) fn shown(bytes: &[u8]) -> String {
    struct Shown<'a>(&'a [u8]);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            show(self.0, f)
        }
    }
    Shown(bytes).to_string()
}

fn show(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match bytes {
        [] => f.write_str("without a name"),
        [0, rest @ ..] => write!(f, "@{}", String::from_utf8_lossy(rest).escape_debug()),
        path => write!(f, "{}", String::from_utf8_lossy(path)),
    }
}
