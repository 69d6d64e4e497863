//! System V IPC: shared memory, semaphores, message queues. `ipc/` in the kernel.
//!
//! These objects outlive processes, and the kernel does not say whose they are. The rule, for each object of the namespace
//! (see [`table`]):
//!
//! - It is **the job's** if a process of the job, be it one that has ended since it was seen, has it attached or made it (memory),
//!   operated on it last (a semaphore of the set), or sent or received there last (a queue); if a thread of the job waits in it, or
//!   something will be undone in it when a process of the job ends; or if an older checkpoint of the chain says so.
//! - One that is the job's, and that a living process outside of the job has attached or used last, is refused, with that pid.
//! - It is **probably the job's** if nobody alive has used it and nobody else can have made it. It was made by a user of the job after
//!   the job began. In this namespace that user has no processes but the job, those that the job descends from, and `cr`. So the job
//!   made it and has not used it yet, or workers that have ended used it.
//! - What was probably the job's at the last checkpoint still is, whoever has come since, until somebody else uses it.
//! - All others are left out. One that may be the job's or somebody else's is named in the checkpoint.
//!
//! What is probably the job's is captured, and restored with care. What is here already is only changed if the job did use it.
//! Whatever somebody else uses is left alone. So two jobs of one user that run side by side never take each other's.
//!
//! A restore finds the objects where it left them if only the processes were killed: these go back to what they were. Those that
//! are gone are made again under the same id and key, by the process that had made them, where it lives.
//!
//! Not restored, because nobody can set them: the times of the last operations, and who operated last where that process had
//! ended (it is the job's root then). The content of a segment that nobody has attached can only be read by attaching it: its
//! times and its last pid change with a checkpoint.

pub mod msg;
mod past;
pub mod sem;
pub mod shm;
pub mod table;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Refusal, Result};
use crate::image::RecordKind;
use crate::object::memory::backing::Source;
use crate::object::records::Sound;
use crate::object::spaces::{Spaces, is_object_space};
use crate::procfs::{self, Status};

pub use past::Past;
pub use table::{Kind, Row};

/// The record of the job's System V objects.
pub const KIND: RecordKind = RecordKind { id: 10, version: 1, name: "ipc" };

/// The System V objects of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
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

    /// Whether an object that is here is the same, as far as that can be seen.
    fn is_made_like(&self, row: &Row) -> bool {
        self.key == row.key && (self.cuid, self.cgid) == (row.get("cuid") as u32, row.get("cgid") as u32)
    }

    /// What can be set of it.
    pub fn owner(&self) -> crate::sys::ipc::Owner {
        crate::sys::ipc::Owner { uid: self.uid, gid: self.gid, mode: self.mode }
    }
}

/// The job, as far as its System V objects go.
#[derive(Clone, Debug)]
pub struct Users<'a> {
    /// Its root.
    pub root: i32,
    /// Its processes, with those that have ended unnoticed.
    pub pids: Vec<i32>,
    /// What is remembered of it.
    pub past: &'a Past,
    /// How many mappings of each segment it has.
    pub attached: BTreeMap<i32, u64>,
    /// Objects that its threads wait in.
    pub waited: BTreeSet<(Kind, i32)>,
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
    /// It may be the job's, or of that process.
    Doubtful(i32),
    None,
}

impl<'a> Users<'a> {
    /// The job with that root and these processes. What it uses is to be added.
    pub fn new(root: i32, pids: Vec<i32>, past: &'a Past) -> Self {
        let (attached, waited) = (BTreeMap::new(), BTreeSet::new());
        Self { root, pids, past, attached, waited, undo: Vec::new(), frozen: false }
    }

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

    /// Whose an object is.
    fn claim(&self, kind: Kind, row: &Row, usage: &Usage, since: &Since) -> Claim {
        let of = (kind, row.id);
        let known = self.past.object(of);
        let used = usage.last.iter().any(|pid| self.pids.contains(pid) || self.had(*pid, kind, row));
        if used || self.waited.contains(&of) || known.is_some_and(|object| !object.probably) {
            return Claim::Own;
        }
        let other_user = usage.stranger.or(usage.foreign);
        let since_began = row.get("ctime") >= since.began;
        // Where the job was restored elsewhere, the number may be that of one that was here before.
        if known.is_some_and(|object| object.is_made_like(row)) && (self.past.is_of_here() || since_began) {
            return other_user.map_or(Claim::Probable, Claim::Doubtful);
        }
        if !since_began || !since.users.contains(&(row.get("cuid") as u32)) || other_user.is_some() {
            return Claim::None;
        }
        // Seldom a loss: what the job uses shows sooner or later whose it is.
        since.other(self).map_or(Claim::Probable, Claim::Doubtful)
    }

    /// Whether the number of a process that has ended is that of one of the job, rather than of one that came after it.
    fn had(&self, pid: i32, kind: Kind, row: &Row) -> bool {
        // Others may have attached it since.
        let at = if kind == Kind::Segment { row.get("ctime") } else { row.last_use() };
        self.past.had(pid, at) && !is_living_user(pid, at)
    }
}

/// Who uses an object.
#[derive(Clone, Debug, Default)]
struct Usage {
    /// Who made it or used it last.
    last: Vec<i32>,
    /// A living process outside of the job that uses it; 0 for one that cannot be found.
    stranger: Option<i32>,
    /// Somebody outside of the job who lives and has made it or used it once.
    foreign: Option<i32>,
}

impl Usage {
    /// Of an object that these processes used last, `job` being those of the job.
    fn by(last: Vec<i32>, job: &[i32], row: &Row) -> Self {
        let stranger = last.iter().copied().find(|pid| !job.contains(pid) && is_living_user(*pid, row.last_use()));
        Self { last, stranger, foreign: None }
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
    fn of(users: &Users<'_>) -> Self {
        let began = past::beginning_of(users.root);
        let users = users.pids.iter().filter_map(|pid| effective_user(*pid)).collect();
        Self { began, users, other: OnceCell::new() }
    }

    /// A process in our namespace of a user of the job that is not of the job, and that the job does not descend from.
    fn other(&self, job: &Users<'_>) -> Option<i32> {
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

/// What a look through the objects of one kind has found.
#[derive(Default)]
struct Findings {
    found: Vec<Found>,
    /// What speaks against these.
    refusals: Vec<Refusal>,
    /// What is left out, though it may be the job's.
    notes: Vec<String>,
    /// Every process that an object names, whosesoever it is.
    named: BTreeSet<i32>,
}

/// Looks through the objects of one kind for the job's.
fn find(kind: Kind, users: &Users<'_>, usage_of: impl Fn(&Row) -> Option<Usage>) -> Result<Findings> {
    let mut findings = Findings::default();
    let rows = kind.rows()?;
    if rows.is_empty() {
        return Ok(findings);
    }
    let since = Since::of(users);
    let mut doubtful: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for row in rows {
        // One that was removed meanwhile is none.
        let Some(usage) = usage_of(&row) else { continue };
        findings.named.extend(&usage.last);
        let claim = users.claim(kind, &row, &usage, &since);
        match (claim, usage.stranger) {
            (Claim::None, _) => continue,
            (Claim::Doubtful(other), _) => {
                doubtful.entry(other).or_default().push(row.id.to_string());
                continue;
            }
            (Claim::Own, Some(pid)) => {
                let why = format!("is used by the job and by {}, which is not of the job", name_of(pid));
                let todo = "checkpoint both as one job, or end that process";
                findings.refusals.push(refusal(users, kind, row.id, why, todo));
            }
            _ => {}
        }
        let object = Object::new(&row, claim == Claim::Probable);
        findings.found.push(Found { row, object, usage });
    }
    let note = |(other, ids): (i32, Vec<String>)| {
        format!("{} {} left out: may be the job's, or of {}", kind.name(), ids.join(", "), name_of(other))
    };
    findings.notes = doubtful.into_iter().map(note).collect();
    Ok(findings)
}

fn refusal(users: &Users<'_>, kind: Kind, id: i32, why: String, todo: &str) -> Refusal {
    Refusal { pid: users.root, place: format!("{} {id}", kind.name()), why, todo: todo.to_owned() }
}

/// Everything about the job's System V objects that could not be restored.
///
/// # Errors
/// When `/proc/sysvipc` cannot be read.
pub fn refusals(users: &Users<'_>) -> Result<Vec<Refusal>> {
    let mut all = shm::find(users)?.refusals;
    all.extend(sem::find(users)?.refusals);
    all.extend(msg::find(users)?.refusals);
    Ok(all)
}

/// What a capture gives.
#[derive(Debug, Default)]
pub struct Captured {
    /// The record.
    pub ipc: Ipc,
    /// The contents of segments that nobody has attached.
    pub sources: Vec<Source>,
    /// What to say of the checkpoint.
    pub notes: Vec<String>,
    /// Every process that an object of the namespace names as its user.
    named: BTreeSet<i32>,
}

/// Reads the job's objects.
///
/// # Errors
/// [`Error::Refused`], and when something cannot be read.
pub fn capture(users: &Users<'_>, spaces: &mut Spaces) -> Result<Captured> {
    let mut all = [shm::find(users)?, sem::find(users)?, msg::find(users)?];
    let refusals: Vec<Refusal> = all.iter_mut().flat_map(|f| std::mem::take(&mut f.refusals)).collect();
    if !refusals.is_empty() {
        return Err(Error::Refused(refusals));
    }
    let mut captured = Captured::default();
    for findings in &mut all {
        captured.notes.append(&mut findings.notes);
        captured.named.append(&mut findings.named);
    }
    let [segments, sets, queues] = all.map(|f| f.found);
    let mut ipc = Ipc { place: place(), pids: users.pids.clone(), ..Ipc::default() };
    for found in segments {
        let (segment, source) = shm::capture(&found, users, spaces)?;
        ipc.segments.push(segment);
        captured.sources.extend(source);
    }
    for found in sets {
        ipc.semaphores.push(sem::capture(found, &users.undo)?);
    }
    for found in queues {
        ipc.queues.push(msg::capture(&found)?);
    }
    Ok(Captured { ipc, ..captured })
}

impl Ipc {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.semaphores.is_empty() && self.queues.is_empty()
    }

    /// Its objects by kind and id.
    fn objects(&self) -> BTreeMap<(Kind, i32), Object> {
        let segments = self.segments.iter().map(|s| (Kind::Segment, s.object));
        let sets = self.semaphores.iter().map(|s| (Kind::Semaphores, s.object));
        let queues = self.queues.iter().map(|q| (Kind::Queue, q.object));
        let all = segments.chain(sets).chain(queues);
        all.map(|(kind, object)| ((kind, object.id), object)).collect()
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
    past::beginning_of(pid) <= at + SLACK
}

/// A process in words; 0 for one that is not to be found.
fn name_of(pid: i32) -> String {
    let command = procfs::text(&format!("/proc/{pid}/comm")).map(|t| t.trim().to_owned()).unwrap_or_default();
    if pid == 0 { "a process that cr cannot see".to_owned() } else { format!("pid {pid} ({command})") }
}

impl Sound for Ipc {
    fn fault(&self) -> Option<String> {
        let segment = self.segments.iter().find(|s| !is_object_space(s.space) || s.size > 1 << 63);
        let set = self.semaphores.iter().find(|s| s.values.len() != s.last.len());
        let segment = segment.map(|s| format!("segment {} has an impossible size or number", s.object.id));
        segment.or_else(|| set.map(|s| format!("the set {} of semaphores is not whole", s.object.id)))
    }
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
        let usage = Usage { last: vec![NOBODY], ..Usage::default() };
        let since = Since { began: 2000, users: BTreeSet::new(), other: OnceCell::new() };
        let claim = |seen: &[i64]| {
            let mut past = Past::default();
            for at in seen {
                past.saw(NOBODY, *at);
            }
            Users::new(1, Vec::new(), &past).claim(Kind::Segment, &row, &usage, &since)
        };
        assert_eq!(claim(&[]), Claim::None);
        assert_eq!(claim(&[1500]), Claim::Own);
        assert_eq!(claim(&[1000, 500]), Claim::Own);
        // Its number had become another's by then.
        assert_eq!(claim(&[500, 997]), Claim::None);
    }

    #[test]
    fn what_nobody_used_is_probably_the_jobs_unless_somebody_else_can_have_made_it() {
        let row = table::parse("key semid perms cuid ctime\n0 5 600 0 3000\n").remove(0);
        let claim = |other| {
            let since = Since { began: 2000, users: [0].into(), other: OnceCell::from(other) };
            Users::new(1, Vec::new(), &Past::default()).claim(Kind::Semaphores, &row, &Usage::default(), &since)
        };
        assert_eq!(claim(None), Claim::Probable);
        assert_eq!(claim(Some(4711)), Claim::Doubtful(4711));
    }

    #[test]
    fn what_was_probably_the_jobs_stays_so_whoever_comes() {
        let row = |key: i32, ctime: i64| {
            table::parse(&format!("key msqid perms cuid ctime\n{key} 5 600 0 {ctime}\n")).remove(0)
        };
        let object = Object::new(&row(7, 3000), true);
        let queue = msg::Queue { object, limit: 0, messages: Vec::new(), sender: 0, receiver: 0 };
        let claim = |place: &str, row: &Row, usage: &Usage| {
            let ipc = Ipc { place: place.to_owned(), queues: vec![queue.clone()], ..Ipc::default() };
            let past = Past::of_chain(&ipc);
            let since = Since { began: 2000, users: [0].into(), other: OnceCell::from(Some(4711)) };
            Users::new(1, Vec::new(), &past).claim(Kind::Queue, row, usage, &since)
        };
        let (here, nobody) = (place(), Usage::default());
        assert_eq!(claim(&here, &row(7, 3000), &nobody), Claim::Probable);
        // The job was killed and restored: it is older than the job's root now.
        assert_eq!(claim(&here, &row(7, 1000), &nobody), Claim::Probable);
        // A restore elsewhere has made it again, or has found another there.
        assert_eq!(claim("elsewhere", &row(7, 3000), &nobody), Claim::Probable);
        assert_eq!(claim("elsewhere", &row(7, 1000), &nobody), Claim::None);
        assert_eq!(claim(&here, &row(8, 1000), &nobody), Claim::None);
        let stranger = Usage { stranger: Some(12), ..Usage::default() };
        assert_eq!(claim(&here, &row(7, 3000), &stranger), Claim::Doubtful(12));
    }
}
