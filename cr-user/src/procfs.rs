//! What `/proc` says of a process, parsed. Layouts are those of `Documentation/filesystems/proc.rst`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::RwLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::read;

/// Living threads of processes whose main thread has ended.
static VOICES: RwLock<BTreeMap<i32, i32>> = RwLock::new(BTreeMap::new());

/// The thread that is asked for what all threads of a process have: memory, descriptors, directories. It is the main one,
/// unless that has ended before the others, and has nothing any more.
pub fn voice(pid: i32) -> i32 {
    let known = VOICES.read().ok().and_then(|voices| voices.get(&pid).copied());
    match known {
        None => pid,
        Some(tid) if is_alive(&format!("{pid}/task/{tid}")) => tid,
        // It has ended too, or it was a process of the same number.
        Some(_) => find_voice(pid).unwrap_or(pid),
    }
}

/// Looks which thread that is; none if all have ended.
pub fn find_voice(pid: i32) -> Option<i32> {
    let found = if is_alive(&pid.to_string()) {
        Some(pid)
    } else {
        threads(pid).ok().and_then(|tids| tids.into_iter().find(|tid| is_alive(&format!("{pid}/task/{tid}"))))
    };
    let is_noted = VOICES.read().is_ok_and(|voices| voices.contains_key(&pid));
    let other = found.filter(|tid| *tid != pid);
    if (is_noted || other.is_some())
        && let Ok(mut voices) = VOICES.write()
    {
        match other {
            Some(tid) => drop(voices.insert(pid, tid)),
            None => drop(voices.remove(&pid)),
        }
    }
    found
}

/// Whether a process has ended, or is about to: it was killed, or is at its end by itself, and what it had may be gone already.
pub fn is_ending(pid: i32) -> bool {
    /// Index of the flags among the fields of [`stat`], and `PF_EXITING` in them.
    const FLAGS: (usize, u32) = (6, 0x4);
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let Some(voice) = find_voice(pid) else { return true };
    let flags = stat_of(&format!("{pid}/task/{voice}")).ok().and_then(|s| s.get(FLAGS.0)?.parse::<u32>().ok());
    let is_killed = |s: Status| (s.mask("SigPnd") | s.mask("ShdPnd")) & KILLED != 0;
    flags.is_none_or(|flags| flags & FLAGS.1 != 0) || Status::read(pid, voice).map_or(true, is_killed)
}

fn is_alive(place: &str) -> bool {
    stat_of(place).is_ok_and(|stat| stat.first().is_some_and(|state| !matches!(state.as_str(), "Z" | "X")))
}

/// `/proc/PID/NAME`, as the process's voice has it.
pub fn path(pid: i32, name: &str) -> String {
    format!("/proc/{}/{name}", voice(pid))
}

/// Where a descriptor of a process is to be found: `/proc/PID/fd/FD`.
pub fn fd_path(pid: i32, fd: i32) -> String {
    path(pid, &format!("fd/{fd}"))
}

/// What a process has, which is never nothing: if so, its main thread has ended, and another one is asked.
fn ask<T>(pid: i32, question: impl Fn() -> io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match question() {
        Ok(nothing) if nothing.is_empty() && find_voice(pid).is_some_and(|voice| voice != pid) => question(),
        answer => answer,
    }
}

/// One line of `/proc/PID/maps`, with the flags of `/proc/PID/smaps`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// Past the last byte.
    pub end: u64,
    /// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC` as bits.
    pub prot: i32,
    /// `MAP_SHARED` rather than `MAP_PRIVATE`.
    pub shared: bool,
    /// Offset into the file in bytes.
    pub offset: u64,
    /// Device of the file (major, minor).
    pub dev: (u32, u32),
    /// Inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// Path or bracketed name, unescaped; empty for none.
    pub name: String,
    /// The two-letter `VmFlags` of smaps; empty when only `maps` was read.
    pub flags: Vec<[u8; 2]>,
    /// Bytes of a page of this mapping (2 MiB and up for hugetlb); 0 when only `maps` was read.
    pub page_size: u64,
}

impl Vma {
    /// Whether smaps shows the two-letter flag.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag.as_bytes())
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true: a mapping has at least one page.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// A file of `/proc` as bytes. The kernel makes up the text anew for each read: it is read in few large pieces, and not asked
/// for its size, which is always 0.
///
/// # Errors
/// `ENOENT`/`ESRCH` when what it tells of is gone.
pub fn bytes(path: &str) -> io::Result<Vec<u8>> {
    const PIECE: usize = 8 << 10;
    let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let (mut bytes, mut len) = (vec![0; PIECE], 0);
    loop {
        match read(&file, &mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        // The kernel answers with what fits, in whole records.
        if bytes.len() - len < PIECE / 2 {
            bytes.resize(bytes.len() * 2, 0);
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// A file of `/proc` that the kernel gives whole in one piece where there is room for it.
fn piece(path: &str) -> io::Result<String> {
    const ROOM: usize = 16 << 10;
    let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut bytes = vec![0; ROOM];
    let len = read(&file, &mut bytes)?;
    if len == ROOM {
        return text(path);
    }
    bytes.truncate(len);
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The same as text.
///
/// # Errors
/// `ENOENT`/`ESRCH` when what it tells of is gone.
pub fn text(path: &str) -> io::Result<String> {
    // Names of files need not be UTF-8.
    Ok(String::from_utf8(bytes(path)?).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// All mappings from `/proc/PID/maps` (cheap: no page tables are walked).
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn maps(pid: i32) -> io::Result<Vec<Vma>> {
    ask(pid, || Ok(text(&path(pid, "maps"))?.lines().filter_map(parse_map_line).collect()))
}

/// All mappings with their flags from `/proc/PID/smaps` (walks every page table).
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn smaps(pid: i32) -> io::Result<Vec<Vma>> {
    ask(pid, || read_smaps(pid))
}

fn read_smaps(pid: i32) -> io::Result<Vec<Vma>> {
    let mut vmas: Vec<Vma> = Vec::new();
    for line in text(&path(pid, "smaps"))?.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(vma) = vmas.last_mut() {
                vma.flags = flags.split_whitespace().filter_map(|f| f.as_bytes().try_into().ok()).collect();
            }
        } else if let Some(size) = line.strip_prefix("KernelPageSize:") {
            if let Some(vma) = vmas.last_mut() {
                vma.page_size = kib(size);
            }
        } else if line.as_bytes().first().is_some_and(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b)) {
            vmas.extend(parse_map_line(line));
        }
    }
    Ok(vmas)
}

fn kib(text: &str) -> u64 {
    text.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

fn parse_map_line(line: &str) -> Option<Vma> {
    let mut rest = line;
    let mut field = || {
        let trimmed = rest.trim_start_matches(' ');
        let (word, tail) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = tail;
        word
    };
    let (start, end) = field().split_once('-')?;
    let perms = field().as_bytes().to_vec();
    let offset = u64::from_str_radix(field(), 16).ok()?;
    let (major, minor) = field().split_once(':')?;
    let inode = field().parse().ok()?;
    let name = unescape(rest.trim_start_matches(' '));
    let bit = |at: usize, set: u8, value: i32| if perms.get(at) == Some(&set) { value } else { 0 };
    Some(Vma {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        prot: bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC),
        shared: perms.get(3) == Some(&b's'),
        offset,
        dev: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        name,
        flags: Vec::new(),
        page_size: 0,
    })
}

/// `/proc` writes newlines in names as `\012`.
pub fn unescape(name: &str) -> String {
    name.replace("\\012", "\n")
}

/// The threads of a process, ascending.
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut tids: Vec<i32> =
        fs::read_dir(format!("/proc/{pid}/task"))?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    if tids.is_empty() { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(tids) }
}

/// Children of every thread of a process.
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn children(pid: i32) -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for tid in threads(pid)? {
        match text(&format!("/proc/{pid}/task/{tid}/children")) {
            Ok(text) => all.extend(text.split_whitespace().filter_map(|w| w.parse::<i32>().ok())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// The lines `Key:\tvalue` of `/proc/PID/task/TID/status`.
#[derive(Clone, Debug)]
pub struct Status {
    text: String,
    /// Of each line, where its key and its value are. A dozen keys are asked for.
    lines: Vec<(Range<usize>, Range<usize>)>,
}

impl Status {
    /// Reads the status of one thread.
    ///
    /// # Errors
    /// `ENOENT`/`ESRCH` when the thread is gone.
    pub fn read(pid: i32, tid: i32) -> io::Result<Self> {
        let text = piece(&format!("/proc/{pid}/task/{tid}/status"))?;
        let mut lines = Vec::with_capacity(64);
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            if let Some(colon) = line.find(':') {
                lines.push((start..start + colon, start + colon + 1..start + line.len()));
            }
            start += line.len();
        }
        Ok(Self { text, lines })
    }

    /// The value behind `key`, trimmed; empty when the kernel does not print it.
    pub fn get(&self, key: &str) -> &str {
        let found = self.lines.iter().find(|(name, _)| self.text[name.clone()] == *key);
        found.map_or("", |(_, value)| self.text[value.clone()].trim())
    }

    /// The decimal numbers behind `key`.
    pub fn numbers(&self, key: &str) -> Vec<u32> {
        self.get(key).split_whitespace().filter_map(|w| w.parse().ok()).collect()
    }

    /// The hexadecimal mask behind `key`.
    pub fn mask(&self, key: &str) -> u64 {
        u64::from_str_radix(self.get(key), 16).unwrap_or(0)
    }
}

/// The fields of `/proc/PID/stat` behind the command's name: index 0 is the state.
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn stat(pid: i32) -> io::Result<Vec<String>> {
    stat_of(&pid.to_string())
}

fn stat_of(place: &str) -> io::Result<Vec<String>> {
    let text = piece(&format!("/proc/{place}/stat"))?;
    let tail = text.rsplit_once(')').map_or("", |(_, t)| t);
    Ok(tail.split_whitespace().map(str::to_owned).collect())
}

/// When the process started, in clock ticks since boot: with the pid it names one process for good.
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn start_time(pid: i32) -> io::Result<u64> {
    // Field 22 of proc(5); the state is field 3.
    stat(pid)?.get(19).and_then(|v| v.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Every process, ours included: `cr` may itself hold something of the job.
pub fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
}

/// Numbers that no task has at the moment, those above `after` first.
pub fn spare_pids(after: i32) -> impl Iterator<Item = i32> {
    /// Below it, numbers are given out once, when the machine starts.
    const RESERVED: i32 = 300;
    let end = text("/proc/sys/kernel/pid_max").ok().and_then(|t| t.trim().parse().ok()).unwrap_or(32768);
    let after = after.clamp(RESERVED, end);
    let is_taken = |n: i32| fs::exists(format!("/proc/{n}")).unwrap_or(true);
    (after + 1..end).chain(RESERVED + 1..after).filter(move |n| !is_taken(*n))
}

/// A process for a sentence: `pid 812 (bash)`.
pub fn who(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("pid {pid} ({})", name.trim_end())
}

/// The parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    stat(pid).ok()?.get(1)?.parse().ok()
}

/// The process that a thread is of.
pub fn thread_leader(tid: i32) -> Option<i32> {
    Status::read(tid, tid).ok()?.get("Tgid").parse().ok()
}

/// Device (`major:minor`) and path of everything that is mounted, unescaped.
pub fn mount_points() -> Vec<(String, PathBuf)> {
    let parse = |line: &str| {
        let mut words = line.split(' ').skip(2);
        let (device, _, path) = (words.next()?, words.next()?, words.next()?);
        let path = path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        Some((device.to_owned(), PathBuf::from(path)))
    };
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().filter_map(parse).collect()
}

/// The descriptors of a process, ascending.
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn descriptors(pid: i32) -> io::Result<Vec<i32>> {
    ask(pid, || {
        let mut fds: Vec<i32> =
            fs::read_dir(path(pid, "fd"))?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
        fds.sort_unstable();
        Ok(fds)
    })
}

/// What `/proc/PID/NAME` links to.
///
/// # Errors
/// `ENOENT`/`ESRCH` when the process is gone.
pub fn link(pid: i32, name: &str) -> io::Result<PathBuf> {
    fs::read_link(path(pid, name))
}

/// Whether somebody has a write lease on the file with device `dev` and inode `ino`: to open it, if only for reading, would
/// break it.
pub fn has_write_lease(dev: u64, ino: u64) -> bool {
    let place = format!("{:02x}:{:02x}:{ino}", libc::major(dev), libc::minor(dev));
    let is_it = |l: &str| {
        let words: Vec<&str> = l.split_whitespace().collect();
        words.contains(&"LEASE") && words.contains(&"WRITE") && words.contains(&place.as_str())
    };
    text("/proc/locks").is_ok_and(|t| t.lines().any(is_it))
}

/// A value behind `key:` in `/proc/PID/fdinfo/FD`.
///
/// # Errors
/// `ENOENT` when the descriptor is gone.
pub fn fdinfo(pid: i32, fd: i32) -> io::Result<FdInfo> {
    let text = piece(&path(pid, &format!("fdinfo/{fd}")))?;
    let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map_or("", str::trim);
    Ok(FdInfo {
        position: value("pos:").parse().unwrap_or(0),
        flags: i32::from_str_radix(value("flags:"), 8).unwrap_or(0),
        locks: text.lines().filter_map(|l| l.strip_prefix("lock:")).map(|l| l.trim().to_owned()).collect(),
    })
}

/// What the time namespace of a process (`self`, or a number) adds to `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`, in nanoseconds;
/// nothing where the kernel has none.
pub fn clock_offsets(process: &str) -> [i64; 2] {
    let text = text(&format!("/proc/{process}/timens_offsets")).unwrap_or_default();
    ["monotonic", "boottime"].map(|clock| {
        let line = text.lines().find(|l| l.starts_with(clock)).unwrap_or_default();
        let mut numbers = line.split_whitespace().skip(1).filter_map(|w| w.parse::<i64>().ok());
        numbers.next().unwrap_or(0) * 1_000_000_000 + numbers.next().unwrap_or(0)
    })
}

/// What `/proc/PID/fdinfo/FD` says of every kind of file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset in bytes.
    pub position: i64,
    /// Open flags, with `O_CLOEXEC` for the descriptor's own flag.
    pub flags: i32,
    /// Locks that were taken through it: what stands behind `lock:`.
    pub locks: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_parsed_with_spaces_in_its_path() {
        let vma =
            parse_map_line("7f0000000000-7f0000003000 rw-s 00001000 fe:02 42      /tmp/a b\\012c (deleted)").unwrap();
        assert_eq!((vma.start, vma.end, vma.offset), (0x7f00_0000_0000, 0x7f00_0000_3000, 0x1000));
        assert_eq!((vma.prot, vma.shared, vma.dev, vma.inode), (3, true, (0xfe, 2), 42));
        assert_eq!(vma.name, "/tmp/a b\nc (deleted)");
    }

    #[test]
    fn own_mappings_have_flags() {
        let me = std::process::id() as i32;
        assert!(smaps(me).unwrap().iter().any(|v| v.name == "[stack]" && v.has("gd") && v.page_size == 4096));
        let threads = threads(me).unwrap();
        assert!(threads.contains(&me) && threads.is_sorted(), "{threads:?}");
    }
}
