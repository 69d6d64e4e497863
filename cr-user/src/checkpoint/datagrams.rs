//! What no system call shows of the sockets of a stopped job: what they have not read, and where their multicasts leave.

use std::collections::HashMap;

use crate::checkpoint::member::{self, Member};
use crate::checkpoint::watch::Watch;
use crate::error::{Error, Refusal, Result};
use crate::object::files::net::queue::{self, Datagram, Policy, Waiting};
use crate::object::files::{Files, net};
use crate::track::datagrams::QueuedDatagram;

/// Reads queues into the record as the policy has it, and takes nothing out. Gives back what is lost, in words.
///
/// # Errors
/// [`Error::Refused`] when something waits and the policy is to refuse that.
pub fn read_hidden(
    members: &[Member],
    files: &mut Files,
    watch: &mut Option<Watch>,
    policy: Policy,
) -> Result<Vec<String>> {
    let waiting = queue::waiting(files);
    if policy == Policy::Refuse && !waiting.is_empty() {
        return Err(Error::Refused(waiting.iter().map(refusal).collect()));
    }
    let senders = net::multicast_senders(files);
    if waiting.is_empty() && senders.is_empty() {
        return Ok(Vec::new());
    }
    if watch.is_none() {
        *watch = Watch::look_only().inspect_err(|e| log::info!("no eBPF programs: {e}")).ok();
    }
    let mut eye = Eye { watch: watch.as_mut(), names: HashMap::new() };
    let mut notes = Vec::new();
    if let Err(why) = eye.look_at_senders(files, &senders) {
        // Most never chose one: whoever uses multicasts may have.
        let doubtful = senders.iter().filter(|s| s.uses_multicasts);
        let note = |s: &net::Sender| {
            format!(
                "pid {}: fd {} is {}: by which interface its multicasts leave is not known ({why})",
                s.at.0, s.at.1, s.what
            )
        };
        notes.extend(doubtful.map(note));
    }
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
        match eye.look_at_queue(members, &socket) {
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

/// A look into the kernel's memory.
struct Eye<'a> {
    watch: Option<&'a mut Watch>,
    /// The kernel's names of the files of a process, by descriptor.
    names: HashMap<i32, HashMap<u32, u64>>,
}

impl Eye<'_> {
    fn file(&mut self, (pid, fd): (i32, i32)) -> std::result::Result<u64, String> {
        let watch = self.watch.as_ref().ok_or("no eBPF programs")?;
        let list = || watch.descriptors(pid).unwrap_or_default().into_iter().map(|r| (r.fd, r.file)).collect();
        let names = self.names.entry(pid).or_insert_with(list);
        names.get(&(fd as u32)).copied().ok_or_else(|| "the kernel does not list its descriptor".to_owned())
    }

    fn look_at_senders(&mut self, files: &mut Files, senders: &[net::Sender]) -> std::result::Result<(), String> {
        let names = senders.iter().map(|s| self.file(s.at)).collect::<std::result::Result<Vec<_>, _>>()?;
        let watch = self.watch.as_mut().ok_or("no eBPF programs")?;
        let found = watch.hints.multicast_interfaces(&names).map_err(|e| e.to_string())?;
        senders.iter().zip(found).for_each(|(sender, number)| sender.set(files, number));
        Ok(())
    }

    /// The datagrams in a queue that can be read, and how many cannot.
    fn look_at_queue(
        &mut self,
        members: &[Member],
        socket: &Waiting,
    ) -> std::result::Result<(Vec<Datagram>, usize), String> {
        let file = self.file(socket.at)?;
        let watch = self.watch.as_mut().ok_or("no eBPF programs")?;
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
}
