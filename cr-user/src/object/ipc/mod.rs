//! System V IPC: shared memory, semaphores, message queues. `ipc/` in the kernel.
//!
//! These objects outlive processes, and the kernel does not say whose they are. The rule, for each object of the namespace
//! (see [`table`]):
//!
//! - It is **the job's** if a process of the job has it attached or made it (memory), operated on it last (a semaphore of the
//!   set), or sent or received there last (a queue); if a thread of the job waits in it, or something will be undone in it when
//!   a process of the job ends; or if an older checkpoint of the chain says so.
//! - One that is the job's, and that a living process outside of the job has attached or used last, is refused, with that pid.
//! - It is **probably the job's** if nobody alive has used it, and it was made by a user of the job after the job began: made
//!   and not used yet, or used by workers that have ended. Such an object is captured, and restored with care: what is here
//!   already is only changed if the job did use it, and whatever somebody else uses is left alone.
//! - All others are nobody's concern.
//!
//! A restore finds the objects where it left them if only the processes were killed: these go back to what they were. Those that
//! are gone are made again under the same id and key, by the process that had made them, where it lives.
//!
//! Not restored, because nobody can set them: the times of the last operations, and who operated last where that process had
//! ended (it is the job's root then). The content of a segment that nobody has attached can only be read by attaching it: its
//! times and its last pid change with a checkpoint.

pub mod msg;
pub mod sem;
pub mod shm;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Refusal, Result};
use crate::image::RecordKind;
use crate::object::memory::backing::Source;
use crate::object::spaces::Spaces;
use crate::procfs::{self, Status};

pub use table::{Kind, Row};

/// The record of the job's System V objects.
pub const KIND: RecordKind = RecordKind { id: 10, version: 1, name: "ipc" };

/// The System V objects of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Ipc {
    /// The boot and the namespace in which the ids are valid.
    pub place: String,
    /// Every process of the job.
    pub pids: Vec<i32>,
    /// Shared memory.
    pub segments: Vec<shm::Segment>,
    /// Sets of semaphores.
    pub semaphores: Vec<sem::Set>,
    /// Message queues.
    pub queues: Vec<msg::Queue>,
}

/// What objects of all kinds have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Object {
    /// Its id.
    pub id: i32,
    /// Its key; 0 for none (`IPC_PRIVATE`).
    pub key: i32,
    /// The lower nine bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its owner's group.
    pub gid: u32,
    /// Who made it.
    pub cuid: u32,
    /// The group of who made it.
    pub cgid: u32,
    /// Whether it is only probably the job's.
    pub probably: bool,
}

impl Object {
    fn new(row: &Row, probably: bool) -> Self {
        let number = |name: &str| row.get(name) as u32;
        let (uid, gid, cuid, cgid) = (number("uid"), number("gid"), number("cuid"), number("cgid"));
        Self { id: row.id, key: row.key, mode: row.mode & 0o777, uid, gid, cuid, cgid, probably }
    }

    /// What can be set of it.
    pub fn owner(&self) -> crate::sys::ipc::Owner {
        crate::sys::ipc::Owner { uid: self.uid, gid: self.gid, mode: self.mode }
    }
}

/// The job, as far as its System V objects go.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// Its root.
    pub root: i32,
    /// Its processes, with those that have ended unnoticed.
    pub pids: Vec<i32>,
    /// How many mappings of each segment it has.
    pub attached: BTreeMap<i32, u64>,
    /// Objects that its threads wait in.
    pub waited: BTreeSet<(Kind, i32)>,
    /// Objects that were its own at the last checkpoint.
    pub known: BTreeSet<(Kind, i32)>,
    /// What will be undone.
    pub undo: Vec<sem::Undone>,
    /// Whether it stands still, so that all of this belongs together.
    pub frozen: bool,
}

/// Whose an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Own,
    Probable,
    None,
}

impl Users {
    /// Adds the mappings of one address space.
    pub fn add_mappings(&mut self, vmas: &[procfs::Vma]) {
        for vma in vmas.iter().filter(|v| shm::is_attachment(v)) {
            *self.attached.entry(vma.inode as i32).or_default() += 1;
        }
    }

    /// Adds what a thread is in that was in system call `number` with this first argument.
    pub fn add_call(&mut self, number: i64, first: u64) {
        let kind = match number {
            libc::SYS_semop | libc::SYS_semtimedop => Kind::Semaphores,
            libc::SYS_msgrcv | libc::SYS_msgsnd => Kind::Queue,
            _ => return,
        };
        self.waited.insert((kind, first as i32));
    }

    /// Whose an object is, and which living process keeps it from being the job's alone.
    fn claim(&self, kind: Kind, row: &Row, usage: &Usage, since: &Since) -> (Claim, Option<i32>) {
        let of = (kind, row.id);
        let used = usage.last.iter().any(|pid| self.pids.contains(pid));
        if used || self.waited.contains(&of) || self.known.contains(&of) {
            return (Claim::Own, usage.stranger);
        }
        let ours = since.users.contains(&(row.get("cuid") as u32)) && row.get("ctime") >= since.began;
        let probable = ours && usage.stranger.is_none() && !usage.foreign;
        (if probable { Claim::Probable } else { Claim::None }, None)
    }
}

/// Who uses an object.
#[derive(Clone, Debug, Default)]
struct Usage {
    /// Who made it or used it last.
    last: Vec<i32>,
    /// A living process outside of the job that uses it; 0 for one that cannot be found.
    stranger: Option<i32>,
    /// Somebody outside of the job who lives has made it or used it once.
    foreign: bool,
}

impl Usage {
    /// Of an object that these processes used last, `job` being those of the job.
    fn by(last: Vec<i32>, job: &[i32], row: &Row) -> Self {
        let stranger = last.iter().copied().find(|pid| !job.contains(pid) && is_living_user(*pid, row.last_use()));
        Self { last, stranger, foreign: false }
    }
}

/// Since when objects may be the job's, and whose.
struct Since {
    began: i64,
    users: BTreeSet<u32>,
}

impl Since {
    fn of(users: &Users) -> Self {
        const TICKS: f64 = 100.0;
        let uptime = procfs::text("/proc/uptime").unwrap_or_default();
        let uptime: f64 = uptime.split_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or(0.0);
        let age = procfs::start_time(users.root).map_or(0.0, |start| uptime - start as f64 / TICKS);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let uid = |pid: &i32| Status::read(*pid, *pid).ok().and_then(|s| s.numbers("Uid").get(1).copied());
        Self { began: (now - age).floor() as i64 - 1, users: users.pids.iter().filter_map(uid).collect() }
    }
}

/// An object of the job.
struct Found {
    row: Row,
    object: Object,
    usage: Usage,
}

/// Looks through the objects of one kind for the job's, and for what speaks against these.
fn find(kind: Kind, users: &Users, usage_of: impl Fn(&Row) -> Option<Usage>) -> Result<(Vec<Found>, Vec<Refusal>)> {
    let (mut found, mut refusals) = (Vec::new(), Vec::new());
    let rows = kind.rows()?;
    if rows.is_empty() {
        return Ok((found, refusals));
    }
    let since = Since::of(users);
    for row in rows {
        // One that was removed meanwhile is none.
        let Some(usage) = usage_of(&row) else { continue };
        let (claim, stranger) = users.claim(kind, &row, &usage, &since);
        if claim == Claim::None {
            continue;
        }
        if let Some(pid) = stranger {
            let why = format!("is used by the job and by {}, which is not of the job", name_of(pid));
            refusals.push(refusal(users, kind, row.id, why, "checkpoint both as one job, or end that process"));
        }
        let object = Object::new(&row, claim == Claim::Probable);
        found.push(Found { row, object, usage });
    }
    Ok((found, refusals))
}

fn refusal(users: &Users, kind: Kind, id: i32, why: String, todo: &str) -> Refusal {
    Refusal { pid: users.root, place: format!("{} {id}", kind.name()), why, todo: todo.to_owned() }
}

/// Everything about the job's System V objects that could not be restored.
///
/// # Errors
/// When `/proc/sysvipc` cannot be read.
pub fn refusals(users: &Users) -> Result<Vec<Refusal>> {
    let mut all = shm::find(users)?.1;
    all.extend(sem::find(users)?.1);
    all.extend(msg::find(users)?.1);
    Ok(all)
}

/// Reads the job's objects. Gives back the contents of segments that nobody has attached, too.
///
/// # Errors
/// [`Error::Refused`], and when something cannot be read.
pub fn capture(users: &Users, spaces: &mut Spaces) -> Result<(Ipc, Vec<Source>)> {
    let ((segments, mut refusals), (sets, more), (queues, most)) =
        (shm::find(users)?, sem::find(users)?, msg::find(users)?);
    refusals.extend(more.into_iter().chain(most));
    if !refusals.is_empty() {
        return Err(Error::Refused(refusals));
    }
    let mut sources = Vec::new();
    let mut ipc = Ipc { place: place(), pids: users.pids.clone(), ..Ipc::default() };
    for found in segments {
        let (segment, source) = shm::capture(&found, users, spaces)?;
        ipc.segments.push(segment);
        sources.extend(source);
    }
    for found in sets {
        ipc.semaphores.push(sem::capture(found, &users.undo)?);
    }
    for found in queues {
        ipc.queues.push(msg::capture(&found)?);
    }
    Ok((ipc, sources))
}

impl Ipc {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.semaphores.is_empty() && self.queues.is_empty()
    }

    /// Its objects by kind and id, but those that are only probably the job's.
    pub fn ids(&self) -> BTreeSet<(Kind, i32)> {
        let segments = self.segments.iter().map(|s| (Kind::Segment, s.object));
        let sets = self.semaphores.iter().map(|s| (Kind::Semaphores, s.object));
        let queues = self.queues.iter().map(|q| (Kind::Queue, q.object));
        let all = segments.chain(sets).chain(queues);
        all.filter(|(_, object)| !object.probably).map(|(kind, object)| (kind, object.id)).collect()
    }

    /// Holds the objects against what is here. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NotHere`] that names the object and who is in its way.
    pub fn check(&self) -> Result<()> {
        self.segments.iter().try_for_each(|s| s.plan(self).map(drop))?;
        self.semaphores.iter().try_for_each(|s| s.plan(self).map(drop))?;
        self.queues.iter().try_for_each(|q| q.plan(self).map(drop))
    }
}

/// The boot, and the ipc namespace in it.
pub fn place() -> String {
    let boot = procfs::text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/ipc").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

/// Whether a process lives that may have used an object at that time (in seconds since 1970): a pid may be another's by now.
fn is_living_user(pid: i32, at: i64) -> bool {
    /// Times in seconds are cut off, and clocks are set.
    const SLACK: i64 = 3;
    let me = std::process::id() as i32;
    // The number may also be that of a thread, which uses nothing under its own number.
    let lives = |s: Status| s.get("Tgid") == pid.to_string() && !s.get("State").starts_with(['Z', 'X']);
    if pid <= 0 || pid == me || !Status::read(pid, pid).is_ok_and(lives) {
        return false;
    }
    Since::of(&Users { root: pid, ..Users::default() }).began <= at + SLACK
}

/// A process in words; 0 for one that is not to be found.
fn name_of(pid: i32) -> String {
    let command = procfs::text(&format!("/proc/{pid}/comm")).map(|t| t.trim().to_owned()).unwrap_or_default();
    if pid == 0 { "a process that cr cannot see".to_owned() } else { format!("pid {pid} ({command})") }
}
