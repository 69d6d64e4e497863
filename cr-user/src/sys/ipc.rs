//! System V shared memory, semaphores and message queues (`svipc(7)`).

use std::fs::File;
use std::io;
use std::mem::zeroed;

use nix::errno::Errno;

use crate::sys::{PAGE, check};

/// What `IPC_SET` can change of any object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// The lower nine bits.
    pub mode: u32,
}

/// A shared memory segment of `size` bytes as a file, which can be read and, with `write`, written. It is attached for a moment.
///
/// # Errors
/// What `shmat(2)` says, or that `/proc/self/map_files` cannot be read (it takes privilege).
pub fn segment_file(id: i32, size: u64, write: bool) -> io::Result<File> {
    let flags = if write { 0 } else { libc::SHM_RDONLY };
    // SAFETY: attached at an address of the kernel's choice; nothing refers to it but the lines below, and it is detached as it
    // was attached. Needed because a segment can only be had by attaching it.
    unsafe {
        let at = libc::shmat(id, std::ptr::null(), flags);
        if at as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        let end = at as u64 + size.next_multiple_of(PAGE);
        let file =
            File::options().read(true).write(write).open(format!("/proc/self/map_files/{:x}-{end:x}", at as u64));
        libc::shmdt(at);
        file
    }
}

/// Gives a segment its owner and mode.
///
/// # Errors
/// What `shmctl(2)` says.
pub fn set_segment(id: i32, owner: Owner) -> nix::Result<()> {
    // SAFETY: all-zero is a valid structure, which the calls fill and read.
    unsafe {
        let mut all: libc::shmid_ds = zeroed();
        check(libc::shmctl(id, libc::IPC_STAT, &raw mut all).into())?;
        (all.shm_perm.uid, all.shm_perm.gid, all.shm_perm.mode) = (owner.uid, owner.gid, owner.mode as _);
        check(libc::shmctl(id, libc::IPC_SET, &raw mut all).into()).map(drop)
    }
}

/// Locks a segment in memory, or no longer.
///
/// # Errors
/// `EPERM`, `ENOMEM`.
pub fn lock_segment(id: i32, lock: bool) -> nix::Result<()> {
    const SHM_LOCK: i32 = 11;
    const SHM_UNLOCK: i32 = 12;
    // SAFETY: the commands take no structure.
    unsafe { check(libc::shmctl(id, if lock { SHM_LOCK } else { SHM_UNLOCK }, std::ptr::null_mut()).into()) }.map(drop)
}

/// Removes a segment, or marks it to go with its last attachment.
///
/// # Errors
/// What `shmctl(2)` says.
pub fn remove_segment(id: i32) -> nix::Result<()> {
    // SAFETY: the command takes no structure.
    unsafe { check(libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()).into()) }.map(drop)
}

/// A number that the kernel tells of one semaphore, by the command of `semctl(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Who operated on it last.
    Pid = 11,
    /// How many wait for it to grow.
    WaitToGrow = 14,
    /// How many wait for it to become 0.
    WaitForZero = 15,
}

/// Asks about one semaphore.
///
/// # Errors
/// `EINVAL` and `EIDRM` when there is none.
pub fn ask_semaphore(id: i32, number: usize, what: Ask) -> nix::Result<i32> {
    // SAFETY: these commands take no fourth argument.
    unsafe { check(libc::syscall(libc::SYS_semctl, id, number, what as i32, 0)) }.map(|v| v as i32)
}

/// The values of all semaphores of a set of `count`.
///
/// # Errors
/// `EINVAL` and `EIDRM` when there is no such set, or it is of another size.
pub fn semaphore_values(id: i32, count: usize) -> nix::Result<Vec<u16>> {
    const GETALL: i32 = 13;
    // SAFETY: all-zero is a valid structure, which the call fills.
    let size = unsafe {
        let mut all: libc::semid_ds = zeroed();
        check(libc::syscall(libc::SYS_semctl, id, 0, libc::IPC_STAT, &raw mut all))?;
        all.sem_nsems as usize
    };
    if size != count {
        return Err(Errno::EINVAL);
    }
    let mut values = vec![0u16; count];
    // SAFETY: the kernel writes one short for each semaphore; their number never changes while the set is there.
    unsafe { check(libc::syscall(libc::SYS_semctl, id, 0, GETALL, values.as_mut_ptr())) }?;
    Ok(values)
}

/// Gives a set its owner and mode.
///
/// # Errors
/// What `semctl(2)` says.
pub fn set_semaphores(id: i32, owner: Owner) -> nix::Result<()> {
    // SAFETY: all-zero is a valid structure, which the calls fill and read.
    unsafe {
        let mut all: libc::semid_ds = zeroed();
        check(libc::syscall(libc::SYS_semctl, id, 0, libc::IPC_STAT, &raw mut all))?;
        (all.sem_perm.uid, all.sem_perm.gid, all.sem_perm.mode) = (owner.uid, owner.gid, owner.mode as _);
        check(libc::syscall(libc::SYS_semctl, id, 0, libc::IPC_SET, &raw mut all)).map(drop)
    }
}

/// Removes a set.
///
/// # Errors
/// What `semctl(2)` says.
pub fn remove_semaphores(id: i32) -> nix::Result<()> {
    // SAFETY: the command takes no structure.
    unsafe { check(libc::syscall(libc::SYS_semctl, id, 0, libc::IPC_RMID, 0)) }.map(drop)
}

/// How many bytes a queue takes.
///
/// # Errors
/// What `msgctl(2)` says.
pub fn queue_limit(id: i32) -> nix::Result<u64> {
    // SAFETY: all-zero is a valid structure, which the call fills.
    unsafe {
        let mut all: libc::msqid_ds = zeroed();
        check(libc::msgctl(id, libc::IPC_STAT, &raw mut all).into())?;
        Ok(all.msg_qbytes)
    }
}

/// Gives a queue its owner, its mode, and how many bytes it takes.
///
/// # Errors
/// `EPERM` for more than `/proc/sys/kernel/msgmnb` without `CAP_SYS_RESOURCE`.
pub fn set_queue(id: i32, owner: Owner, limit: u64) -> nix::Result<()> {
    // SAFETY: all-zero is a valid structure, which the calls fill and read.
    unsafe {
        let mut all: libc::msqid_ds = zeroed();
        check(libc::msgctl(id, libc::IPC_STAT, &raw mut all).into())?;
        (all.msg_perm.uid, all.msg_perm.gid, all.msg_perm.mode) = (owner.uid, owner.gid, owner.mode as _);
        all.msg_qbytes = limit;
        check(libc::msgctl(id, libc::IPC_SET, &raw mut all).into()).map(drop)
    }
}

/// Message `number` of a queue, which stays in it; of at most `most` bytes. `None`: there are not so many.
///
/// # Errors
/// `ENOSYS` without `CONFIG_CHECKPOINT_RESTORE`, `E2BIG` for a longer message.
pub fn peek_message(id: i32, number: usize, most: usize) -> nix::Result<Option<(i64, Vec<u8>)>> {
    let flags = libc::MSG_COPY | libc::IPC_NOWAIT;
    let mut buffer = vec![0u8; 8 + most];
    // SAFETY: the kernel writes the type, eight bytes, and at most `most` bytes of text.
    let received =
        unsafe { check(libc::syscall(libc::SYS_msgrcv, id, buffer.as_mut_ptr(), most, number as i64, flags)) };
    match received {
        Ok(len) => {
            buffer.truncate(8 + len as usize);
            let text = buffer.split_off(8);
            Ok(Some((i64::from_ne_bytes(buffer.try_into().expect("eight bytes")), text)))
        }
        Err(Errno::ENOMSG) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Puts a message into a queue: its type, eight bytes, and its text.
///
/// # Errors
/// `EAGAIN` when the queue is full.
pub fn send_message(id: i32, message: &[u8]) -> nix::Result<()> {
    let text = message.len().checked_sub(8).ok_or(Errno::EINVAL)?;
    // SAFETY: the kernel reads the type and `text` bytes.
    unsafe { check(libc::syscall(libc::SYS_msgsnd, id, message.as_ptr(), text, libc::IPC_NOWAIT)) }.map(drop)
}

/// Removes a queue.
///
/// # Errors
/// What `msgctl(2)` says.
pub fn remove_queue(id: i32) -> nix::Result<()> {
    // SAFETY: the command takes no structure.
    unsafe { check(libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()).into()) }.map(drop)
}
