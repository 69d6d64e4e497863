//! System V IPC: shared memory, semaphores, message queues. `ipc/` in the kernel.
//!
//! These objects outlive processes, and the kernel does not say whose they are. The rule, for each object of the namespace
//! (see [`table`]):
//!
//! - It is **the job's** if a process of the job, be it one that has ended since it was seen, has it attached or made it (memory),
//!   operated on it last (a semaphore of the set), or sent or received there last (a queue); if a thread of the job waits in it, or
//!   something will be undone in it when a process of the job ends; or if an older checkpoint of the chain says so.
//! - One that is the job's, and that a living process outside of the job has attached or used last, is refused, with that pid.
//! - It is **probably the job's** if nobody alive has used it, it was made by a user of the job after the job began, and nobody else
//!   can have made it: in this namespace that user has no processes but the job, those that it descends from, and `cr`. So it was made
//!   and not used yet, or used by workers that have ended. Such an object is captured, and restored with care: what is here
//!   already is only changed if the job did use it, and whatever somebody else uses is left alone. Two jobs of one user that run
//!   side by side never take each other's.
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

use std::cell::OnceCell;
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
    /// Processes that it has had, each with a time at which that was so (in seconds since 1970).
    pub past: BTreeMap<i32, i64>,
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
        let used = usage.last.iter().any(|pid| self.pids.contains(pid) || self.had(*pid, kind, row));
        if used || self.waited.contains(&of) || self.known.contains(&of) {
            return (Claim::Own, usage.stranger);
        }
        let ours = since.users.contains(&(row.get("cuid") as u32)) && row.get("ctime") >= since.began;
        let probable = ours && usage.stranger.is_none() && !usage.foreign;
        if probable && let Some(other) = since.other(self) {
            // Seldom a loss: what the job uses shows sooner or later whose it is.
            log::warn!("{} {} may be the job's, or of {}: it is left out", kind.name(), row.id, name_of(other));
            return (Claim::None, None);
        }
        (if probable { Claim::Probable } else { Claim::None }, None)
    }

    /// Whether the number of a process that has ended is that of one of the job, rather than of one that came after it.
    fn had(&self, pid: i32, kind: Kind, row: &Row) -> bool {
        // Others may have attached it since.
        let at = if kind == Kind::Segment { row.get("ctime") } else { row.last_use() };
        self.past.get(&pid).is_some_and(|last| at <= last + SLACK) && !is_living_user(pid, at)
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

/// Times in seconds are cut off, and clocks are set.
const SLACK: i64 = 3;

/// Since when objects may be the job's, and whose.
struct Since {
    began: i64,
    users: BTreeSet<u32>,
    /// A process of these users that may have made objects too; looked for when it matters.
    other: OnceCell<Option<i32>>,
}

impl Since {
    fn of(users: &Users) -> Self {
        const TICKS: f64 = 100.0;
        let uptime = procfs::text("/proc/uptime").unwrap_or_default();
        let uptime: f64 = uptime.split_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or(0.0);
        let age = procfs::start_time(users.root).map_or(0.0, |start| uptime - start as f64 / TICKS);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let users = users.pids.iter().filter_map(|pid| effective_user(*pid)).collect();
        Self { began: (now - age).floor() as i64 - 1, users, other: OnceCell::new() }
    }

    /// A process in our namespace of a user of the job that is not of the job, and that the job does not descend from.
    fn other(&self, job: &Users) -> Option<i32> {
        *self.other.get_or_init(|| {
            let line = |pid: i32| std::iter::successors(Some(pid), |pid| procfs::parent(*pid).filter(|p| *p > 0));
            let known: BTreeSet<i32> = line(job.root).chain(line(std::process::id() as i32)).collect();
            let namespace = |pid: i32| procfs::link(pid, "ns/ipc").ok();
            let ours = namespace(std::process::id() as i32);
            let own = procfs::link(std::process::id() as i32, "exe").ok();
            let is_other = |pid: &i32| {
                !known.contains(pid)
                    && !job.pids.contains(pid)
                    && effective_user(*pid).is_some_and(|uid| self.users.contains(&uid))
                    // Threads of the kernel have no program, and whoever asks us for a checkpoint has ours.
                    && procfs::link(*pid, "exe").is_ok_and(|exe| own.as_ref() != Some(&exe))
                    && namespace(*pid) == ours
            };
            procfs::processes().find(is_other)
        })
    }
}

fn effective_user(pid: i32) -> Option<u32> {
    Status::read(pid, pid).ok()?.numbers("Uid").get(1).copied()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that no process has.
    const NOBODY: i32 = i32::MAX;

    #[test]
    fn what_an_ended_process_of_the_job_made_is_the_jobs() {
        let text = "key shmid perms cpid cuid ctime\n0 5 600 2147483647 0 1000\n";
        let row = table::parse(text).remove(0);
        let usage = Usage { last: vec![NOBODY], stranger: None, foreign: false };
        let since = Since { began: 2000, users: BTreeSet::new(), other: OnceCell::new() };
        let claim = |past: &[(i32, i64)]| {
            let users = Users { past: past.iter().copied().collect(), ..Users::default() };
            users.claim(Kind::Segment, &row, &usage, &since).0
        };
        assert_eq!(claim(&[]), Claim::None);
        assert_eq!(claim(&[(NOBODY, 1500)]), Claim::Own);
        // Its number had become another's by then.
        assert_eq!(claim(&[(NOBODY, 500)]), Claim::None);
    }

    #[test]
    fn what_nobody_used_is_probably_the_jobs_unless_somebody_else_can_have_made_it() {
        let row = table::parse("key semid perms cuid ctime\n0 5 600 0 3000\n").remove(0);
        let claim = |other| {
            let since = Since { began: 2000, users: [0].into(), other: OnceCell::from(other) };
            Users::default().claim(Kind::Semaphores, &row, &Usage::default(), &since).0
        };
        assert_eq!(claim(None), Claim::Probable);
        assert_eq!(claim(Some(4711)), Claim::None);
    }
}
