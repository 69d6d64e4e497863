//! The kernel fields that the programs read. Rust emits no CO-RE relocations, so the controller looks the offsets up
//! in the running kernel's BTF and hands each over as a global of the program.

/// A field (or the size of a structure) that the programs must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelField {
    /// The program's global that takes the offset, a `u32`.
    pub global: &'static str,
    /// The kernel structure's name.
    pub structure: &'static str,
    /// The members' names from the structure on, joined by dots; empty asks for the structure's size.
    pub path: &'static str,
    /// Whether kernels may lack it: the global is then [`KernelField::ABSENT`].
    pub optional: bool,
}

impl KernelField {
    /// The value of a global whose field this kernel lacks.
    pub const ABSENT: u32 = u32::MAX;
}

/// Calls `$then!` with every field as `GLOBAL, "structure", "path", optional;`.
#[macro_export]
macro_rules! for_each_kernel_field {
    ($then:ident) => {
        $then! {
            TASK_MM, "task_struct", "mm", false;
            TASK_PID, "task_struct", "pid", false;
            TASK_KIND, "task_struct", "flags", false;
            TASK_COMM, "task_struct", "comm", false;
            TASK_FAULTS_OFF, "task_struct", "pagefault_disabled", false;
            REGS_CALL, "pt_regs", "orig_ax", false;
            REGS_FIRST, "pt_regs", "di", false;
            REGS_SECOND, "pt_regs", "si", false;
            REGS_THIRD, "pt_regs", "dx", false;
            REGS_FOURTH, "pt_regs", "r10", false;
            REGS_FIFTH, "pt_regs", "r8", false;
            TASK_TGID, "task_struct", "tgid", false;
            TASK_THREAD_PID, "task_struct", "thread_pid", false;
            TASK_GROUP_LEADER, "task_struct", "group_leader", false;
            TASK_SIGNAL, "task_struct", "signal", false;
            TASK_SIGHAND, "task_struct", "sighand", false;
            TASK_CLEAR_CHILD_TID, "task_struct", "clear_child_tid", false;
            TASK_SET_CHILD_TID, "task_struct", "set_child_tid", false;
            TASK_ROBUST_LIST, "task_struct", "robust_list", true;
            TASK_SAS_SS_SP, "task_struct", "sas_ss_sp", false;
            TASK_SAS_SS_SIZE, "task_struct", "sas_ss_size", false;
            TASK_SAS_SS_FLAGS, "task_struct", "sas_ss_flags", false;
            TASK_BLOCKED, "task_struct", "blocked", false;
            TASK_SAVED_SIGMASK, "task_struct", "saved_sigmask", false;
            TASK_RESTART_BLOCK, "task_struct", "restart_block", false;
            TASK_TIMER_SLACK_NS, "task_struct", "timer_slack_ns", false;
            TASK_PDEATH_SIGNAL, "task_struct", "pdeath_signal", false;
            TASK_EXIT_SIGNAL, "task_struct", "exit_signal", false;
            TASK_PERSONALITY, "task_struct", "personality", false;
            TASK_UNDO_LIST, "task_struct", "sysvsem.undo_list", true;
            TASK_CRED, "task_struct", "cred", true;
            TASK_XSTATE_PERMISSION, "task_struct", "thread.fpu.perm.__state_perm", true;
            TASK_NSPROXY, "task_struct", "nsproxy", true;
            TASK_CGROUPS, "task_struct", "cgroups", true;
            TASK_FILES, "task_struct", "files", true;
            FILES_TABLE, "files_struct", "fdt", true;
            TABLE_CLOEXEC, "fdtable", "close_on_exec", true;
            INODE_LOCKS, "inode", "i_flctx", true;
            CRED_SECUREBITS, "cred", "securebits", true;
            PID_LEVEL, "pid", "level", false;
            PID_NUMBERS, "pid", "numbers", false;
            UPID_SIZE, "upid", "", false;
            UPID_NR, "upid", "nr", false;
            UPID_NS, "upid", "ns", false;
            PIDNS_INUM, "pid_namespace", "ns.inum", false;
            SIGNAL_LIVE, "signal_struct", "live.counter", false;
            SIGNAL_REAL_TIMER_EXPIRES, "signal_struct", "real_timer.node.expires", true;
            SIGNAL_REAL_TIMER_STATE, "signal_struct", "real_timer.state", true;
            SIGNAL_IT_REAL_INCR, "signal_struct", "it_real_incr", true;
            SIGNAL_OOM_SCORE_ADJ, "signal_struct", "oom_score_adj", false;
            SIGNAL_LIMITS, "signal_struct", "rlim", true;
            SIGNAL_SUBREAPER, "signal_struct", "is_child_subreaper", true;
            SIGNAL_CPU_TIMERS, "signal_struct", "it", true;
            SIGNAL_POSIX_TIMERS, "signal_struct", "posix_timers", true;
            SIGHAND_ACTION, "sighand_struct", "action", false;
            MM_FLAGS, "mm_struct", "flags", false;
            MM_EXE_FILE, "mm_struct", "exe_file", true;
            MM_SAVED_AUXV, "mm_struct", "saved_auxv", true;
            MM_DEF_FLAGS, "mm_struct", "def_flags", true;
            MM_SEQUENCE, "mm_struct", "mm_lock_seq", true;
            MM_START_CODE, "mm_struct", "start_code", false;
            MM_END_CODE, "mm_struct", "end_code", false;
            MM_START_DATA, "mm_struct", "start_data", false;
            MM_END_DATA, "mm_struct", "end_data", false;
            MM_START_BRK, "mm_struct", "start_brk", false;
            MM_BRK, "mm_struct", "brk", false;
            MM_START_STACK, "mm_struct", "start_stack", false;
            MM_ARG_START, "mm_struct", "arg_start", false;
            MM_ARG_END, "mm_struct", "arg_end", false;
            MM_ENV_START, "mm_struct", "env_start", false;
            MM_ENV_END, "mm_struct", "env_end", false;
            VMA_START, "vm_area_struct", "vm_start", false;
            VMA_END, "vm_area_struct", "vm_end", false;
            VMA_FLAGS, "vm_area_struct", "vm_flags", false;
            VMA_PGOFF, "vm_area_struct", "vm_pgoff", false;
            VMA_FILE, "vm_area_struct", "vm_file", false;
            VMA_ANON_NAME, "vm_area_struct", "anon_name", true;
            ANON_NAME_NAME, "anon_vma_name", "name", true;
            FILE_INODE, "file", "f_inode", false;
            INODE_INO, "inode", "i_ino", false;
            INODE_SB, "inode", "i_sb", false;
            SUPER_BLOCK_DEV, "super_block", "s_dev", false;
            // From here on: what records of descriptions depend on.
            FILE_FLAGS, "file", "f_flags", true;
            FILE_POSITION, "file", "f_pos", true;
            FILE_PRIVATE, "file", "private_data", true;
            FILE_OWNER, "file", "f_owner", true;
            FILE_OWNER_PID, "file", "f_owner.pid", true;
            FILE_OWNER_SIGNAL, "file", "f_owner.signum", true;
            FILE_DENTRY, "file", "f_path.dentry", true;
            FILE_MOUNT, "file", "f_path.mnt", true;
            INODE_MODE, "inode", "i_mode", true;
            INODE_UID, "inode", "i_uid", true;
            INODE_GID, "inode", "i_gid", true;
            INODE_NLINK, "inode", "i_nlink", true;
            INODE_RDEV, "inode", "i_rdev", true;
            INODE_SIZE, "inode", "i_size", true;
            INODE_MTIME, "inode", "i_mtime_sec", true;
            INODE_MTIME_NSEC, "inode", "i_mtime_nsec", true;
            INODE_GENERATION, "inode", "i_generation", true;
            SUPER_BLOCK_MAGIC, "super_block", "s_magic", true;
            DENTRY_SEQ, "dentry", "d_seq", true;
            DENTRY_PARENT, "dentry", "d_parent", true;
            DENTRY_HASHED, "dentry", "d_hash.pprev", true;
            DENTRY_HASH_LEN, "dentry", "d_name.hash_len", true;
            DENTRY_NAME, "dentry", "d_name.name", true;
            MOUNT_ROOT, "vfsmount", "mnt_root", true;
            MOUNT_OF, "mount", "mnt", true;
            MOUNT_PARENT, "mount", "mnt_parent", true;
            MOUNT_POINT, "mount", "mnt_mountpoint", true;
            MOUNT_NS, "mount", "mnt_ns", true;
            MOUNT_NS_EVENT, "mnt_namespace", "event", true;
            SOCKET_SOCK, "socket", "sk", true;
            SOCKET_FLAGS, "socket", "flags", true;
            SOCK_FAMILY, "sock", "__sk_common.skc_family", true;
            SOCK_DEVICE, "sock", "__sk_common.skc_bound_dev_if", true;
            SOCK_NET, "sock", "__sk_common.skc_net.net", true;
            SOCK_PROTOCOL, "sock", "sk_protocol", true;
            SOCK_FILTER, "sock", "sk_filter", true;
            SOCK_RECEIVED, "sock", "sk_receive_queue.qlen", true;
            SOCK_ERRORS, "sock", "sk_error_queue.qlen", true;
            UNIX_SIZE, "unix_sock", "", true;
            UNIX_ADDRESS, "unix_sock", "addr", true;
            TCP_SIZE, "tcp_sock", "", true;
            TCP6_SIZE, "tcp6_sock", "", true;
            TCP_WRITTEN, "tcp_sock", "write_seq", true;
            TCP_ACKNOWLEDGED, "tcp_sock", "snd_una", true;
            TCP_ARRIVED, "tcp_sock", "rcv_nxt", true;
            TCP_READ, "tcp_sock", "copied_seq", true;
            TCP_CONGESTION, "inet_connection_sock", "icsk_ca_ops", true;
            CONGESTION_NAME, "tcp_congestion_ops", "name", true;
            NET_INTERFACES, "net", "ipv6.devconf_all", true;
            INTERFACES_HOP_LIMIT, "ipv6_devconf", "hop_limit", true;
            NET_TTL, "net", "ipv4.sysctl_ip_default_ttl", true;
            NET_KEEPALIVE_TIME, "net", "ipv4.sysctl_tcp_keepalive_time", true;
            NET_KEEPALIVE_PROBES, "net", "ipv4.sysctl_tcp_keepalive_probes", true;
            NET_KEEPALIVE_INTERVAL, "net", "ipv4.sysctl_tcp_keepalive_intvl", true;
            NET_SYN_RETRIES, "net", "ipv4.sysctl_tcp_syn_retries", true;
            NET_FIN_TIMEOUT, "net", "ipv4.sysctl_tcp_fin_timeout", true;
            EVENTFD_COUNT, "eventfd_ctx", "count", true;
            EVENTFD_FLAGS, "eventfd_ctx", "flags", true;
            EPOLL_REFERENCES, "eventpoll", "refcount", true;
            EPOLL_BUSY_POLL, "eventpoll", "busy_poll_usecs", true;
            FILE_WATCHES, "file", "f_ep", true;
            WATCH_LINK, "epitem", "fllink", true;
            WATCH_SET, "epitem", "ep", true;
            WATCH_NUMBER, "epitem", "ffd.fd", true;
            WATCH_EVENT, "epitem", "event", true;
        }
    };
}

macro_rules! list {
    ($($global:ident, $structure:literal, $path:literal, $optional:literal;)*) => {
        /// Every field of [`for_each_kernel_field`](crate::for_each_kernel_field).
        pub const FIELDS: &[KernelField] = &[$(KernelField {
            global: stringify!($global),
            structure: $structure,
            path: $path,
            optional: $optional,
        }),*];
    };
}
for_each_kernel_field!(list);
