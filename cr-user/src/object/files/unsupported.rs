//! Kinds of files that cannot be restored yet, by name, and what to do about each.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::No;
use super::survey::Seen;

/// Kinds without a name in any directory: how `/proc/PID/fd` shows them, what they are, what to do.
const ANONYMOUS: &[(&str, &str, &str)] = &[
    ("fanotify", "a fanotify watch, whose events hold open files and questions that only the job can answer", CLOSE),
    ("userfaultfd", "a userfaultfd", "have the job close it; cr needs the facility itself to see what is written"),
    ("io_uring", "an io_uring", "have the job end it before the checkpoint, or use ordinary reads and writes"),
    ("perf_event", "a performance counter", "stop the profiler, or have the job close it"),
    ("bpf", "a BPF object", CLOSE),
    ("btf", "a BPF object", CLOSE),
    ("kvm", "a virtual machine of KVM", CLOSE),
    ("infinibandevent", "a queue of events of an RDMA device", RDMA),
    ("landlock-ruleset", "a Landlock ruleset", CLOSE),
    ("seccomp notify", "a listener for system calls (seccomp)", CLOSE),
    ("sync_file", "a fence of a graphics device", "close the device before the checkpoint"),
    ("dmabuf", "a buffer of a device", "close the device before the checkpoint"),
];

/// File systems whose files are not files: the magic number of `statfs(2)` (`linux/magic.h`), what they are, what to do.
const FILE_SYSTEMS: &[(i64, &str, &str)] = &[
    (0x6265_6572, "a file of /sys", CLOSE),
    (0x6367_7270, "a file of cgroups", CLOSE),
    (0x0027_e0eb, "a file of cgroups", CLOSE),
    (0x6462_6720, "a file of debugfs", CLOSE),
    (0x7472_6163, "a file of tracefs", CLOSE),
    (0x6265_6570, "a file of configfs", CLOSE),
    (0x7363_6673, "a file of securityfs", CLOSE),
    (0xcafe_4a11, "a file of the BPF file system", CLOSE),
    (0x5345_434d, "secret memory (memfd_secret)", "have the job close it, or use memfd_create"),
    (0x444d_4142, "a buffer of a device", "close the device before the checkpoint"),
];

/// Kinds without a name that are restored.
const RESTORED: [&str; 6] = ["[eventfd]", "[eventpoll]", "[timerfd]", "[signalfd]", "[pidfd]", "inotify"];

const CLOSE: &str = "have the job close it before the checkpoint";
const RDMA: &str = "have the job let go of the device before the checkpoint, or run it over TCP";

/// What stands against restoring a descriptor whatever its kind, or why its kind cannot be restored at all.
pub(super) fn refuse(seen: &Seen) -> Option<No> {
    let link = seen.link.display();
    if let Some(name) = seen.link.as_os_str().as_bytes().strip_prefix(b"anon_inode:") {
        let name = String::from_utf8_lossy(name);
        if !RESTORED.contains(&&*name) {
            return Some(anonymous(seen, &name));
        }
    }
    let kind = seen.meta.file_type();
    if let Some((_, what, todo)) = FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == seen.filesystem) {
        return Some(No::new(format!("is {what} ({link})"), todo));
    }
    // Those of deleted files are restored with them.
    let file = kind.is_file() && seen.meta.nlink() == 0 && seen.link.is_absolute();
    if seen.flags & libc::O_PATH != 0 && !kind.is_dir() && !file {
        return Some(No::new(format!("is an O_PATH descriptor of {link}"), CLOSE));
    }
    kind.is_block_device().then(|| No::new(format!("is the block device {link}"), CLOSE))
}

/// A character device that is neither a terminal nor one of the usual ones.
pub(super) fn device(seen: &Seen) -> No {
    let rdev = seen.meta.rdev();
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    if seen.link.starts_with("/dev/infiniband") {
        let why = format!("is the RDMA device {} ({major}:{minor}), which has the connections", seen.link.display());
        return No::new(why, RDMA);
    }
    let why = format!("is the device {} ({major}:{minor}), whose state cr cannot read", seen.link.display());
    No::new(why, "have the job close it before the checkpoint")
}

fn anonymous(seen: &Seen, name: &str) -> No {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let Some((kind, what, todo)) = ANONYMOUS.iter().find(|(kind, ..)| bare.starts_with(kind)) else {
        return No::new(format!("is an anonymous file that cr does not know ({name})"), CLOSE);
    };
    if *kind == "io_uring" {
        let buffers = seen.info().ok().and_then(|i| i.get("UserBufs:")?.parse::<u32>().ok()).unwrap_or(0);
        if buffers > 0 {
            let why = format!("is an io_uring with {buffers} registered buffers; their pages change without a fault");
            return No::new(why, todo);
        }
    }
    No::new(format!("is {what}"), todo)
}
