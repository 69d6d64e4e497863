//! What no system call shows of the sockets of a stopped job: what they have not read, and what no option shows.

use std::collections::HashMap;

use crate::checkpoint::member::{self, Member};
use crate::checkpoint::watch::Watch;
use crate::error::{Error, Refusal, Result};
use crate::object::files::Files;
use crate::object::files::net::queue::{self, Datagram, Policy, Waiting};
use crate::object::files::net::{self, Secretive};
use crate::track::datagrams::{Hidden, QueuedDatagram};

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
    let secretive = net::secretive(files);
    if waiting.is_empty() && secretive.is_empty() {
        return Ok(Vec::new());
    }
    if watch.is_none() {
        *watch = Watch::look_only().inspect_err(|e| log::info!("no eBPF programs: {e}")).ok();
    }
    let mut eye = Eye { watch: watch.as_mut(), names: HashMap::new() };
    let mut notes = Vec::new();
    match eye.look_behind(&secretive) {
        Ok(found) => {
            let chosen = secretive.iter().zip(&found).filter(|(_, hidden)| hidden.chooses_by_program);
            let refusals: Vec<Refusal> = chosen.map(|(socket, _)| refusal_of_program(socket)).collect();
            if !refusals.is_empty() {
                return Err(Error::Refused(refusals));
            }
            secretive.iter().zip(found).for_each(|(socket, hidden)| socket.set(files, hidden.multicast_interface));
        }
        Err(why) => {
            // Most never chose anything: who seems to have is told of.
            for socket in secretive.iter().filter(|s| s.uses_multicasts || s.shares_port) {
                let (pid, fd) = socket.at;
                let what = if socket.shares_port {
                    "whether a program chooses among those that share its port"
                } else {
                    "by which interface its multicasts leave"
                };
                notes.push(format!("pid {pid}: fd {fd} is {}: {what} is not known ({why})", socket.what));
            }
        }
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

fn refusal_of_program(socket: &Secretive) -> Refusal {
    Refusal {
        pid: socket.at.0,
        place: format!("fd {}", socket.at.1),
        why: format!(
            "is {}, and a program that the kernel does not show chooses among those that share its port (SO_ATTACH_REUSEPORT_EBPF)",
            socket.what
        ),
        todo: "have the job detach it (SO_DETACH_REUSEPORT_BPF) before the checkpoint".to_owned(),
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

    fn look_behind(&mut self, sockets: &[Secretive]) -> std::result::Result<Vec<Hidden>, String> {
        let names = sockets.iter().map(|s| self.file(s.at)).collect::<std::result::Result<Vec<_>, _>>()?;
        let watch = self.watch.as_mut().ok_or("no eBPF programs")?;
        watch.hints.hidden_of_sockets(&names).map_err(|e| e.to_string())
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
