//! What happened to the tasks of a followed job.

/// Fork, exec or exit of a task whose address space is followed.
///
/// Process and thread ids come twice: as the first pid namespace numbers them, and as the controller's own namespace
/// does (0 where the task is not visible there).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TaskEvent {
    /// A [`TaskEventKind`] as a number.
    pub kind: u32,
    /// Whether this was the last thread of its process (exit events only; 1 or 0).
    pub last_thread: u32,
    /// The process (thread group) of the task, in the first namespace.
    pub tgid: u32,
    /// The task, in the first namespace.
    pub tid: u32,
    /// The process, as the controller sees it.
    pub seen_tgid: u32,
    /// The task, as the controller sees it.
    pub seen_tid: u32,
    /// For a fork, the new task's process, as the controller sees it: the same process if the new task is a thread.
    pub child_seen_tgid: u32,
    /// For a fork, the new task, as the controller sees it.
    pub child_seen_tid: u32,
    /// The address space before the event.
    pub mm: u64,
    /// The address space of the child (fork) or of the new image (exec); 0 for an exit.
    pub new_mm: u64,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
}

/// The kinds of [`TaskEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TaskEventKind {
    /// A task made another one: a thread or a process.
    Fork = 1,
    /// A task runs a new image.
    Exec = 2,
    /// A task ends.
    Exit = 3,
}

const _: () = assert!(size_of::<TaskEvent>() == 8 * 4 + 3 * 8);
