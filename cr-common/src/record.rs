//! What the BPF iterators write: one record for each task, one for each mapping.

/// Signals have numbers from 1 to this; `actions[0]` is signal 1.
pub const SIGNALS: usize = 64;
/// Room for `struct restart_block`; it has 56 bytes in Linux 6.18.
pub const RESTART_BLOCK_LEN: usize = 64;
/// Two words for each of 16 resources (`RLIM_NLIMITS`).
pub const LIMITS: usize = 32;
/// Words of the auxiliary vector; Linux 6.18 has 54 on x86-64.
pub const AUXV: usize = 64;
/// `TASK_COMM_LEN` of `linux/sched.h`.
pub const NAME_LEN: usize = 16;
/// `ANON_VMA_NAME_MAX_LEN` of `mm/madvise.c`, the terminating zero included.
pub const ANON_NAME_LEN: usize = 80;

/// Bytes of a task's credentials from its first user to its last set of capabilities.
pub const RIGHTS_LEN: usize = 80;

/// Words of kernel memory that are read in one go, each at an address of its own.
pub const PEEKS: usize = 64;

/// CPUs whose memory can be read.
pub const CPUS: usize = 1024;

/// How a task looks to `iter/task`: state that `/proc` does not show and that otherwise only system calls within the task could tell.
///
/// If [`has_actions`](Self::has_actions) is not 0, an array of [`SIGNALS`] [`SignalAction`]s follows the record.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TaskRecord {
    /// The process, in the first pid namespace.
    pub tgid: u32,
    /// The task, in the first pid namespace.
    pub tid: u32,
    /// The process, as the controller's pid namespace numbers it; 0 if it is not visible there.
    pub seen_tgid: u32,
    /// The task, as the controller's pid namespace numbers it; 0 if it is not visible there.
    pub seen_tid: u32,
    /// The address space: the kernel's address of its `mm_struct`; 0 for a kernel thread or a dead task.
    pub mm: u64,
    /// `mm->flags`: bits 0 and 1 are what `PR_GET_DUMPABLE` answers, bits 2 to 10 the core dump filter.
    pub mm_flags: u64,
    /// Bounds of code, data, heap, stack, arguments and environment, in the order of `struct prctl_mm_map`:
    /// `start_code`, `end_code`, `start_data`, `end_data`, `start_brk`, `brk`, `start_stack`, `arg_start`, `arg_end`,
    /// `env_start`, `env_end`.
    pub mm_bounds: [u64; 11],
    /// Where the kernel writes 0 and wakes a futex when the task ends (`set_tid_address`).
    pub clear_child_tid: u64,
    /// Where `clone` wrote the new task's id (`CLONE_CHILD_SETTID`).
    pub set_child_tid: u64,
    /// The head of the list of robust futexes.
    pub robust_list: u64,
    /// Alternate signal stack: address.
    pub sas_ss_sp: u64,
    /// Alternate signal stack: size in bytes.
    pub sas_ss_size: u64,
    /// Blocked signals.
    pub blocked: u64,
    /// The mask to be put back when a call such as `sigsuspend` or `ppoll` returns.
    pub saved_sigmask: u64,
    /// Timer slack in nanoseconds.
    pub timer_slack_ns: u64,
    /// `ITIMER_REAL`: when it expires next, nanoseconds of `CLOCK_MONOTONIC`; meaningful only if
    /// [`real_timer_armed`](Self::real_timer_armed) is not 0.
    pub real_timer_expires_ns: u64,
    /// `ITIMER_REAL`: its interval in nanoseconds.
    pub real_timer_interval_ns: u64,
    /// The kernel's address of what is undone in System V semaphores when the task ends; 0 for nothing.
    pub undo_list: u64,
    /// `mm->def_flags`: what `mlockall(MCL_FUTURE)` says of mappings to come.
    pub mm_def_flags: u64,
    /// The kernel's address of the task's credentials, which are replaced and never changed.
    pub cred: u64,
    /// `ITIMER_PROF` and `ITIMER_VIRTUAL`: of each, when it expires and its interval, in the kernel's units; 0 for not.
    pub cpu_timers: [u64; 4],
    /// The head of the process's list of POSIX timers; 0 for none.
    pub posix_timers: u64,
    /// The features of the extended state that the process may use. With the group leader only.
    pub xstate_permission: u64,
    /// The kernel's address of the executable's `struct file`.
    pub exe_file: u64,
    /// The kernel's addresses of the set of namespaces and of the set of control groups.
    pub sets: [u64; 2],
    /// The kernel's address of the table of descriptors.
    pub files: u64,
    /// A hash over users, groups, capabilities and bits of the credentials; 0 if there are too many groups.
    pub rights: u64,
    /// `PFA_*`: among them that privileges are never gained again, and what was said of speculation.
    pub atomic_flags: u64,
    /// What of the CPU was enabled or locked for the task (`ARCH_SHSTK_*`).
    pub cpu_features: u64,
    /// Hashes over the paths of executable, working directory and root; 0 for one that cannot be told. With the group leader only.
    pub places: [u64; 3],
    /// The task's name, ended by a zero.
    pub name: [u8; NAME_LEN],
    /// Soft and hard limits, by resource number. With the group leader only.
    pub limits: [u64; LIMITS],
    /// The auxiliary vector, as far as there is room for it. With the group leader only.
    pub auxv: [u64; AUXV],
    /// `struct restart_block`, bytewise: where an interrupted system call keeps what `restart_syscall` will need.
    pub restart_block: [u8; RESTART_BLOCK_LEN],
    /// Alternate signal stack: flags.
    pub sas_ss_flags: u32,
    /// The signal that the task gets when its parent ends.
    pub pdeath_signal: u32,
    /// The signal that the parent gets when the task ends; −1 for a thread that is not the leader.
    pub exit_signal: i32,
    /// Execution domain.
    pub personality: u32,
    /// Whether `ITIMER_REAL` runs (1 or 0).
    pub real_timer_armed: u32,
    /// The process's badness for the out-of-memory killer.
    pub oom_score_adj: i32,
    /// Whether the process's signal handlers follow, as they do for group leaders only (1 or 0).
    pub has_actions: u32,
    /// A count that goes up whenever the address space's mappings may change (`mm->mm_lock_seq`).
    pub mm_sequence: u32,
    /// `SECBIT_*`.
    pub securebits: u32,
    /// The byte in which `PR_SET_CHILD_SUBREAPER` is a bit. Others belong to the kernel.
    pub subreaper: u32,
    /// How system calls are confined; 0: not at all.
    pub seccomp: u32,
    /// The mask of files to be made.
    pub umask: u32,
    /// Process group and session, as the controller's pid namespace numbers them; 0 if not visible there. With the group leader only.
    pub seen_group: u32,
    /// See [`seen_group`](Self::seen_group).
    pub seen_session: u32,
}

/// The kernel's `struct k_sigaction` on x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SignalAction {
    /// The handler's address, or `SIG_DFL` (0), or `SIG_IGN` (1).
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// The trampoline to `rt_sigreturn`.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}

/// A mapping of a process.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VmaRecord {
    /// Its first address.
    pub start: u64,
    /// The address after its last.
    pub end: u64,
    /// The kernel's `VM_*` flags.
    pub flags: u64,
    /// Offset in the file, in pages; the address in pages for anonymous memory.
    pub pgoff: u64,
    /// The file's inode number; 0 without a file. On a stacked file system (overlayfs) that of the file beneath.
    pub inode: u64,
    /// The file system's device, in the kernel's form (major in the upper 12 bits of 32, minor in the lower 20).
    pub dev: u32,
    /// Whether a file is mapped (1 or 0).
    pub has_file: u32,
    /// The name given by `PR_SET_VMA_ANON_NAME`, ended by a zero.
    pub anon_name: [u8; ANON_NAME_LEN],
}

/// A descriptor of a process.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileRecord {
    /// The open file description: the kernel's address of its `struct file`.
    pub file: u64,
    /// Not 0 if there are, or were, locks or leases on what it leads to.
    pub locks: u64,
    /// The descriptor's number.
    pub fd: u32,
    /// Whether `exec` closes it (1 or 0).
    pub cloexec: u32,
    /// A hash over every word on which the record of the description depends, as far as [`covered`](Self::covered) goes.
    pub evidence: u64,
    /// A hash over all watches of it by epoll sets; 0 if there are none, all ones where they are too many.
    pub watched: u64,
    /// For which kind of description the evidence is all: one of [`covered`]'s numbers.
    pub covered: u32,
    /// Of an epoll set: how many references there are to it, its own and one of each watch.
    pub references: u32,
}

/// What the hash in a [`FileRecord`] covers.
pub mod covered {
    /// Not everything: the description must be looked at.
    pub const NOTHING: u32 = 0;
    /// A file with a name, of a file system that keeps everything in the inode: the name, up to the root, and the inode.
    pub const NAMED: u32 = 1;
    /// A TCP socket in which nothing is queued.
    pub const TCP: u32 = 2;
    /// A Unix socket without a name in which nothing is queued.
    pub const UNIX: u32 = 3;
    /// An event counter.
    pub const EVENTFD: u32 = 4;
    /// An epoll set, but for what it watches: that is told by the files watched, and the number of references.
    pub const EPOLL: u32 = 5;
    /// An end of a pipe that is empty.
    pub const PIPE: u32 = 6;
}

const _: () = assert!(size_of::<FileRecord>() == 48);
const _: () = assert!(size_of::<SignalAction>() == 32);
const _: () = assert!(
    size_of::<TaskRecord>()
        == 4 * 4 + 8 * (13 + 11 + 8 + 3 + 7 + LIMITS + AUXV) + NAME_LEN + RESTART_BLOCK_LEN + 14 * 4
);
const _: () = assert!(size_of::<VmaRecord>() == 5 * 8 + 2 * 4 + ANON_NAME_LEN);
