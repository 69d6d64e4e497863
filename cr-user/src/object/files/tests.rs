//! Each test looks at a Python process that opens something, and opens it again here.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};

use super::*;
use crate::disk::Disk;
use crate::sys::fd::pidfd_open;

const PRELUDE: &str = "
import os, sys, fcntl, ctypes, threading, socket, select, signal, subprocess, mmap
libc = ctypes.CDLL(None, use_errno=True)
os.closerange(3, 1024) # what whoever runs the tests forgot to close
def wait():
    print('ready', flush=True)
    return sys.stdin.readline()
";

const KEEP: inet::Policy = inet::Policy::Keep;
const BEYOND: Beyond<'_> = Beyond { external: &[], tcp: inet::Plan { policy: KEEP, ends: false }, is_part: true };

/// A process that set something up and waits.
struct Guest {
    child: Child,
    pidfd: OwnedFd,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Guest {
    fn new(script: &str) -> Self {
        Self::with(script, &[])
    }

    /// Runs `script`, which must call `wait()`, with arguments.
    fn with(script: &str, args: &[&Path]) -> Self {
        let mut command = Command::new("python3");
        command.args(["-S", "-c", &format!("{PRELUDE}{script}")]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is needed for this test");
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let pidfd = pidfd_open(child.id() as i32).unwrap();
        let mut guest = Self { child, pidfd, to, from };
        assert_eq!(guest.line(), "ready");
        guest
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn holder(&self) -> Holder<'_> {
        Holder { pid: self.pid(), pidfd: self.pidfd.as_fd(), sharers: Vec::new(), listed: None }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn capture(&self) -> (Files, Vec<ContentSource>) {
        let mut files = Vec::new();
        let mut space_of = |dev, ino| {
            let known = files.iter().position(|f| *f == (dev, ino));
            100 + known.unwrap_or_else(|| {
                files.push((dev, ino));
                files.len() - 1
            }) as u64
        };
        let (files, contents, _) =
            capture(&[self.holder()], &BEYOND, &mut space_of, &mut |all| all, &mut kept::Past::default()).unwrap();
        (files, contents)
    }

    fn refusals(&self) -> Vec<String> {
        let refusals = refusals(&[self.holder()], &BEYOND).unwrap();
        if let Err(Error::Refused(frozen)) =
            capture(&[self.holder()], &BEYOND, &mut |_, _| 0, &mut |all| all, &mut kept::Past::default())
        {
            assert!(frozen.iter().all(|r| refusals.contains(r)), "{frozen:?} but {refusals:?}");
        }
        refusals.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The descriptions without those of 0, 1 and 2.
fn beyond_stdio(files: &Files) -> Vec<(Vec<i32>, &Description)> {
    let all = files.descriptions.iter().enumerate().map(|(i, d)| (numbers(files, i), d));
    all.filter(|(fds, _)| fds[0] > 2).collect()
}

fn numbers(files: &Files, description: usize) -> Vec<i32> {
    files.holders(description).into_iter().map(|(_, fd)| fd).collect()
}

fn table(rows: Vec<Descriptor>) -> Table {
    Table { pids: vec![1], rows }
}

fn no_content(_: u64, _: &File) -> Result<()> {
    panic!("there is nothing to fill")
}

fn flags(fd: impl AsFd) -> i32 {
    fcntl(fd, FcntlArg::F_GETFL).unwrap()
}

fn message<T: fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::NotHere { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn duplicates_share_a_description_and_a_second_open_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b");
    fs::write(&path, "0123456789").unwrap();
    let guest = Guest::with(
        "a = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
os.dup2(a, 40, inheritable=True); os.dup2(a, 41, inheritable=False)
b = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
for fd in a, b: os.lseek(fd, 4, 0)
wait()",
        &[&path],
    );
    assert_eq!(guest.refusals(), [""; 0]);
    let (files, sources) = guest.capture();
    assert!(sources.is_empty());
    let found = beyond_stdio(&files);
    assert_eq!(found.iter().map(|f| f.0.clone()).collect::<Vec<_>>(), [vec![3, 40, 41], vec![4]]);
    let cloexec: Vec<i32> = files.tables[0].rows.iter().filter(|d| d.cloexec).map(|d| d.fd).collect();
    assert_eq!(cloexec, [3, 4, 41]);

    let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&files).unwrap();
    assert_eq!(rkyv::from_bytes::<Files, rkyv::rancor::Error>(&bytes).unwrap(), files);

    assert_eq!(check(&files, FilePolicy::Refuse, KEEP).unwrap(), RollbackPlan::default());
    let opened = open(&files, 40, KEEP, &mut no_content).unwrap();
    assert!(opened.fds.iter().all(|fd| fd.as_raw_fd() >= 42), "the job's own numbers are left free: {opened:?}");
    let description = files.tables[0].rows.iter().find(|d| d.fd == 40).unwrap().description as usize;
    let mut file = File::from(opened.fds[description].try_clone().unwrap());
    assert_eq!(file.stream_position().unwrap(), 4);
    assert_eq!(flags(&file) & (libc::O_ACCMODE | libc::O_APPEND), libc::O_RDWR | libc::O_APPEND);
}

#[test]
fn many_descriptions_of_one_file_are_told_apart() {
    let guest = Guest::new("for fd in [os.open('/etc/passwd', 0) for _ in range(50)]: os.dup2(fd, fd + 100)\nwait()");
    let (files, _) = guest.capture();
    let expected: Vec<Vec<i32>> = (3..53).map(|fd| vec![fd, fd + 100]).collect();
    assert_eq!(beyond_stdio(&files).into_iter().map(|f| f.0).collect::<Vec<_>>(), expected);
}

#[test]
fn calls_fill_the_table_and_close_everything_else() {
    let device = Description::Device(device::Device { minor: 3, flags: libc::O_RDWR });
    let row = |fd, cloexec| Descriptor { fd, cloexec, description: 0 };
    let files = Files {
        descriptions: vec![device],
        tables: vec![table(vec![row(0, false), row(7, true)])],
        ..Files::default()
    };
    let opened = open(&files, 20, KEEP, &mut no_content).unwrap();
    let ours = opened.fds[0].as_raw_fd() as u64;
    let made: Vec<_> =
        calls(&files.tables[0], &opened, &[30]).iter().map(|c| (c.number, c.args[0], c.args[1], c.args[2])).collect();
    let (dup, close) = (libc::SYS_dup3, libc::SYS_close_range);
    let all = [
        (dup, ours, 0, 0),
        (dup, ours, 7, libc::O_CLOEXEC as u64),
        (close, 1, 6, 0),
        (close, 8, 29, 0),
        (close, 31, u64::from(u32::MAX), 0),
    ];
    assert_eq!(made, all);
}

#[test]
fn a_pipes_data_are_copied_not_taken() {
    let mut guest = Guest::new(
        "r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 20); os.set_blocking(r, False)
os.write(w, b'x' * 100_000)
pr, pw = os.pipe2(os.O_DIRECT)
os.write(pw, b'abc'); os.write(pw, b'd' * 5000)
er, ew = os.pipe(); os.write(ew, b'last'); os.close(ew)
copy = os.open(f'/proc/self/fd/{w}', os.O_WRONLY)
nr, nw = os.pipe(); os.write(nw, b'to nobody'); os.close(nr)
wait()
print(len(os.read(r, 1 << 20)), [len(os.read(pr, 1 << 20)) for _ in range(3)], os.read(er, 99), flush=True)
wait()",
    );
    assert_eq!(guest.refusals(), [""; 0]);
    let (files, _) = guest.capture();
    let packets = |p: &pipe::Pipe| (p.capacity, p.packets, p.pieces.iter().map(Vec::len).collect::<Vec<_>>());
    let all: Vec<_> = files.pipes.iter().map(packets).collect();
    assert_eq!(
        all,
        [
            (1 << 20, false, vec![100_000]),
            (65536, true, vec![3, 4096, 904]),
            (65536, false, vec![4]),
            (65536, false, vec![9])
        ]
    );
    writeln!(guest.to.as_mut().unwrap(), "go on").unwrap();
    assert_eq!(guest.line(), "100000 [3, 4096, 904] b'last'", "the job still has its data");
    drop(guest);

    check(&files, FilePolicy::Rollback, KEEP).unwrap();
    let opened = open(&files, 30, KEEP, &mut no_content).unwrap();
    let by_number = |n: i32| {
        let row = files.tables[0].rows.iter().find(|d| d.fd == n).unwrap();
        File::from(opened.fds[row.description as usize].try_clone().unwrap())
    };
    let sizes = |n: i32, count: usize| -> Vec<usize> {
        let mut buffer = vec![0; 1 << 20];
        (0..count).map(|_| by_number(n).read(&mut buffer).unwrap()).collect()
    };
    assert_eq!((flags(by_number(3)), flags(by_number(4))), (libc::O_NONBLOCK, libc::O_WRONLY));
    assert_eq!(sizes(3, 1), [100_000]);
    assert_eq!((flags(by_number(5)), flags(by_number(6))), (0, libc::O_WRONLY | libc::O_DIRECT));
    assert_eq!(sizes(5, 3), [3, 4096, 904]);
    assert_eq!(sizes(7, 2), [4, 0], "the end of a pipe whose writers are gone");
    assert_eq!(flags(by_number(8)), libc::O_WRONLY | 0o100_000, "opened through /proc");
    assert_eq!(fd::readable_bytes(by_number(10).as_fd()), Ok(9));
    assert_eq!(by_number(10).write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE), "nobody reads it");
    by_number(8).write_all(b"more").unwrap();
    assert_eq!(sizes(3, 1), [4], "both writers write into one pipe");
}

#[test]
fn standard_descriptors_from_outside_become_those_of_cr_restore() {
    let mut guest = Guest::new("os.dup2(1, 9)\nwait()\nwait()");
    let (files, _) = guest.capture();
    let stdio = |d: &Description| matches!(d, Description::Stdio(s) if (0..=2).contains(&s.number));
    let two = files.tables[0].rows.iter().find(|d| d.fd == 2).unwrap().description as usize;
    let mine = files.descriptions.iter().enumerate().filter(|(i, _)| *i != two);
    assert_eq!(mine.filter(|(_, d)| stdio(d)).count(), 2, "{files:?}");
    let number = |fd: i32| files.tables[0].rows.iter().find(|d| d.fd == fd).unwrap().description;
    assert_eq!(number(9), number(1));
    // Input that nobody read would be lost. The guest's first wait() takes a line, and so would the next.
    guest.to.as_mut().unwrap().write_all(b"go on\n").unwrap();
    assert_eq!(guest.line(), "ready");
    guest.child.stdin = guest.to.take();
    let stopped = nix::unistd::Pid::from_raw(guest.pid());
    nix::sys::signal::kill(stopped, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // Until it stands still it may take what comes.
    while crate::procfs::stat(guest.pid()).unwrap()[0] != "T" {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    guest.child.stdin.as_mut().unwrap().write_all(b"unread").unwrap();
    let why = guest.refusals();
    assert!(why.len() == 1 && why[0].contains("fd 0 is a pipe from outside the job with 6 unread bytes"), "{why:?}");
}

#[test]
fn a_grown_file_is_cut_back_and_its_tail_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.log");
    let cut = dir.path().join("cut");
    fs::write(&path, "before").unwrap();
    let guest =
        Guest::with("a = os.open(sys.argv[1], os.O_RDWR)\nb = os.open(sys.argv[1], os.O_WRONLY)\nwait()", &[&path]);
    let (files, _) = guest.capture();
    let append = |text: &str| OpenOptions::new().append(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();

    append(" after");
    let refused = message(check(&files, FilePolicy::Refuse, KEEP));
    assert!(refused.contains("out.log") && refused.contains("grew from 6 to 12 bytes"), "{refused}");
    assert_eq!(check(&files, FilePolicy::Keep, KEEP).unwrap().grew, []);
    let plan = check(&files, FilePolicy::Rollback, KEEP).unwrap();
    assert_eq!(plan.grew, [Growth { path: path.clone(), from: 6, to: 12 }], "two descriptions, one file");
    let first = roll_back(&Disk::default(), &plan, &cut, 3).unwrap();
    assert_eq!(first, [Cut { path: path.clone(), bytes: 6, kept_at: cut.join("3-1-out.log") }]);
    assert_eq!(fs::read(&path).unwrap(), b"before");

    append(" again");
    let second = roll_back(&Disk::default(), &check(&files, FilePolicy::Rollback, KEEP).unwrap(), &cut, 3).unwrap();
    assert_eq!(second[0].kept_at, cut.join("3-2-out.log"));
    assert_eq!(fs::read(&first[0].kept_at).unwrap(), b" after");
    assert_eq!(fs::read(&second[0].kept_at).unwrap(), b" again");
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&cut), mode(&second[0].kept_at)), (0o700, 0o600));
    assert_eq!(check(&files, FilePolicy::Rollback, KEEP).unwrap().modified, [path], "its time is not the old one");
}

#[test]
fn no_file_is_cut_when_a_tail_cannot_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    fs::write(&path, "before and after").unwrap();
    fs::write(dir.path().join("cut"), "in the way").unwrap();
    let plan = RollbackPlan { grew: vec![Growth { path: path.clone(), from: 6, to: 16 }], modified: vec![] };
    roll_back(&Disk::default(), &plan, &dir.path().join("cut"), 1).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"before and after");
}

#[test]
fn files_that_shrank_vanished_or_changed_kind_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "0123456789").unwrap();
    let guest = Guest::with("a = os.open(sys.argv[1], os.O_RDONLY)\nwait()", &[&path]);
    let (files, _) = guest.capture();

    fs::write(&path, "0123456789 and more").unwrap();
    assert_eq!(check(&files, FilePolicy::Refuse, KEEP).unwrap(), RollbackPlan::default(), "what is only read may grow");
    fs::write(&path, "9876543210").unwrap();
    assert_eq!(check(&files, FilePolicy::Refuse, KEEP).unwrap().modified, std::slice::from_ref(&path));
    fs::write(&path, "0").unwrap();
    let shrank = message(check(&files, FilePolicy::Keep, KEEP));
    assert!(shrank.contains("data: it had 10 bytes at the checkpoint and has 1 now"), "{shrank}");
    fs::remove_file(&path).unwrap();
    let gone = message(check(&files, FilePolicy::Keep, KEEP));
    assert!(gone.contains("data: it is gone"), "{gone}");
    fs::create_dir(&path).unwrap();
    let kind = message(check(&files, FilePolicy::Keep, KEEP));
    assert!(kind.contains("it is a directory now"), "{kind}");
}

#[test]
fn deleted_files_come_back_without_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scratch");
    let guest = Guest::with(
        "b = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND); a = os.open(sys.argv[1], os.O_RDWR)
os.write(a, b'hello'); os.truncate(a, 1 << 20); os.fchmod(a, 0o400); os.utime(a, (5, 7.5))
os.unlink(sys.argv[1])
c = os.open(os.path.dirname(sys.argv[1]), os.O_TMPFILE | os.O_RDWR, 0o600); os.write(c, b'tmp')
wait()",
        &[&path],
    );
    assert_eq!(guest.refusals(), [""; 0]);
    let (files, sources) = guest.capture();
    let lens: Vec<_> = sources.iter().map(|s| (s.space, s.len)).collect();
    assert_eq!(lens, [(100, 1 << 20), (101, 3)]);
    let mut start = [0; 5];
    sources[0].file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"hello", "readable though the job can only write");
    drop(guest);

    check(&files, FilePolicy::Rollback, KEEP).unwrap();
    let mut filled = Vec::new();
    let opened = open(&files, 30, KEEP, &mut |space, file: &File| {
        filled.push((space, file.metadata().unwrap().len()));
        file.write_all_at(if space == 100 { b"hello" } else { b"tmp" }, 0).unwrap();
        Ok(())
    });
    let opened = opened.unwrap();
    filled.sort_unstable();
    assert_eq!(filled, [(100, 1 << 20), (101, 3)]);
    let file = |n: i32| {
        let row = files.tables[0].rows.iter().find(|d| d.fd == n).unwrap();
        File::from(opened.fds[row.description as usize].try_clone().unwrap())
    };
    let meta = file(4).metadata().unwrap();
    assert_eq!((meta.nlink(), meta.len(), meta.mode() & 0o7777), (0, 1 << 20, 0o400));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (7, 500_000_000));
    assert!(meta.blocks() * 512 < 1 << 16, "the hole is a hole");
    assert_eq!(file(4).stream_position().unwrap(), 5);
    assert_eq!(flags(file(3)) & 3, libc::O_WRONLY);
    file(3).write_all(b"end").unwrap();
    assert_eq!(file(4).metadata().unwrap().len(), (1 << 20) + 3, "one file, two descriptions");
    assert_eq!(opened.by_space(100).map(|f| nix::sys::stat::fstat(f).unwrap().st_ino), Some(meta.ino()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(flags(file(5)) & libc::O_TMPFILE, libc::O_TMPFILE, "F_GETFL tells who made the file");
    // A file made by O_TMPFILE can still be given a name.
    let mut temporary = file(5);
    assert_eq!(temporary.stream_position().unwrap(), 3);
    let name = dir.path().join("named");
    let flags = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
    nix::unistd::linkat(
        nix::fcntl::AT_FDCWD,
        own_link(temporary.as_raw_fd()).as_str(),
        nix::fcntl::AT_FDCWD,
        &name,
        flags,
    )
    .unwrap();
    temporary.write_all(b"!").unwrap();
    assert_eq!(fs::read(name).unwrap(), b"tmp!");
}

#[test]
fn a_deleted_file_whose_directory_is_gone_goes_into_the_one_above() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job/scratch/file");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let guest =
        Guest::with("a = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\nos.unlink(sys.argv[1])\nwait()", &[&path]);
    let (files, _) = guest.capture();
    fs::remove_dir_all(dir.path().join("job")).unwrap();
    let opened = open(&files, 30, KEEP, &mut |_, _| Ok(())).unwrap();
    assert_eq!(
        opened.by_space(100).map(|f| nix::sys::stat::fstat(f).unwrap().st_dev),
        Some(dir.path().metadata().unwrap().dev())
    );
}

#[test]
fn memory_files_keep_name_bytes_and_seals() {
    let guest = Guest::new(
        "a = os.memfd_create('the data', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
os.write(a, b'0123456789'); fcntl.fcntl(a, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
b = os.open(f'/proc/self/fd/{a}', os.O_RDONLY)
c = os.memfd_create('plain', 0)
wait()",
    );
    assert_eq!(guest.refusals(), [""; 0]);
    let (files, sources) = guest.capture();
    assert_eq!(sources.iter().map(|s| (s.space, s.len)).collect::<Vec<_>>(), [(100, 10), (101, 0)]);
    let links = |pid: &str, fds: &[i32]| -> Vec<_> {
        fds.iter().map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap()).collect()
    };
    let before = links(&guest.pid().to_string(), &[3, 4, 5]);
    let mut fill = |space: u64, file: &File| {
        if space == 100 {
            file.write_all_at(b"0123456789", 0).unwrap();
        }
        Ok(())
    };
    let opened = open(&files, 30, KEEP, &mut fill).unwrap();
    let ours: Vec<i32> = [3, 4, 5]
        .iter()
        .map(|n| opened.fds[files.tables[0].rows.iter().find(|d| d.fd == *n).unwrap().description as usize].as_raw_fd())
        .collect();
    assert_eq!(links("self", &ours), before);
    let base = opened.by_space(100).unwrap();
    let seals = || fcntl(base, FcntlArg::F_GET_SEALS).unwrap();
    assert_eq!(seals(), libc::F_SEAL_SHRINK, "the last seal comes when the job is complete");
    opened.settle(&files).unwrap();
    assert_eq!(seals(), libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL);
    assert_eq!(fcntl(opened.by_space(101).unwrap(), FcntlArg::F_GET_SEALS).unwrap(), libc::F_SEAL_SEAL);
    let mut bytes = [0; 10];
    File::from(base.try_clone_to_owned().unwrap()).read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"0123456789");
}

#[test]
fn directories_go_on_where_they_were_read() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..300 {
        fs::write(dir.path().join(format!("file-{n}")), "").unwrap();
    }
    let guest = Guest::with(
        "a = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
buf = ctypes.create_string_buffer(4096); libc.syscall(217, a, buf, 4096)
b = os.open(sys.argv[1], os.O_PATH); c = os.open('/dev/zero', os.O_RDWR); wait()",
        &[dir.path()],
    );
    assert_eq!(guest.refusals(), [""; 0]);
    let (files, _) = guest.capture();
    let found = beyond_stdio(&files);
    let Description::Directory(directory) = found[0].1 else { panic!("{found:?}") };
    assert_ne!(directory.position, 0);
    check(&files, FilePolicy::Rollback, KEEP).unwrap();
    let opened = open(&files, 30, KEEP, &mut no_content).unwrap();
    let index = files.tables[0].rows.iter().find(|d| d.fd == 3).unwrap().description as usize;
    let rest = nix::dir::Dir::from_fd(opened.fds[index].try_clone().unwrap()).unwrap().into_iter().count();
    assert!((1..290).contains(&rest), "{rest} entries are left");
    assert_eq!(found[2].1.path(), Some(Path::new("/dev/zero")));

    drop(opened);
    dir.close().unwrap();
    assert!(message(check(&files, FilePolicy::Rollback, KEEP)).contains("the directory"));
}

#[test]
fn a_terminal_as_standard_descriptors_is_taken_apart() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let script = format!("{PRELUDE}a = os.open(os.ttyname(0), os.O_RDWR | os.O_NOCTTY)\nb = os.dup(2)\nwait()");
    let mut child =
        Command::new("python3").args(["-S", "-c", &script]).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(File::from(pty.master.try_clone().unwrap())).read_line(&mut line).unwrap();
    let pid = child.id() as i32;
    let pidfd = pidfd_open(pid).unwrap();
    let holder = [Holder { pid, pidfd: pidfd.as_fd(), sharers: Vec::new(), listed: None }];
    let outcome = (
        refusals(&holder, &BEYOND),
        capture(&holder, &BEYOND, &mut |_, _| 0, &mut |all| all, &mut kept::Past::default()),
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(line.trim_end(), "ready");
    assert_eq!(outcome.0.unwrap(), []);
    let (files, ..) = outcome.1.unwrap();
    let kinds: Vec<_> = files.descriptions.iter().enumerate().map(|(i, d)| (numbers(&files, i), d.kind())).collect();
    assert_eq!(kinds, [(vec![0], "stdio"), (vec![1, 4], "stdio"), (vec![2], "stdio"), (vec![3], "terminal")]);
}

#[test]
fn what_cannot_be_restored_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    let cases: &[(&str, &str)] = &[
        (
            "fd = libc.inotify_init1(0); libc.inotify_add_watch(fd, os.path.dirname(sys.argv[1]).encode(), 0x100)
open(sys.argv[1] + '.new', 'w')",
            "bytes of events that the job has not read yet",
        ),
        (
            "n = sys.argv[1] + '.gone'; f = open(n, 'w'); fd = libc.inotify_init1(0); libc.inotify_add_watch(fd, n.encode(), 2)
os.unlink(n)",
            "whose path cannot be found",
        ),
        ("fd = libc.fanotify_init(0, 0)", "is a fanotify watch"),
        ("fd = os.pidfd_open(os.getppid())", "which is not of the job"),
        ("fd = os.open('/proc/1/status', 0)", "is a file of /proc that belongs to pid 1"),
        ("fd = os.open('/proc/self/comm', os.O_RDWR)", "is a file of /proc that is open for writing"),
        ("fd = os.open('/proc/self/fdinfo/0', 0)", "of a single thread or descriptor"),
        (
            "e = select.epoll(); fd = e.fileno(); s = libc.signalfd(-1, ctypes.create_string_buffer(b'\\0\\2' + bytes(6)), 0)
signal.pthread_sigmask(signal.SIG_BLOCK, [10]); os.kill(os.getpid(), 10); e.register(s, 1 << 30 | 1); e.poll()",
            "a one-shot watch of fd",
        ),
        (
            "e = select.epoll(); fd = e.fileno(); r, w = os.pipe(); e.register(r, 1)
p = subprocess.Popen(['sleep', '1000'], stdin=r, stdout=subprocess.DEVNULL); os.close(r); os.close(w)",
            "is an epoll set that watches a file, once fd",
        ),
        ("fd = libc.syscall(323, 1)", "is a userfaultfd"),
        (
            "n = os.open('/proc/self/ns/uts', 0); libc.unshare(0x04000000); fd = os.open('/proc/self/ns/uts', 0); libc.setns(n, 0)",
            "is a namespace that no process of the job is in",
        ),
        ("fd = os.open('/sys/kernel', 0)", "is a file of /sys"),
        ("s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); fd = s.fileno()", "MPTCP"),
        (
            "a, b = socket.socketpair(); fd = a.fileno()
p = subprocess.Popen(['sleep', '1000'], stdin=b, stdout=subprocess.DEVNULL); b.close()",
            "(sleep), outside of the job",
        ),
        (
            "a, b = socket.socketpair(); fd = a.fileno(); os.set_inheritable(b.fileno(), True)
p = subprocess.Popen(['sleep', '1000'], stdin=a, stdout=subprocess.DEVNULL)",
            "is a socket that pid",
        ),
        ("fd = os.open(f'/proc/self/fd/{libc.eventfd(0, 0)}', os.O_PATH)", "is an O_PATH descriptor of"),
        (
            "n = sys.argv[1] + '.fifo'; os.mkfifo(n); r = os.open(n, 2); fd = os.open(n, 1); os.write(fd, b'x'); os.close(r)",
            "nobody has open for reading",
        ),
        (
            "n = sys.argv[1] + '.w'; fd = os.open(n, 66); os.unlink(n); fcntl.fcntl(fd, 1024, 1)",
            "holds a write lease on the deleted file",
        ),
        ("fd = os.open('/dev/kmsg', 0)", "is the device /dev/kmsg (1:11)"),
        ("p = ctypes.create_string_buffer(256); fd = libc.syscall(425, 4, p)", "is an io_uring"),
        ("fd, w = os.pipe(); os.close(w); fcntl.fcntl(fd, 8, os.getppid())", "sends signals to process"),
        (
            "p = subprocess.Popen(['sleep', '1000'], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL); fd = p.stdin.fileno()",
            "whose other end is outside the job",
        ),
    ];
    for (setup, expected) in cases {
        fs::write(&path, "").unwrap();
        let script = format!("{setup}\nos.dup2(fd, 77); assert fd >= 0, ctypes.get_errno()\nwait()\n");
        let tail = "if 'p' in dir() and hasattr(p, 'kill'): p.kill()\n";
        let mut guest = Guest::with(&(script + tail), &[&path]);
        let found = guest.refusals();
        let mine = found.iter().find(|r| r.contains("fd 77 "));
        assert!(mine.is_some_and(|r| r.contains(expected) && r.contains("; ")), "{setup}: {found:?}");
        writeln!(guest.to.take().unwrap()).unwrap();
        guest.child.wait().unwrap();
    }
}

#[test]
fn what_two_processes_share_is_found_in_either() {
    // The parent's epoll set watches a pipe that only the child has open now, and a signalfd that both have.
    let mut guest = Guest::new(
        "e = select.epoll(); r, w = os.pipe(); c = libc.eventfd(5, 0); s = libc.signalfd(-1, ctypes.create_string_buffer(8), 0)
e.register(r, 1); e.register(s, 1 | 1 << 31)
go, gone = os.pipe()
child = os.fork()
if child == 0:
    for fd in 0, 1, e.fileno(), gone: os.close(fd)
    os.read(go, 1); os._exit(0)
os.close(r); os.close(go); p = os.pidfd_open(child); m = os.open(f'/proc/{child}/maps', 0)
wait(); print(child, e.fileno(), r, s, p, m, c, flush=True); wait()",
    );
    writeln!(guest.to.as_mut().unwrap()).unwrap();
    let numbers: Vec<i32> = guest.line().split(' ').map(|n| n.parse().unwrap()).collect();
    assert_eq!(guest.line(), "ready");
    let [child, set, pipe, signals, pidfd, maps, counter] = numbers[..] else { panic!("{numbers:?}") };
    let parent = guest.pid();
    let child_fd = pidfd_open(child).unwrap();
    let both = [guest.holder(), Holder { pid: child, pidfd: child_fd.as_fd(), sharers: Vec::new(), listed: None }];
    assert_eq!(refusals(&both, &BEYOND).unwrap(), []);
    let (files, ..) = capture(&both, &BEYOND, &mut |_, _| 0, &mut |all| all, &mut kept::Past::default()).unwrap();
    let of = |pid, fd| {
        let row = files.table_of(pid).unwrap().rows.iter().find(|r| r.fd == fd).unwrap();
        (row.description, &files.descriptions[row.description as usize])
    };
    let Description::Epoll(record) = of(parent, set).1 else { panic!("{:?}", of(parent, set)) };
    let mut watched: Vec<_> = record.watches.iter().map(|w| (w.fd, w.description, w.pid, w.events)).collect();
    watched.sort_unstable();
    let expected = [(pipe, of(child, pipe).0, parent, 0x19), (signals, of(child, signals).0, parent, 1 << 31 | 0x19)];
    assert_eq!(watched, expected);
    assert!(matches!(of(parent, pidfd).1, Description::Pidfd(r) if r.pid == Some(child)));
    assert!(matches!(of(parent, maps).1, Description::Proc(r) if r.pid == Some(child)));
    assert_eq!(of(parent, counter).0, of(child, counter).0);

    check(&files, FilePolicy::Rollback, KEEP).unwrap();
    let opened = open(&files, 30, KEEP, &mut no_content).unwrap();
    let calls = |pid| -> Vec<(i64, u64)> {
        let batches = early_calls(&files, pid, &opened, 0x1000);
        batches.iter().flat_map(|b| &b.calls).map(|c| (c.number, c.args[1 + usize::from(c.args[1] == 1)])).collect()
    };
    let mut numbers: Vec<i32> = calls(parent)
        .chunks(2)
        .map(|pair| {
            assert_eq!((pair[0].0, pair[1].0), (libc::SYS_dup3, libc::SYS_epoll_ctl));
            assert_eq!(pair[0].1, pair[1].1);
            pair[0].1 as i32
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [pipe, signals]);
    assert_eq!(calls(child), []);

    // Without the child, which the parent's set needs; and without the parent, which is no descendant of its child.
    for (alone, fd, why) in [
        (&both[..1], set, format!("which only pid {child} (")),
        (&both[1..], counter, format!("an eventfd that pid {parent} (")),
    ] {
        let found = refusals(alone, &BEYOND).unwrap();
        assert!(found.iter().any(|r| r.place == format!("fd {fd}") && r.why.contains(&why)), "{found:?}");
    }
}

#[test]
fn a_thread_with_descriptors_of_its_own_is_refused() {
    let guest = Guest::new(
        "go = threading.Event()
def f():
    assert libc.unshare(0x400) == 0
    go.set(); threading.Event().wait()
threading.Thread(target=f, daemon=True).start(); go.wait()
wait()",
    );
    let found = guest.refusals();
    assert!(found.len() == 1 && found[0].contains("thread") && found[0].contains("unshare(CLONE_FILES)"), "{found:?}");
}

#[test]
fn a_record_with_a_wild_index_is_an_error() {
    let row = Descriptor { fd: 0, cloexec: false, description: 1 };
    let files = Files { tables: vec![table(vec![row])], ..Files::default() };
    assert!(files.validate().unwrap_err().contains("descriptions"));
}

#[test]
fn no_such_process_is_said() {
    assert!(matches!(
        refusals(&[Holder { pid: i32::MAX, pidfd: io::stdin().as_fd(), sharers: Vec::new(), listed: None }], &BEYOND),
        Err(Error::NoSuchJob { .. })
    ));
}

#[test]
fn another_name_of_a_file_is_found_where_it_is_near() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/b/c")).unwrap();
    fs::create_dir(at("a/b/d")).unwrap();
    fs::write(at("a/b/c/file"), "x").unwrap();
    fs::hard_link(at("a/b/c/file"), at("far")).unwrap();
    let meta = fs::metadata(at("far")).unwrap();
    let other_name = || links::other_name(&at("a/b/c/gone"), meta.dev(), meta.ino());
    assert_eq!(other_name(), Some(at("a/b/c/file")));
    fs::rename(at("a/b/c/file"), at("a/b/d/other")).unwrap();
    assert_eq!(other_name(), Some(at("a/b/d/other")));
    fs::remove_file(at("a/b/d/other")).unwrap();
    assert_eq!(other_name(), None);
}
