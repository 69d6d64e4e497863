//! Loading the programs: offsets in, tracepoints attached, iterators ready.

use std::{fs, os::unix::fs::MetadataExt as _};

use aya::{
    Ebpf, EbpfLoader,
    programs::{BtfTracePoint, Iter, Program, ProgramError},
};
use cr_common::{FIELDS, KernelField, RIGHTS_LEN};

use super::error::{HintsError, load_error, no_program, program_error};
use crate::track::{
    aio::AioLayout,
    btf::{Btf, BtfError},
    datagrams::DatagramLayout,
    iters::RestartLayout,
    tty::TtyLayout,
    undo::UndoLayout,
};

/// Programs on tracepoints, by the tracepoint's name, which is the program's too.
const TRACEPOINTS: [&str; 5] =
    ["page_fault_user", "page_fault_kernel", "sched_process_fork", "sched_process_exec", "sched_process_exit"];

/// The same, of those that tell who takes the lock of an address space: kernels may be built without.
const LOCK_TRACEPOINTS: [&str; 2] = ["mmap_lock_released", "mmap_lock_acquire_returned"];

/// Iterator programs, and what they go over.
pub(super) const ITER_TASK: (&str, &str) = ("iter_task", "task");
pub(super) const ITER_JOB: (&str, &str) = ("iter_job", "task");
pub(super) const ITER_FILE: (&str, &str) = ("iter_file", "task_file");
pub(super) const ITER_PEEK: (&str, &str) = ("iter_peek", "task");
pub(super) const ITER_CPUS: (&str, &str) = ("iter_cpus", "task");
pub(super) const ITER_VMA: (&str, &str) = ("iter_vma", "task_vma");
pub(super) const ITER_WRITTEN: (&str, &str) = ("iter_written", "bpf_map_elem");
pub(super) const ITER_AT_REST: (&str, &str) = ("iter_written_at_rest", "bpf_map_elem");

/// The programs in the kernel, and what else the kernel's type information told.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) restart: RestartLayout,
    pub(super) aio: Option<AioLayout>,
    pub(super) undo: Option<UndoLayout>,
    pub(super) tty: Option<TtyLayout>,
    pub(super) datagrams: Option<DatagramLayout>,
    /// Whether everything is known on which what a task tells about itself depends.
    pub(super) evidence: bool,
    /// Whether everything is known on which what `/proc` shows of a process depends.
    pub(super) outward: bool,
    /// Whether it is seen who takes the locks of address spaces.
    pub(super) locks: bool,
    /// Whether everything is known that records of descriptors consist of.
    pub(super) descriptors: bool,
    /// Whether everything is known on which the records of descriptions depend.
    pub(super) descriptions: bool,
}

/// What these take beyond what every kernel has.
const DESCRIPTORS: [&str; 4] = ["TASK_FILES", "FILES_TABLE", "TABLE_CLOEXEC", "INODE_LOCKS"];

/// The first of the fields that records of descriptions depend on, and those of them that a kernel may lack.
const DESCRIPTIONS: &str = "FILE_FLAGS";
const DISPENSABLE: [&str; 6] = [
    "FILE_OWNER_PID",
    "FILE_OWNER_SIGNAL",
    "EPOLL_BUSY_POLL",
    "EPOLL_REFERENCES",
    "NET_INTERFACES",
    "INTERFACES_HOP_LIMIT",
];

/// What of a task's record this takes beyond what every kernel has.
const EVIDENCE: [&str; 14] = [
    "TASK_NSPROXY",
    "SIGNAL_LIMITS",
    "MM_EXE_FILE",
    "MM_SAVED_AUXV",
    "TASK_CRED",
    "TASK_XSTATE_PERMISSION",
    "CRED_SECUREBITS",
    "SIGNAL_SUBREAPER",
    "SIGNAL_CPU_TIMERS",
    "SIGNAL_POSIX_TIMERS",
    "SIGNAL_REAL_TIMER_STATE",
    "SIGNAL_REAL_TIMER_EXPIRES",
    "SIGNAL_IT_REAL_INCR",
    "MM_DEF_FLAGS",
];

/// The same of what `/proc` shows.
const OUTWARD: [&str; 24] = [
    "TASK_FS",
    "TASK_NAME",
    "TASK_ATOMIC_FLAGS",
    "TASK_SECCOMP",
    "FS_UMASK",
    "FS_ROOT_DENTRY",
    "FS_ROOT_MOUNT",
    "FS_PWD_DENTRY",
    "FS_PWD_MOUNT",
    "FILE_DENTRY",
    "FILE_MOUNT",
    "DENTRY_SEQ",
    "DENTRY_PARENT",
    "DENTRY_HASHED",
    "DENTRY_HASH_LEN",
    "DENTRY_NAME",
    "MOUNT_ROOT",
    "MOUNT_OF",
    "MOUNT_PARENT",
    "MOUNT_POINT",
    "MOUNT_NS",
    "MOUNT_NS_EVENT",
    "SIGNAL_PIDS",
    "MM_EXE_FILE",
];

/// Of the credentials.
const RIGHTS: [&str; 6] = ["TASK_CRED", "CRED_UID", "CRED_AMBIENT", "CRED_GROUPS", "GROUPS_COUNT", "GROUPS_ALL"];

/// Loads the programs; those on tracepoints only with `follow`.
pub(super) fn load(object: &[u8], regions: u32, follow: bool) -> Result<Loaded, HintsError> {
    if object.is_empty() {
        return Err(HintsError::NoObject);
    }
    let kernel = Btf::of_kernel()?;
    let offsets = offsets(&kernel)?;
    let restart = RestartLayout::of(&kernel)?;
    // Kernels are built without, too.
    let (aio, undo) = (AioLayout::of(&kernel).ok(), UndoLayout::of(&kernel).ok());
    let tty = TtyLayout::of(&kernel).inspect_err(|e| log::info!("queues of terminals cannot be read: {e}")).ok();
    let datagrams = DatagramLayout::of(&kernel).inspect_err(|e| log::info!("queues of UDP cannot be read: {e}")).ok();
    let attach_types = aya::Btf::from_sys_fs()
        .map_err(|error| HintsError::Refused { program: "(all)".into(), why: error.to_string() })?;

    let pid_namespace = own_pid_namespace()?;
    let log_level = log::max_level() as u8;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&attach_types)).map_max_entries("WRITTEN", regions);
    loader.override_global("CONTROLLER_PIDNS", &pid_namespace, true);
    loader.override_global("AYA_LOG_LEVEL", &log_level, false);
    for (field, offset) in FIELDS.iter().zip(&offsets) {
        loader.override_global(field.global, offset, true);
    }
    let mut ebpf = loader.load(object).map_err(load_error)?;

    let mut attach = |name: &'static str| -> Result<(), HintsError> {
        let program: &mut BtfTracePoint = program(&mut ebpf, name)?;
        program.load(name, &attach_types).map_err(|error| program_error(name, error))?;
        program.attach().map(drop).map_err(|error| program_error(name, error))
    };
    let mut locks = false;
    if follow {
        TRACEPOINTS.into_iter().try_for_each(&mut attach)?;
        let watched = LOCK_TRACEPOINTS.into_iter().try_for_each(&mut attach);
        locks = watched.inspect_err(|e| log::info!("page tables are always asked about everything: {e}")).is_ok();
    }
    // The verifier takes its time: what only serves to follow is not loaded for a single look.
    let following = [ITER_JOB, ITER_WRITTEN, ITER_AT_REST].into_iter().filter(|_| follow);
    for (name, over) in [ITER_TASK, ITER_FILE, ITER_VMA].into_iter().chain(following) {
        let program: &mut Iter = program(&mut ebpf, name)?;
        program.load(over, &attach_types).map_err(|error| program_error(name, error))?;
    }
    for (name, over) in [ITER_PEEK, ITER_CPUS] {
        let program: &mut Iter = program(&mut ebpf, name)?;
        // Few jobs need them, and those are refused.
        if let Err(error) = program.load(over, &attach_types) {
            log::info!("{}", program_error(name, error));
        }
    }
    let known = |name: &str| FIELDS.iter().zip(&offsets).any(|(f, o)| f.global == name && *o != KernelField::ABSENT);
    let (evidence, descriptors) = (EVIDENCE.into_iter().all(known), DESCRIPTORS.into_iter().all(known));
    let at = |name: &str| FIELDS.iter().zip(&offsets).find(|(f, _)| f.global == name).map_or(0, |(_, o)| *o);
    // What is read of the credentials in one piece reaches so far.
    let in_one_piece = (at("CRED_AMBIENT") + 8).saturating_sub(at("CRED_UID")) as usize <= RIGHTS_LEN;
    let outward = OUTWARD.into_iter().chain(RIGHTS).all(known) && in_one_piece;
    let needed = FIELDS.iter().skip_while(|f| f.global != DESCRIPTIONS).filter(|f| !DISPENSABLE.contains(&f.global));
    let descriptions = needed.clone().all(|f| known(f.global));
    if let Some(field) = needed.into_iter().find(|f| !known(f.global)) {
        log::info!("this kernel's struct {} has no {}: descriptors are always looked at", field.structure, field.path);
    }
    Ok(Loaded { ebpf, restart, aio, undo, tty, datagrams, evidence, outward, locks, descriptors, descriptions })
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, HintsError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| no_program(name))?;
    program.try_into().map_err(|error| program_error(name, error))
}

/// The value of each of [`FIELDS`] for this kernel.
fn offsets(kernel: &Btf) -> Result<Vec<u32>, BtfError> {
    let offset = |field: &KernelField| {
        let found = match field.path {
            "" => kernel.size(field.structure),
            _ if field.global == "TASK_XSTATE_PERMISSION" => xstate_permission(kernel, field),
            path => kernel.offset(field.structure, path),
        };
        match found {
            Err(BtfError::NoField { .. } | BtfError::NoStructure(_)) if field.optional => Ok(KernelField::ABSENT),
            other => other,
        }
    };
    FIELDS.iter().map(offset).collect()
}

/// Since Linux 6.16 the state of the FPU stands behind a task's structure and not within it (`x86_task_fpu`).
fn xstate_permission(kernel: &Btf, field: &KernelField) -> Result<u32, BtfError> {
    let within = kernel.offset(field.structure, field.path);
    within.or_else(|_| Ok(kernel.size(field.structure)? + kernel.offset("fpu", "perm.__state_perm")?))
}

/// The inode number that names this process's pid namespace.
fn own_pid_namespace() -> Result<u32, HintsError> {
    const PATH: &str = "/proc/self/ns/pid";
    let metadata =
        fs::metadata(PATH).map_err(|source| HintsError::Iter { iter: ITER_TASK.0, over: PATH.into(), source })?;
    Ok(metadata.ino() as u32)
}
