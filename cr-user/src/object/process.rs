//! The process itself: who it is, where its memory areas are, where it stands in the file system, and its knobs.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::errno::Errno;

use crate::error::{Error, Refusal, Result};
use crate::family::Sharing;
use crate::image::RecordKind;
use crate::object::memory::Mapping;
use crate::object::memory::advice;
use crate::object::memory::backing::FileStamp;
use crate::object::records::Sound;
use crate::procfs::{self, Status};
use crate::remote::{Answers, Call, Questions};
use crate::sys::{PAGE, task, vm};

/// The record of a process.
pub const KIND: RecordKind = RecordKind { id: 1, version: 2, name: "process" };

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Process {
    /// Its pid, as the controller saw it.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// The signal that its parent gets when it ends; 0 for none.
    pub exit_signal: i32,
    /// What it shares with its parent.
    pub sharing: Sharing,
    /// The arguments that it was started with, separated by zero bytes.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub command_line: Vec<u8>,
    /// Its executable.
    pub exe: FileStamp,
    /// Its working directory, as the controller saw it.
    pub cwd: String,
    /// Its root directory, as the controller saw it.
    pub root: String,
    /// Its file-creation mask.
    pub umask: u32,
    /// Areas of its memory.
    pub layout: Layout,
    /// The kernel's auxiliary vector.
    pub auxv: Vec<u64>,
    /// `personality(2)`.
    pub personality: u32,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: u32,
    /// `PR_GET_MDWE`.
    pub mdwe: u32,
    /// `PR_GET_MEMORY_MERGE`.
    pub memory_merge: bool,
    /// What `mlockall` says of mappings to come: `MCL_FUTURE`, `MCL_ONFAULT`.
    pub lock_future: u32,
    /// Features of the CPU's extended state that the process asked for (`ARCH_GET_XCOMP_PERM`).
    pub xstate_permission: u64,
    /// Soft and hard limits, by resource number.
    pub limits: Vec<(u64, u64)>,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`.
    pub coredump_filter: u32,
    /// The signal by which job control had stopped it; 0 when it was running.
    pub stop_signal: i32,
    /// Its parent has been told of that stop by `wait(2)`.
    pub stop_told: bool,
    /// The system that it ran on.
    pub host: Host,
}

/// Areas of a process's memory (`struct prctl_mm_map`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Layout {
    /// Code.
    pub code: (u64, u64),
    /// Initialised data.
    pub data: (u64, u64),
    /// First byte of the heap, and its current end.
    pub brk: (u64, u64),
    /// Bottom of the main stack.
    pub start_stack: u64,
    /// Arguments.
    pub arg: (u64, u64),
    /// Environment.
    pub env: (u64, u64),
}

/// What must be the same, or be known, where the job is restarted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// Checksum of the vdso: programs keep addresses inside it. 0 when there was none.
    pub vdso: u64,
    /// When the process had started, in clock ticks since boot.
    pub start_time: u64,
}

/// Where the answers to [`ask`] are.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    brk: usize,
    dumpable: usize,
    subreaper: u64,
    thp_disable: usize,
    mdwe: usize,
    memory_merge: usize,
    locked: usize,
    xcomp: u64,
    /// A mapping that was made for us, and what it shows of those to come: see [`Asked::see_locks`].
    ours: u64,
    lock_future: u32,
}

impl Asked {
    /// What `mlockall` said of mappings to come (`MCL_FUTURE`, `MCL_ONFAULT`). No call tells: it shows in the mapping that was just
    /// made for us, as long as that is there; if it is locked, it cannot be invalidated.
    pub fn see_locks(&mut self, pid: i32, answers: &Answers) {
        if answers.outcome(self.locked) != Err(Errno::EBUSY) {
            return;
        }
        let vmas = procfs::smaps(pid).unwrap_or_default();
        let ours = vmas.iter().find(|v| (v.start..v.end).contains(&self.ours));
        let on_fault = ours.is_some_and(|v| v.has("lf"));
        self.lock_future = (libc::MCL_FUTURE | if on_fault { libc::MCL_ONFAULT } else { 0 }) as u32;
    }
}

const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_GET_MEMORY_MERGE: u64 = 68;

const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;

/// Adds this file's questions for the process.
pub fn ask(questions: &mut Questions) -> Asked {
    let (subreaper, xcomp) = (questions.room(4), questions.room(8));
    questions.ask(libc::SYS_prctl, &[libc::PR_GET_CHILD_SUBREAPER as u64, subreaper]);
    questions.ask(libc::SYS_arch_prctl, &[ARCH_GET_XCOMP_PERM, xcomp]);
    Asked {
        brk: questions.ask(libc::SYS_brk, &[0]),
        dumpable: questions.ask(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE as u64]),
        subreaper,
        thp_disable: questions.ask(libc::SYS_prctl, &[libc::PR_GET_THP_DISABLE as u64]),
        mdwe: questions.ask(libc::SYS_prctl, &[PR_GET_MDWE]),
        memory_merge: questions.ask(libc::SYS_prctl, &[PR_GET_MEMORY_MERGE]),
        locked: questions.ask(libc::SYS_msync, &[subreaper & !(PAGE - 1), PAGE, libc::MS_INVALIDATE as u64]),
        xcomp,
        ours: subreaper,
        lock_future: 0,
    }
}

/// What cannot be restored about the process as a whole.
///
/// # Errors
/// When the process is gone.
pub fn refusals(pid: i32) -> Result<Vec<Refusal>> {
    let gone = |e| Error::system(format!("examining pid {pid}"), e);
    let mut refusals = Vec::new();
    let mut refuse = |place: &str, why: String, todo: &str| {
        refusals.push(Refusal { pid, place: place.to_owned(), why, todo: todo.to_owned() });
    };
    for space in ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"] {
        let (theirs, ours) =
            (procfs::link(pid, &format!("ns/{space}")), fs::read_link(format!("/proc/self/ns/{space}")));
        if let (Ok(theirs), Ok(ours)) = (theirs, ours)
            && theirs != ours
        {
            let why = format!("is in another {space} namespace than cr");
            refuse("the process", why, "run cr inside the job's container (nsenter -t PID -a cr …)");
        }
    }
    let places = [("root", "root directory"), ("cwd", "working directory"), ("exe", "executable")];
    for (name, what) in places {
        if let Some(path) = lost_place(pid, name).map_err(gone)? {
            let why = format!("has the {what} {}, which is no longer there", path.display());
            let todo = if name == "exe" { "put it back, or start the job anew" } else { "put it back" };
            refuse("the process", why, todo);
        }
    }
    Ok(refusals)
}

/// Where `/proc/PID/NAME` leads by name, if that is not where it leads.
fn lost_place(pid: i32, name: &str) -> std::io::Result<Option<PathBuf>> {
    /// A running process may change its directory between two looks.
    const LOOKS: usize = 20;
    let place = |m: fs::Metadata| (m.dev(), m.ino());
    let mut lost = None;
    for _ in 0..LOOKS {
        let path = procfs::link(pid, name)?;
        let there = fs::metadata(procfs::path(pid, name));
        // One that was removed is restored with the job's files.
        let removed = there.as_ref().is_ok_and(|m| m.is_dir() && m.nlink() == 0);
        let there = there.map(place);
        if removed && name == "cwd" || there.is_err() || there.ok() == fs::metadata(&path).map(place).ok() {
            return Ok(None);
        }
        lost = Some(path);
    }
    Ok(lost)
}

/// What `/proc` tells of a process and only the process itself, or nobody, changes; and where its own answers are.
#[derive(Clone, Debug)]
pub struct Facts {
    asked: Asked,
    command_line: Vec<u8>,
    limits: Vec<(u64, u64)>,
    auxv: Vec<u64>,
    personality: u32,
    oom_score_adj: i32,
    coredump_filter: u32,
}

impl Facts {
    /// Reads them, of a process that was asked.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read(pid: i32, asked: Asked) -> Result<Self> {
        let read = |name: &str| {
            let path = procfs::path(pid, name);
            procfs::bytes(&path).map_err(|e| Error::system(format!("reading {path}"), e))
        };
        let text = |name: &str| read(name).map(|b| String::from_utf8_lossy(&b).trim().to_owned());
        let words = |bytes: Vec<u8>| {
            bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes"))).collect()
        };
        Ok(Self {
            asked,
            command_line: read("cmdline")?,
            limits: limits(&text("limits")?),
            auxv: words(read("auxv")?),
            personality: u32::from_str_radix(&text("personality")?, 16).unwrap_or(0),
            oom_score_adj: text("oom_score_adj")?.parse().unwrap_or(0),
            coredump_filter: u32::from_str_radix(&text("coredump_filter")?, 16).unwrap_or(0x33),
        })
    }
}

/// What `/proc` shows of a stopped process, and may be something else the next time.
#[derive(Debug)]
pub struct Shown {
    pid: i32,
    stat: Vec<String>,
    /// Of the thread that speaks for it, if that is not its main one: what there is of memory is shown there.
    spoken: Option<Vec<String>>,
    exe: String,
    cwd: String,
    root: String,
}

impl Shown {
    /// Reads it.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read(pid: i32) -> Result<Self> {
        let stat = |tid: i32| procfs::stat(tid).map_err(|e| Error::system(format!("reading /proc/{tid}/stat"), e));
        let path = |name: &str| {
            let link = procfs::link(pid, name).map_err(|e| Error::system(format!("reading /proc/{pid}/{name}"), e))?;
            Ok::<_, Error>(String::from_utf8_lossy(link.as_os_str().as_bytes()).into_owned())
        };
        let voice = procfs::voice(pid);
        let spoken = (voice != pid).then(|| stat(voice)).transpose()?;
        Ok(Self { pid, stat: stat(pid)?, spoken, exe: path("exe")?, cwd: path("cwd")?, root: path("root")? })
    }

    /// What of it is not what [`capture`] would make of another look at the same process.
    pub fn difference(&self, other: &Self) -> Option<String> {
        // Those of proc(5) that are asked for.
        const FIELDS: [usize; 15] = [4, 5, 6, 22, 26, 27, 28, 38, 45, 46, 47, 48, 49, 50, 51];
        let places = [(&self.exe, &other.exe), (&self.cwd, &other.cwd), (&self.root, &other.root)];
        let place = places.into_iter().find(|(a, b)| a != b).map(|(a, b)| format!("{a}, which is {b},"));
        let field = FIELDS.into_iter().find(|n| self.stat.get(n - 3) != other.stat.get(n - 3));
        place.or_else(|| field.map(|n| format!("field {n} of stat")))
    }
}

/// Captures a stopped process. `stop_signal`: job control had stopped it by that before we did. `status` is that of the thread that speaks for it.
///
/// # Errors
/// When the process is gone.
pub fn capture(
    shown: &Shown,
    status: &Status,
    sharing: Sharing,
    stop_signal: Option<i32>,
    facts: &Facts,
    answers: &Answers,
    files: &mut Stamps,
) -> Result<Process> {
    let Shown { pid, stat, spoken, exe, cwd, root } = shown;
    // Numbers are those of proc(5), which counts from 1 and has two fields before the state.
    let pid = *pid;
    let number = |stat: &[String], n: usize| stat.get(n - 3).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    let field = |n: usize| number(stat, n);
    let area = |n: usize| number(spoken.as_ref().unwrap_or(stat), n);
    let asked = facts.asked;
    let has_vdso = facts.auxv.chunks_exact(2).any(|pair| pair[0] == libc::AT_SYSINFO_EHDR && pair[1] != 0);
    Ok(Process {
        pid,
        ppid: field(4) as i32,
        pgid: field(5) as i32,
        sid: field(6) as i32,
        exit_signal: field(38) as i32,
        sharing,
        command_line: facts.command_line.clone(),
        exe: files.of(pid, exe)?,
        cwd: cwd.clone(),
        root: root.clone(),
        umask: u32::from_str_radix(status.get("Umask"), 8).unwrap_or(0o022),
        layout: Layout {
            code: (area(26), area(27)),
            data: (area(45), area(46)),
            brk: (area(47), answers.outcome(asked.brk).unwrap_or(area(47))),
            start_stack: area(28),
            arg: (area(48), area(49)),
            env: (area(50), area(51)),
        },
        auxv: facts.auxv.clone(),
        personality: facts.personality,
        dumpable: answers.outcome(asked.dumpable).unwrap_or(1) as u32,
        child_subreaper: answers.int(asked.subreaper) != 0,
        thp_disable: answers.outcome(asked.thp_disable).unwrap_or(0) as u32,
        mdwe: answers.outcome(asked.mdwe).unwrap_or(0) as u32,
        memory_merge: answers.outcome(asked.memory_merge).unwrap_or(0) != 0,
        lock_future: asked.lock_future,
        xstate_permission: answers.word(asked.xcomp),
        limits: facts.limits.clone(),
        oom_score_adj: facts.oom_score_adj,
        coredump_filter: facts.coredump_filter,
        stop_signal: stop_signal.unwrap_or(0),
        stop_told: stop_signal.is_some() && field(52) == 0,
        host: host(field(22), has_vdso),
    })
}

/// Executables of the job, as they were found in one look at it: most processes have the same few.
#[derive(Debug, Default)]
pub struct Stamps(HashMap<String, FileStamp>);

impl Stamps {
    /// Of the executable of a process, which has that path. (Two that are different do not have one path: the kernel says of the
    /// other one that it is deleted.)
    fn of(&mut self, pid: i32, path: &str) -> Result<FileStamp> {
        if let Some(stamp) = self.0.get(path) {
            return Ok(stamp.clone());
        }
        let meta = fs::metadata(procfs::path(pid, "exe"))
            .map_err(|e| Error::system(format!("examining /proc/{pid}/exe"), e))?;
        let stamp = FileStamp::new(path, &meta);
        self.0.insert(path.to_owned(), stamp.clone());
        Ok(stamp)
    }
}

/// `/proc/PID/limits`: unlike `prlimit(2)` it may be read of another user's process too.
fn limits(text: &str) -> Vec<(u64, u64)> {
    const NAMES: [&str; 16] = [
        "Max cpu time",
        "Max file size",
        "Max data size",
        "Max stack size",
        "Max core file size",
        "Max resident set",
        "Max processes",
        "Max open files",
        "Max locked memory",
        "Max address space",
        "Max file locks",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max realtime timeout",
    ];
    let number = |word: Option<&str>| word.and_then(|w| w.parse().ok()).unwrap_or(u64::MAX);
    NAMES
        .iter()
        .map(|name| {
            let values = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            let mut words = values.split_whitespace();
            (number(words.next()), number(words.next()))
        })
        .collect()
}

/// The system that we are on, and when a process started on it. `has_vdso`: the kernel had given it one.
///
/// # Errors
/// When the process is gone.
fn host(start_time: u64, has_vdso: bool) -> Host {
    static HERE: OnceLock<(String, u64)> = OnceLock::new();
    let (kernel, vdso) = HERE.get_or_init(|| {
        let kernel = procfs::text("/proc/sys/kernel/osrelease").map(|t| t.trim().to_owned()).unwrap_or_default();
        (kernel, vdso_checksum())
    });
    Host { kernel: kernel.clone(), vdso: if has_vdso { *vdso } else { 0 }, start_time }
}

/// Of our own, which is the same for all.
fn vdso_checksum() -> u64 {
    let pid = std::process::id() as i32;
    let vmas = procfs::maps(pid).unwrap_or_default();
    let Some(vdso) = vmas.iter().find(|v| v.name == "[vdso]") else { return 0 };
    let mut bytes = vec![0; vdso.len() as usize];
    let range = vm::Range { start: vdso.start, len: vdso.len() };
    match vm::read(pid, &[range], &mut bytes) {
        Ok(n) if n == bytes.len() => xxhash_rust::xxh3::xxh3_64(&bytes),
        _ => 0,
    }
}

/// Before anything is restored: the machine must have what the process relies on.
///
/// # Errors
/// [`Error::NotHere`] that says what is missing.
pub fn check(process: &Process) -> Result<()> {
    process.exe.check("the executable")?;
    let not_here = |what: String, why: String, todo: &str| Err(Error::NotHere { what, why, todo: todo.to_owned() });
    let here = host(0, true);
    if process.host.vdso != 0 && here.vdso != process.host.vdso {
        let why = format!(
            "it was taken on kernel {}, whose vdso differs from that of {} here",
            process.host.kernel, here.kernel
        );
        return not_here("the checkpoint".to_owned(), why, "restore it on a machine with the same kernel");
    }
    let removed = process.cwd.ends_with(" (deleted)");
    for (path, what) in [(&process.root, "root"), (&process.cwd, "working")] {
        if removed && what == "working" {
            continue;
        }
        if !fs::metadata(path).is_ok_and(|m| m.is_dir()) {
            return not_here(format!("the {what} directory {path}"), "it is not there".to_owned(), "make it again");
        }
    }
    pid_is_free(process.pid)
}

/// Whether a process with that pid can be made.
///
/// # Errors
/// [`Error::NotHere`] that names who has it.
pub fn pid_is_free(pid: i32) -> Result<()> {
    let is_zombie = || Status::read(pid, pid).is_ok_and(|s| s.get("State").starts_with('Z'));
    // Whoever reaps the job that was just killed may take a moment.
    for _ in 0..100 {
        if !is_zombie() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    if let Ok(owner) = fs::read_to_string(format!("/proc/{pid}/comm")) {
        let zombie = is_zombie();
        let state = if zombie { " (it has ended, but its parent has not noticed)" } else { "" };
        let what = format!("pid {pid}");
        let why = format!("the process `{}` has that pid{state}", owner.trim());
        let todo = "end that process first, or restore with --pid-namespace".to_owned();
        return Err(Error::NotHere { what, why, todo });
    }
    Ok(())
}

/// Descriptors that a restored process inherits for [`restore_calls`].
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// Its executable.
    pub exe: i32,
    /// Its working directory.
    pub cwd: i32,
    /// Its root directory.
    pub root: i32,
}

/// Calls that a restored process makes for itself once its memory is there, and the bytes that they read at `at`.
pub fn restore_calls(process: &Process, fds: Inherited, at: u64) -> (Vec<Call>, Vec<u8>) {
    const PR_SET_MM_MAP: u64 = 14;
    let l = &process.layout;
    let auxv_len = process.auxv.len() * 8;
    // `struct prctl_mm_map`, then the auxiliary vector that it points to.
    let map_len = 13 * 8;
    let words = [
        l.code.0,
        l.code.1,
        l.data.0,
        l.data.1,
        l.brk.0,
        l.brk.1,
        l.start_stack,
        l.arg.0,
        l.arg.1,
        l.env.0,
        l.env.1,
        at + map_len,
        auxv_len as u64 | u64::from(fds.exe as u32) << 32,
    ];
    let mut bytes: Vec<u8> = words.iter().chain(&process.auxv).flat_map(|w| w.to_le_bytes()).collect();
    let here = at + bytes.len() as u64;
    bytes.extend_from_slice(b".\0");
    let mut calls = vec![
        Call::new(libc::SYS_fchdir, &[fds.root as u64]),
        Call::new(libc::SYS_chroot, &[here]),
        Call::new(libc::SYS_fchdir, &[fds.cwd as u64]),
        Call::new(libc::SYS_umask, &[u64::from(process.umask)]),
        Call::new(libc::SYS_personality, &[u64::from(process.personality)]),
        Call::new(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as u64, u64::from(process.child_subreaper)]),
    ];
    if !process.sharing.memory {
        calls.push(Call::new(libc::SYS_prctl, &[libc::PR_SET_MM as u64, PR_SET_MM_MAP, at, map_len]));
    }
    if process.thp_disable != 0 {
        let exceptions = u64::from(process.thp_disable & !1);
        calls.push(Call::new(libc::SYS_prctl, &[libc::PR_SET_THP_DISABLE as u64, 1, exceptions]));
    }
    (calls, bytes)
}

/// Calls that a restored process makes when all its mappings stand, and while it still has our privileges.
pub fn memory_calls(process: &Process, mappings: &[Mapping]) -> Vec<Call> {
    let mut calls = Vec::new();
    if process.memory_merge {
        calls.push(Call::new(libc::SYS_prctl, &[PR_SET_MEMORY_MERGE, 1]));
        // That was for all of them, and some had been excepted.
        let excepted = mappings.iter().filter(|m| m.has_own_content() && !m.has(advice::MERGEABLE));
        calls
            .extend(excepted.map(|m| Call::new(libc::SYS_madvise, &[m.start, m.len(), libc::MADV_UNMERGEABLE as u64])));
    }
    if process.lock_future != 0 {
        calls.push(Call::new(libc::SYS_mlockall, &[u64::from(process.lock_future)]));
    }
    calls
}

/// Calls that come after the credentials, which reset what they set.
pub fn late_calls(process: &Process) -> Vec<Call> {
    // 2 (only root may read) can be had, but not asked for: the kernel gives it by itself on a change of user.
    let dumpable = u64::from(process.dumpable == 1);
    let mut calls = vec![Call::new(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, dumpable])];
    if process.mdwe != 0 {
        // Last: it forbids to make memory executable.
        calls.push(Call::new(libc::SYS_prctl, &[PR_SET_MDWE, u64::from(process.mdwe)]));
    }
    calls
}

/// Calls that ask for the CPU features that a program must ask for, before any thread's state is set.
pub fn xstate_calls(process: &Process) -> Vec<Call> {
    const TILE_DATA: u64 = 18;
    if process.xstate_permission >> TILE_DATA & 1 == 0 {
        return Vec::new();
    }
    vec![Call::new(libc::SYS_arch_prctl, &[ARCH_REQ_XCOMP_PERM, TILE_DATA])]
}

/// Sets from outside what can be set from outside. Limits above ours stay ours.
///
/// # Errors
/// When the process is gone, or a knob is refused.
pub fn restore_knobs(process: &Process) -> Result<()> {
    let pid = process.pid;
    for (resource, &(soft, hard)) in process.limits.iter().enumerate() {
        let set = |soft, hard| task::prlimit(pid, resource as u32, Some((soft, hard)));
        let Err(refused) = set(soft, hard) else { continue };
        let (_, have) = task::prlimit(pid, resource as u32, None).map_err(|e| Error::system("reading limits", e))?;
        set(soft.min(have), hard.min(have))
            .map_err(|e| Error::system(format!("setting limit {resource} of pid {pid}"), e))?;
        log::warn!("pid {pid}: limit {resource} is {have} here, not {hard} ({refused})");
    }
    let write = |name: &str, value: String| {
        let path = format!("/proc/{pid}/{name}");
        fs::write(&path, value).map_err(|e| Error::system(format!("writing {path}"), e))
    };
    write("coredump_filter", format!("{:#x}", process.coredump_filter))?;
    if let Err(e) = write("oom_score_adj", process.oom_score_adj.to_string()) {
        // Lowering it takes CAP_SYS_RESOURCE; it only matters once memory has run out.
        log::warn!("pid {pid}: {e}");
    }
    Ok(())
}

impl Sound for Process {
    /// Parents come before their children, so that whoever goes from child to parent comes to an end.
    fn fault_of_all(all: &[Self]) -> Option<String> {
        let all_pids: HashSet<i32> = all.iter().map(|process| process.pid).collect();
        let mut seen = HashSet::new();
        for &Self { pid, ppid, .. } in all {
            if pid <= 0 || !seen.insert(pid) {
                return Some(format!("it names pid {pid}, which is none, or names it twice"));
            }
            if ppid == pid || (all_pids.contains(&ppid) && !seen.contains(&ppid)) {
                return Some(format!("pid {pid} comes before its parent {ppid}"));
            }
        }
        None
    }
}
