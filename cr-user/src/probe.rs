//! What this kernel can do, and what is lost where it cannot: tried out, not guessed from version numbers.

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::netlock;
use crate::procfs::Status;
use crate::sys::{probe, uffd};
use crate::track::hints::Hints;

/// What was found, feature by feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Features {
    /// In the order of their weight.
    pub features: Vec<Feature>,
    /// Which tracker will be used.
    pub tracker: Tracker,
    /// Whether this process is in a pid namespace other than the machine's first.
    pub in_pid_namespace: bool,
}

/// One thing that the kernel may offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What kernel people call it.
    pub name: &'static str,
    /// Whether it works, here and for us.
    pub available: bool,
    /// What it is, or why it does not work.
    pub detail: String,
    /// What cannot be done without.
    pub lost_without: &'static str,
    /// What needs it.
    pub needed_for: Need,
}

/// What needs a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Taking any checkpoint.
    Checkpoint,
    /// Restoring any checkpoint.
    Restore,
    /// Doing it fast, or for some jobs.
    More,
}

/// How written pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracker {
    /// Asynchronous write-protection and `PAGEMAP_SCAN`, with hints from eBPF.
    OracleAndHints,
    /// Asynchronous write-protection and `PAGEMAP_SCAN` alone.
    Oracle,
    /// None: every page is read and compared.
    Compare,
}

impl Tracker {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::OracleAndHints => "userfaultfd write-protection read by PAGEMAP_SCAN, beside eBPF hints",
            Self::Oracle => "userfaultfd write-protection read by PAGEMAP_SCAN",
            Self::Compare => "none: each checkpoint reads all memory and compares it with the one before",
        }
    }
}

impl Features {
    /// Tries everything out. Takes some milliseconds, and a child process that is gone afterwards; the caller must have
    /// one thread only.
    pub fn probe() -> Self {
        let (getfd, kcmp) = probe::descriptors();
        let ptrace = probe::ptrace();
        let attach = ptrace.map(|p| if p.attach { Ok(()) } else { Err(nix::errno::Errno::EPERM) }).and_then(|r| r);
        let rseq = ptrace.and_then(|p| if p.rseq { Ok(()) } else { Err(nix::errno::Errno::EIO) });
        let features = vec![
            tried(
                "ptrace",
                attach,
                "processes can be stopped and examined",
                "no job can be checkpointed or restored",
                Need::Checkpoint,
            ),
            yama(),
            tried("kcmp", kcmp, "open files are told apart", "no job can be checkpointed", Need::Checkpoint),
            tried(
                "pidfd_getfd",
                getfd,
                "descriptors can be taken over from a job",
                "no tracking, and no job can be restored",
                Need::Checkpoint,
            ),
            tried(
                "userfaultfd WP_ASYNC",
                probe::uffd_feature(uffd::FEATURE_WP_ASYNC),
                "writes are noted without stopping the writer (Linux 6.7)",
                "no tracking: each checkpoint reads all memory",
                Need::More,
            ),
            tried(
                "userfaultfd WP_UNPOPULATED",
                probe::uffd_feature(uffd::FEATURE_WP_UNPOPULATED),
                "pages that are not there yet are tracked too (Linux 6.4)",
                "no tracking: each checkpoint reads all memory",
                Need::More,
            ),
            tried(
                "userfaultfd WP_HUGETLBFS_SHMEM",
                probe::uffd_feature(uffd::FEATURE_WP_HUGETLBFS_SHMEM),
                "shared memory and huge pages are tracked too (Linux 5.19)",
                "no tracking: each checkpoint reads all memory",
                Need::More,
            ),
            tried(
                "PAGEMAP_SCAN",
                probe::written_bit(),
                "a test page reads as written when it was, and only then",
                "no tracking: each checkpoint reads all memory",
                Need::More,
            ),
            soft_dirty(),
            tried(
                "map_files",
                mapped_files(),
                "mapped files can be examined",
                "no job can be checkpointed: run cr as root or with CAP_CHECKPOINT_RESTORE",
                Need::Checkpoint,
            ),
            btf(),
            hints(),
            tried(
                "clone3 set_tid",
                probe::set_tid(),
                "processes can be made with their old pids",
                "no job can be restored here: run cr as root or with CAP_CHECKPOINT_RESTORE",
                Need::Restore,
            ),
            tried(
                "PR_SET_MM_MAP",
                probe::set_mm_map(),
                "brk, arguments and environment get back their places",
                "no job can be restored here",
                Need::Restore,
            ),
            tried(
                "ARCH_MAP_VDSO_64",
                probe::map_vdso(),
                "the vdso gets back its place",
                "no job can be restored here",
                Need::Restore,
            ),
            tried(
                "PTRACE_GET_RSEQ_CONFIGURATION",
                rseq,
                "restartable sequences can be read (Linux 5.13)",
                "jobs whose C library uses restartable sequences (glibc 2.35 and later) cannot be restored rightly",
                Need::Checkpoint,
            ),
            tried(
                "PR_TIMER_CREATE_RESTORE_IDS",
                probe::timer_ids(),
                "POSIX timers get back their ids (Linux 6.15)",
                "jobs with POSIX timers may not be restored",
                Need::More,
            ),
            tried(
                "MADV_GUARD_INSTALL",
                probe::guard_pages(),
                "guard pages can be put back (Linux 6.13)",
                "checkpoints of jobs with guard pages, taken elsewhere, cannot be restored here",
                Need::More,
            ),
            nftables(),
            cgroup_freezer(),
        ];
        let has = |name| features.iter().any(|feature| feature.name == name && feature.available);
        let oracle = ["userfaultfd WP_ASYNC", "userfaultfd WP_UNPOPULATED", "userfaultfd WP_HUGETLBFS_SHMEM"];
        let tracker = match oracle.into_iter().all(has) && has("PAGEMAP_SCAN") && has("pidfd_getfd") {
            true if has(BPF) => Tracker::OracleAndHints,
            true => Tracker::Oracle,
            false => Tracker::Compare,
        };
        Self { tracker, in_pid_namespace: in_pid_namespace(), features }
    }

    /// Whether checkpoints can be taken.
    pub fn can_checkpoint(&self) -> bool {
        self.has_all(Need::Checkpoint)
    }

    /// Whether checkpoints can be restored.
    pub fn can_restore(&self) -> bool {
        self.can_checkpoint() && self.has_all(Need::Restore)
    }

    fn has_all(&self, need: Need) -> bool {
        self.features.iter().all(|feature| feature.available || feature.needed_for != need)
    }
}

fn tried(
    name: &'static str,
    outcome: nix::Result<()>,
    what: &str,
    lost_without: &'static str,
    needed_for: Need,
) -> Feature {
    let detail = match outcome {
        Ok(()) => what.to_owned(),
        Err(e) => format!("the kernel says: {}", e.desc()),
    };
    Feature { name, available: outcome.is_ok(), detail, lost_without, needed_for }
}

fn soft_dirty() -> Feature {
    let set = probe::soft_dirty();
    Feature {
        name: "soft-dirty",
        available: set == Ok(true),
        detail: match set {
            Ok(true) => "the older tracker is there; cr does not need it".to_owned(),
            Ok(false) => "this kernel was built without it; cr does not need it".to_owned(),
            Err(e) => format!("the kernel says: {}", e.desc()),
        },
        lost_without: "nothing",
        needed_for: Need::More,
    }
}

fn btf() -> Feature {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    let found = fs::metadata(BTF);
    Feature {
        name: "BTF",
        available: found.is_ok(),
        detail: found.map_or_else(|e| format!("{BTF}: {e}"), |_| "the kernel describes its own structures".to_owned()),
        lost_without: "no eBPF hints",
        needed_for: Need::More,
    }
}

/// Every program maps files: its own executable, for one.
fn mapped_files() -> nix::Result<()> {
    let gone = |e: std::io::Error| nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let me = std::process::id() as i32;
    let vmas = crate::procfs::maps(me).map_err(gone)?;
    let file = vmas.iter().find(|v| v.inode != 0).ok_or(nix::errno::Errno::ENOENT)?;
    fs::metadata(format!("/proc/self/map_files/{:x}-{:x}", file.start, file.end)).map(drop).map_err(gone)
}

const BPF: &str = "eBPF programs";

fn hints() -> Feature {
    // All of them are loaded and attached, and gone again with the value.
    let loaded = Hints::load();
    Feature {
        name: BPF,
        available: loaded.is_ok(),
        detail: loaded.map_or_else(|e| e.to_string(), |_| "cr's own were loaded and attached".to_owned()),
        lost_without: "sleeps and waits that a checkpoint interrupts start over after a restore; the job stands still a little longer",
        needed_for: Need::More,
    }
}

fn yama() -> Feature {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let scope = scope.trim();
    let me = std::process::id() as i32;
    let capable = Status::read(me, me).is_ok_and(|status| status.mask("CapEff") >> CAP_SYS_PTRACE & 1 == 1);
    let (available, detail) = match scope {
        "" | "0" => (true, "processes of one's own may be traced".to_owned()),
        "3" => (false, "kernel.yama.ptrace_scope is 3: nobody may trace, until the next boot".to_owned()),
        _ if capable => (true, format!("kernel.yama.ptrace_scope is {scope}, and we have CAP_SYS_PTRACE")),
        "1" => (true, "kernel.yama.ptrace_scope is 1: only descendants may be traced".to_owned()),
        _ => (false, format!("kernel.yama.ptrace_scope is {scope}: run cr as root or with CAP_SYS_PTRACE")),
    };
    Feature {
        name: "ptrace_scope",
        available,
        detail,
        lost_without: "no job can be checkpointed (at 1: jobs under `cr run` can, `cr attach` needs CAP_SYS_PTRACE)",
        needed_for: Need::Checkpoint,
    }
}

const CAP_SYS_PTRACE: u32 = 19;

fn nftables() -> Feature {
    let tried = netlock::probe();
    Feature {
        name: "nftables",
        available: tried.is_ok(),
        detail: match tried {
            Ok(()) => "TCP connections can be kept silent while a job is away (Linux 5.12)".to_owned(),
            Err(e) => format!("the kernel says: {}", e.source().unwrap_or(&e)),
        },
        lost_without: "the other ends of a job's TCP connections notice that it is away, and reset them",
        needed_for: Need::More,
    }
}

fn cgroup_freezer() -> Feature {
    let found = cgroup2_mount().filter(|mount| {
        // The root group cannot be frozen and has no such file; the groups in it have.
        let groups = fs::read_dir(mount).into_iter().flatten().flatten();
        mount.join("cgroup.freeze").exists() || groups.into_iter().any(|g| g.path().join("cgroup.freeze").exists())
    });
    Feature {
        name: "cgroup v2 freezer",
        available: found.is_some(),
        detail: found.map_or_else(|| "no cgroup v2 group was found".to_owned(), |at| format!("at {}", at.display())),
        lost_without: "nothing yet: jobs are stopped thread by thread",
        needed_for: Need::More,
    }
}

fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| Path::new(before.split(' ').nth(4)?).to_owned().into())?
    })
}

/// The inode number of the machine's first pid namespace (`PROC_PID_INIT_INO` in `include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

fn in_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link != Path::new(FIRST_PID_NAMESPACE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tracker_needs_the_whole_oracle() {
        let features = Features::probe();
        let scan = features.features.iter().find(|f| f.name == "PAGEMAP_SCAN").unwrap();
        assert!(scan.available || features.tracker == Tracker::Compare);
        assert!(!features.can_restore() || features.can_checkpoint());
    }
}
