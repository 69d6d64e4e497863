//! What the sockets of a stopped job have not read: datagrams of UDP, and whatever cannot be kept.

use crate::checkpoint::member::{self, Member};
use crate::checkpoint::watch::Watch;
use crate::error::{Error, Refusal, Result};
use crate::object::files::Files;
use crate::object::files::net::queue::{self, Datagram, Policy, Waiting};
use crate::track::datagrams::QueuedDatagram;

/// Reads queues into the record as the policy has it, and takes nothing out. Gives back what is lost, in words.
///
/// # Errors
/// [`Error::Refused`] when something waits and the policy is to refuse that.
pub fn read_queues(
    members: &[Member],
    files: &mut Files,
    watch: &mut Option<Watch>,
    policy: Policy,
) -> Result<Vec<String>> {
    let waiting = queue::waiting(files);
    if policy == Policy::Refuse && !waiting.is_empty() {
        return Err(Error::Refused(waiting.iter().map(refusal).collect()));
    }
    let mut notes = Vec::new();
    for socket in waiting {
        let (pid, fd) = socket.at;
        let mut note = |lost: &str| notes.push(format!("pid {pid}: fd {fd} is {}: {lost}", socket.what));
        if socket.reports {
            note("an error that waited to be told is not kept");
        }
        if !socket.waits {
            continue;
        }
        if policy == Policy::Drop || !socket.can_be_kept {
            note("what it had not read is not kept");
            continue;
        }
        match look(members, watch, &socket) {
            Ok((kept, mut lost)) => {
                lost += queue::set(files, socket.description, kept);
                if lost > 0 {
                    note(&format!("{lost} of the datagrams that it had not read are not kept"));
                }
            }
            Err(why) => note(&format!("what it had not read is not kept ({why})")),
        }
    }
    Ok(notes)
}

fn refusal(socket: &Waiting) -> Refusal {
    let what = if socket.waits { "something that the job has not read" } else { "an error that the job was not told" };
    Refusal {
        pid: socket.at.0,
        place: format!("fd {}", socket.at.1),
        why: format!("is {}, which holds {what} (--udp refuse)", socket.what),
        todo: "try again once it has, or use --udp keep".to_owned(),
    }
}

/// The datagrams in a queue that can be read, and how many cannot.
fn look(
    members: &[Member],
    watch: &mut Option<Watch>,
    socket: &Waiting,
) -> std::result::Result<(Vec<Datagram>, usize), String> {
    if watch.is_none() {
        *watch = Some(Watch::look_only().map_err(|e| format!("no eBPF programs: {e}"))?);
    }
    let Some(watch) = watch else { return Err("no eBPF programs".to_owned()) };
    let (pid, fd) = socket.at;
    let records = watch.descriptors(pid).unwrap_or_default();
    let file = records.iter().find(|r| r.fd == fd as u32).map(|r| r.file);
    let file = file.ok_or("the kernel does not list its descriptor")?;
    let queued = watch.hints.datagrams(file).map_err(|e| e.to_string())?;
    let (mut kept, mut lost) = (Vec::new(), 0);
    for (nth, one) in queued.into_iter().enumerate() {
        let QueuedDatagram { from, to, hops, service, segment, bytes } = one;
        // The first of all can be looked at, wherever it lies.
        let first = || queue::first(&member::holders(members), socket.at);
        let Some(bytes) = bytes.or_else(|| if nth == 0 { first() } else { None }) else {
            lost += 1;
            continue;
        };
        let parts: Vec<&[u8]> = match segment {
            0 => vec![&bytes],
            size => bytes.chunks(size).collect(),
        };
        kept.extend(parts.into_iter().map(|part| Datagram { from, to, hops, service, bytes: part.to_vec() }));
    }
    Ok((kept, lost))
}
