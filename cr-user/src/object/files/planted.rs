//! Somebody who may write to a directory on the way to a job's file puts something else there: a restore keeps away from it. The list
//! is in `docs/threat-model.md`.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::PathBuf;

use super::unix::name::{Name, SocketFile};
use super::*;
use crate::disk::Disk;
use crate::sys::socket;

const GROWN: &[u8] = b"before the checkpoint, and after it";

/// A directory of the job's with a file in it, and one that is nobody's business, with one of the same name.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for directory in ["job", "other"] {
            fs::create_dir(place.at(directory)).unwrap();
            fs::write(place.at(directory).join("file"), GROWN).unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// The job's directory is now a link to the other one.
    fn plant(&self) {
        fs::rename(self.at("job"), self.at("away")).unwrap();
        symlink(self.at("other"), self.at("job")).unwrap();
    }

    /// Nothing has been done in the other directory.
    fn expect_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.at("other")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(fs::read(self.at("other/file")).unwrap(), GROWN);
    }
}

fn us() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

fn told(path: &Path) -> FilePath {
    FilePath::from(path)
}

#[test]
fn a_file_behind_a_link_is_not_opened_and_not_cut() {
    let place = Place::new();
    let regular = regular::Regular {
        path: told(&place.at("job/file")),
        flags: libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC,
        position: 0,
        size: 6,
        mtime: 0,
        mtime_ns: 0,
        mode: 0o644,
        dev: 0,
        ino: 0,
    };
    let mut plan = RollbackPlan::default();
    regular.check(FilePolicy::Rollback, &mut plan).unwrap();
    assert_eq!(plan.grew.len(), 1);
    regular.open().unwrap();
    assert_eq!(fs::read(place.at("job/file")).unwrap(), GROWN, "flags that a file is made with do not count again");

    place.plant();
    for refused in [regular.check(FilePolicy::Rollback, &mut RollbackPlan::default()), regular.open().map(drop)] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("job/file") && said.contains("a symbolic link leads to it now"), "{said}");
    }
    // It was checked before the link was there.
    roll_back(&Disk::default(), &plan, &place.at("cut"), 1).unwrap_err();
    place.expect_untouched();

    // A link as the last part, and one with the file's own name.
    fs::remove_file(place.at("job")).unwrap();
    fs::create_dir(place.at("job")).unwrap();
    symlink(place.at("other/file"), place.at("job/file")).unwrap();
    regular.open().unwrap_err();
    roll_back(&Disk::default(), &plan, &place.at("cut"), 1).unwrap_err();
    place.expect_untouched();
}

#[test]
fn what_has_no_name_is_not_made_behind_a_link() {
    let place = Place::new();
    let (uid, gid) = us();
    let fifo = |path: &Path| fifo::Fifo {
        path: told(path),
        deleted: true,
        mode: 0o600,
        uid,
        gid,
        capacity: 4096,
        packets: false,
        pieces: vec![b"data".to_vec()],
    };
    let directory = |path: &Path| lost::LostDirectory { path: told(path), mode: 0o700, uid, gid, dev: 0, ino: 0 };
    let deleted = |path: &Path, flags| deleted::Deleted {
        space: 1 << 32,
        path: told(path),
        flags,
        position: 0,
        size: 5,
        mode: 0o600,
        uid,
        gid,
        mtime: 0,
        mtime_ns: 0,
        has_links: false,
    };
    let make_all = |path: &str| {
        fifo(&place.at(path)).restore(&[]).unwrap();
        assert_eq!(directory(&place.at(path)).make().unwrap().metadata().unwrap().nlink(), 0);
        for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_TMPFILE] {
            let made = deleted(&place.at(path), flags).make().unwrap();
            let meta = made.file.metadata().unwrap();
            assert_eq!((meta.nlink(), meta.len()), (0, 5));
        }
    };
    make_all("job/gone");
    place.plant();
    for path in ["job/gone", "job/file", "job/deeper/gone", "job/../other/gone"] {
        make_all(path);
        place.expect_untouched();
    }
    // What others have put in the place of what was made is left alone.
    let exchanged = lost::under_free_name(&place.at("away/new"), |path| {
        fs::create_dir(path)?;
        fs::rename(path, place.at("stolen"))?;
        fs::create_dir(path)?;
        let file = open_again(path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW);
        lost::gone(file?)
    });
    assert!(exchanged.unwrap_err().to_string().contains("somebody has put something else in its place"));
}

#[test]
fn a_socket_is_not_named_by_way_of_somebody_elses_link() {
    let place = Place::new();
    let (uid, gid) = us();
    let named = |path: &Path| {
        let file = Some(SocketFile { directory: told(Path::new("/")), mode: 0o640, uid, gid });
        let name = Name { bytes: path.as_os_str().as_bytes().to_vec(), file };
        let socket = socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        name.bind(socket.as_fd()).map(drop)
    };
    named(&place.at("job/socket")).unwrap();
    let meta = fs::symlink_metadata(place.at("job/socket")).unwrap();
    assert!(meta.file_type().is_socket() && meta.permissions().mode() & 0o7777 == 0o640);
    // What is no socket stays.
    named(&place.at("job/file")).unwrap_err();
    assert_eq!(fs::read(place.at("job/file")).unwrap(), GROWN);

    place.plant();
    // A link of our own is the job's business, as /var/run is.
    named(&place.at("job/ours")).unwrap();
    fs::remove_file(place.at("other/ours")).unwrap();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make a link that is somebody else's");
        return;
    }
    lchown(place.at("job"), Some(65534), Some(65534)).unwrap();
    let said = named(&place.at("job/socket")).unwrap_err().to_string();
    assert!(said.contains("is a symbolic link of user 65534"), "{said}");
    place.expect_untouched();
}
