//! System V objects: made by the processes that had made them, filled, and used as they had been used, so that the kernel notes
//! for each who it was.

use std::fs;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::object::ipc::msg::{Message, Queue};
use crate::object::ipc::sem::{Operation, Set};
use crate::object::ipc::shm::Segment;
use crate::object::ipc::table::Plan;
use crate::object::ipc::{Kind, Object};
use crate::object::memory::Mapping;
use crate::object::memory::advice;
use crate::object::memory::backing::{Backing, ObjectKind};
use crate::object::spaces::Spaces;
use crate::ranges::RangeSet;
use crate::remote::Call;
use crate::restore::body::Body;
use crate::restore::memory;
use crate::restore::saved::Saved;
use crate::store::Chain;
use crate::sys::PAGE;
use crate::sys::ipc::{self as calls, Ask};

/// Objects that were made here: they are removed again if the job does not come to run.
#[derive(Debug, Default)]
pub struct Made {
    objects: Vec<(Kind, i32)>,
}

impl Made {
    /// The job runs: they are its own.
    pub fn keep(mut self) {
        self.objects.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for (kind, id) in self.objects.drain(..) {
            let _ = remove(kind, id);
        }
    }
}

fn remove(kind: Kind, id: i32) -> nix::Result<()> {
    match kind {
        Kind::Segment => calls::remove_segment(id),
        Kind::Semaphores => calls::remove_semaphores(id),
        Kind::Queue => calls::remove_queue(id),
    }
}

/// Shared memory: made or put back, and attached wherever it was.
///
/// # Errors
/// When a segment, or its key, is somebody else's by now, or the kernel refuses.
pub fn attach(bodies: &mut [Body], saved: &Saved, chain: &Chain, made: &mut Made) -> Result<()> {
    let segments = &saved.ipc.segments;
    let mut restored = Vec::new();
    for segment in segments {
        let plan = segment.plan(&saved.ipc)?;
        if plan == Plan::Make {
            let maker = body_of(bodies, segment.maker);
            let size = segment.size;
            create(Kind::Segment, &segment.object, libc::SYS_shmget, Some(size), maker, made)?;
        }
        if plan != Plan::Leave {
            fill(segment, plan, chain, &saved.omitted.pages_of(segment.space))?;
            restored.push(segment);
        }
    }
    for body in bodies.iter_mut() {
        let living = saved.find(body.pid()).expect("a body for each");
        attachments(&living.mappings).iter().try_for_each(|attachment| attachment.make(body))?;
    }
    for segment in restored {
        let id = segment.object.id;
        let failed = |e| failed(Kind::Segment, id, e);
        // The last to attach or detach is to be who it was.
        let touch =
            vec![Call::new(libc::SYS_shmat, &[id as u64, 0, 0]), Call::new(libc::SYS_shmdt, &[0]).first_from(0)];
        body_of(bodies, segment.last).run(0, touch, "attaching shared memory")?;
        calls::set_segment(id, segment.object.owner()).map_err(failed)?;
        calls::lock_segment(id, segment.locked).map_err(failed)?;
        if segment.removed {
            calls::remove_segment(id).map_err(failed)?;
        }
    }
    Ok(())
}

fn fill(segment: &Segment, plan: Plan, chain: &Chain, left_out: &RangeSet) -> Result<()> {
    let failed = |e| Error::system(format!("attaching {} {}", Kind::Segment.name(), segment.object.id), e);
    let file = calls::segment_file(segment.object.id, segment.size, true).map_err(failed)?;
    if plan == Plan::Make {
        memory::fill_object(chain, segment.space, &file)
    } else {
        memory::put_back_file(chain, &chain.finder(segment.space), &file, 0..segment.size, left_out)
    }
}

/// What one call of `shmat` attached, as far as it is still there. `shmdt` takes all of it out, and nothing else: the pieces
/// must come from one call again.
struct Attachment<'a> {
    id: i32,
    /// Where the segment's first byte is, or would be.
    base: u64,
    size: u64,
    writable: bool,
    executable: bool,
    pieces: Vec<&'a Mapping>,
}

fn attachments(mappings: &[Mapping]) -> Vec<Attachment<'_>> {
    let mut all: Vec<Attachment<'_>> = Vec::new();
    for mapping in mappings {
        let Backing::Object(object) = &mapping.backing else { continue };
        let ObjectKind::SystemV(id) = object.kind else { continue };
        let (base, writable) = (mapping.start.wrapping_sub(mapping.offset), mapping.has(advice::MAY_WRITE));
        let executable = mapping.prot & libc::PROT_EXEC != 0;
        match all.iter_mut().find(|a| (a.id, a.base, a.writable) == (id, base, writable)) {
            Some(attachment) => {
                attachment.executable |= executable;
                attachment.pieces.push(mapping);
            }
            None => all.push(Attachment { id, base, size: object.size, writable, executable, pieces: vec![mapping] }),
        }
    }
    all
}

impl Attachment<'_> {
    /// Attaches the segment where the kernel likes, moves the pieces to their places, and takes the rest out: the kernel then
    /// counts each among the attachments, and `shmdt` finds them.
    fn make(&self, body: &mut Body) -> Result<()> {
        let flag = |set: bool, flag: i32| if set { flag } else { 0 };
        let flags = flag(!self.writable, libc::SHM_RDONLY) | flag(self.executable, libc::SHM_EXEC);
        let attach = Call::new(libc::SYS_shmat, &[self.id as u64, 0, flags as u64]);
        let at = body.run(0, vec![attach], "attaching shared memory")?[0];
        let prot = libc::PROT_READ | flag(self.writable, libc::PROT_WRITE) | flag(self.executable, libc::PROT_EXEC);
        let mut calls = Vec::new();
        for piece in &self.pieces {
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let args = [at + piece.offset, piece.len(), piece.len(), flags, piece.start];
            calls.push(Call::new(libc::SYS_mremap, &args));
            if piece.prot != prot {
                calls.push(Call::new(libc::SYS_mprotect, &[piece.start, piece.len(), piece.prot as u64]));
            }
        }
        calls.push(Call::new(libc::SYS_munmap, &[at, self.size.next_multiple_of(PAGE)]));
        body.run(0, calls, "putting shared memory in its place").map(drop)
    }
}

/// Semaphores and queues.
///
/// # Errors
/// When one, or its key, is somebody else's by now, or the kernel refuses.
pub fn restore(bodies: &mut [Body], saved: &Saved, made: &mut Made) -> Result<()> {
    for set in &saved.ipc.semaphores {
        let plan = set.plan(&saved.ipc)?;
        if plan != Plan::Leave {
            restore_set(bodies, set, plan, made)?;
        }
    }
    for queue in &saved.ipc.queues {
        let plan = queue.plan(&saved.ipc)?;
        if plan != Plan::Leave {
            restore_queue(bodies, queue, plan, made)?;
        }
    }
    Ok(())
}

fn restore_set(bodies: &mut [Body], set: &Set, plan: Plan, made: &mut Made) -> Result<()> {
    const SETVAL: u64 = 16;
    let id = set.object.id;
    let count = set.values.len() as u64;
    if plan == Plan::Make {
        create(Kind::Semaphores, &set.object, libc::SYS_semget, Some(count), body_of(bodies, 0), made)?;
    } else {
        // Clears what is undone, too. Those that nobody has touched stay so.
        let touched = (0..count).filter(|n| calls::ask_semaphore(id, *n as usize, Ask::Pid) != Ok(0));
        let zero = |number| Call::new(libc::SYS_semctl, &[id as u64, number, SETVAL, 0]);
        body_of(bodies, 0).run(0, touched.map(zero).collect(), "setting semaphores to 0")?;
    }
    for (pid, operations) in set.steps() {
        let body = body_of(bodies, pid);
        body.put(&operations.iter().copied().flat_map(Operation::bytes).collect::<Vec<u8>>())?;
        let call = Call::new(libc::SYS_semop, &[id as u64, body.data(), operations.len() as u64]);
        body.run(0, vec![call], "setting a semaphore")?;
    }
    calls::set_semaphores(id, set.object.owner()).map_err(|e| failed(Kind::Semaphores, id, e))
}

fn restore_queue(bodies: &mut [Body], queue: &Queue, plan: Plan, made: &mut Made) -> Result<()> {
    let id = queue.object.id;
    let failed = |e| failed(Kind::Queue, id, e);
    if plan == Plan::Make {
        create(Kind::Queue, &queue.object, libc::SYS_msgget, None, body_of(bodies, 0), made)?;
    }
    let room = |limit: u64| {
        calls::set_queue(id, queue.object.owner(), limit).map_err(|e| match e {
            Errno::EPERM => too_large(id, limit),
            e => failed(e),
        })
    };
    if plan == Plan::Reset {
        if queue.is_unchanged()? {
            return room(queue.limit);
        }
        empty(body_of(bodies, 0), id)?;
    }
    // Its limit may have been lowered below what it holds.
    let needed = queue.bytes().max(queue.messages.len() as u64).max(queue.limit);
    room(needed)?;
    if queue.receiver != 0 || queue.messages.is_empty() && queue.sender != 0 {
        // Something that is sent, and received.
        send(body_of(bodies, queue.sender), id, &Message { kind: 1, text: Vec::new() })?;
        let body = body_of(bodies, queue.receiver);
        let take = Call::new(libc::SYS_msgrcv, &[id as u64, body.data(), 0, 0, libc::IPC_NOWAIT as u64]);
        body.run(0, vec![take], "receiving a message")?;
    }
    if let Some((newest, older)) = queue.messages.split_last() {
        for message in older {
            calls::send_message(id, &message.bytes()).map_err(failed)?;
        }
        send(body_of(bodies, queue.sender), id, newest)?;
    }
    if needed == queue.limit { Ok(()) } else { room(queue.limit) }
}

/// Has a process receive all messages of a queue.
fn empty(body: &mut Body, id: i32) -> Result<()> {
    const CUT_OFF: i32 = 0o10000;
    let flags = (libc::IPC_NOWAIT | CUT_OFF) as u64;
    loop {
        let mut calls = [Call::new(libc::SYS_msgrcv, &[id as u64, body.data(), 0, 0, flags])];
        body.try_run(0, &mut calls)?;
        match calls[0].outcome() {
            Ok(_) => {}
            Err(Errno::ENOMSG) => return Ok(()),
            Err(e) => return Err(failed(Kind::Queue, id, e)),
        }
    }
}

/// Has a process send a message; we do it for one that is too long to be handed over.
fn send(body: &mut Body, id: i32, message: &Message) -> Result<()> {
    let bytes = message.bytes();
    if bytes.len() > Body::ROOM {
        return calls::send_message(id, &bytes).map_err(|e| failed(Kind::Queue, id, e));
    }
    body.put(&bytes)?;
    let args = [id as u64, body.data(), message.text.len() as u64, libc::IPC_NOWAIT as u64];
    body.run(0, vec![Call::new(libc::SYS_msgsnd, &args)], "sending a message").map(drop)
}

/// Tells which segment is which content space, so that the chain goes on with the same spaces.
pub fn adopt(saved: &Saved, spaces: &mut Spaces) {
    saved.ipc.segments.iter().for_each(|s| spaces.adopt_segment(s.object.id, s.space));
}

/// The process with a pid, or else the job's root.
fn body_of(bodies: &mut [Body], pid: i32) -> &mut Body {
    let at = bodies.iter().position(|b| b.pid() == pid).unwrap_or(0);
    &mut bodies[at]
}

/// Makes an object under the id that it had, by a process that is for this call who made it.
fn create(kind: Kind, object: &Object, number: i64, size: Option<u64>, body: &mut Body, made: &mut Made) -> Result<()> {
    const KEEP: u64 = u32::MAX as u64;
    let id = object.id;
    let flags = u64::from(object.mode) | (libc::IPC_CREAT | libc::IPC_EXCL) as u64;
    let args: Vec<u64> = [u64::from(object.key as u32)].into_iter().chain(size).chain([flags]).collect();
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let be = |call, id: u32| Call::new(call, &[KEEP, u64::from(id), KEEP]);
    let mut calls = vec![
        be(libc::SYS_setresgid, object.cgid),
        be(libc::SYS_setresuid, object.cuid),
        Call::new(number, &args),
        be(libc::SYS_setresuid, uid),
        be(libc::SYS_setresgid, gid),
    ];
    let next = kind.next_id();
    fs::write(&next, id.to_string()).map_err(|e| Error::system(format!("writing {id} to {next}"), e))?;
    body.try_run(0, &mut calls)?;
    let outcome = calls[2].outcome();
    if outcome.is_err() {
        // It would be the next object's.
        let _ = fs::write(&next, "-1");
    }
    if let Some(e) = calls.iter().enumerate().find_map(|(at, c)| c.outcome().err().filter(|_| at != 2)) {
        return Err(failed(kind, id, e));
    }
    match outcome.map(|got| got as i32) {
        Ok(got) if got == id => made.objects.push((kind, id)),
        Ok(got) => {
            let _ = remove(kind, got);
            return Err(taken(kind, id, "its number was taken by another object just now"));
        }
        Err(Errno::EEXIST) => return Err(taken(kind, id, "its key was taken by another object just now")),
        Err(e) => return Err(failed(kind, id, e)),
    }
    Ok(())
}

fn failed(kind: Kind, id: i32, e: Errno) -> Error {
    Error::system(format!("making {} {id} again", kind.name()), e)
}

fn taken(kind: Kind, id: i32, why: &str) -> Error {
    Error::NotHere {
        what: format!("the {} {id}", kind.name()),
        why: why.to_owned(),
        todo: "remove that one if nobody needs it (ipcs, ipcrm)".to_owned(),
    }
}

fn too_large(id: i32, limit: u64) -> Error {
    Error::NotHere {
        what: format!("the {} {id}", Kind::Queue.name()),
        why: format!("it takes {limit} bytes, more than a queue may have here"),
        todo: format!("raise the limit (sysctl kernel.msgmnb={limit})"),
    }
}
