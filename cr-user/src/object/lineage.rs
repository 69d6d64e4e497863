//! In which order the processes of a job are made: each by its own parent, and in the session that it was in.
//!
//! A process is born into its parent's session, and leaves it only by leading one of its own. So a child that is in another
//! session than its parent now was made before the parent left that session, and is made before it again. Where the leader of
//! a session, or of a process group, has ended long ago, a helper takes its number, makes what is missing, and ends.

use std::io;

use crate::error::{Error, Refusal};
use crate::family::Relative;
use crate::procfs;

/// What is known of a process of the job, dead or alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestry {
    /// Its pid.
    pub pid: i32,
    /// Its parent's, of the job or not.
    pub ppid: i32,
    /// Its process group; 0 for the one that the job was started in.
    pub pgid: i32,
    /// Its session; 0 for the one that the job was started in.
    pub sid: i32,
}

/// A process to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The pid that it gets.
    pub pid: i32,
    /// It is none of the job's: it stands in for the leader of a session that has ended, and ends when all are made.
    pub helper: bool,
    /// It leads a session.
    pub leads: bool,
    /// Children to be made before it leads its session.
    pub before: Vec<Node>,
    /// Children to be made afterwards.
    pub after: Vec<Node>,
    /// Processes that it makes for its own parent, in its own session.
    pub siblings: Vec<Node>,
}

/// The processes of a job as a forest: those whose parent is not of the job are made by us. The root comes first.
///
/// # Errors
/// The first process that cannot get into its session again.
pub fn forest(all: &[Ancestry]) -> Result<Vec<Node>, Lost> {
    let is_member = |pid: i32| all.iter().any(|a| a.pid == pid);
    let (ours, orphans): (Vec<&Ancestry>, Vec<&Ancestry>) =
        all.iter().filter(|a| !is_member(a.ppid)).partition(|a| a.sid == a.pid || !is_member(a.sid));
    let builder = Builder { all };
    // Whatever we make is born into our session, which is that of number 0.
    let (mut forest, after) = builder.children(&ours, 0, 0)?;
    forest.extend(after);
    // An orphan in the session of one whom we make is made by that one, as our child.
    for orphan in orphans {
        let leader = forest.iter_mut().find(|n| n.pid == orphan.sid && n.leads);
        let leader = leader.ok_or(Lost { pid: orphan.pid, session: orphan.sid })?;
        leader.siblings.push(builder.node(orphan, orphan.sid)?);
    }
    Ok(forest)
}

/// Process groups whose leader has ended: its number, and one that is in the group.
pub fn leaderless_groups(all: &[Ancestry]) -> Vec<(i32, i32)> {
    let mut groups: Vec<(i32, i32)> = Vec::new();
    for member in all {
        let led = member.pgid == 0 || all.iter().any(|a| a.pid == member.pgid);
        if !led && !groups.iter().any(|(pgid, _)| *pgid == member.pgid) {
            groups.push((member.pgid, member.pid));
        }
    }
    groups
}

struct Builder<'a> {
    all: &'a [Ancestry],
}

impl Builder<'_> {
    fn node(&self, of: &Ancestry, birth: i32) -> Result<Node, Lost> {
        let children: Vec<&Ancestry> = self.all.iter().filter(|a| a.ppid == of.pid).collect();
        let (before, after) = self.children(&children, birth, of.sid)?;
        Ok(Node { pid: of.pid, helper: false, leads: of.sid == of.pid, before, after, siblings: Vec::new() })
    }

    /// The children of a process that was born into session `birth` and is in session `sid`.
    fn children(&self, children: &[&Ancestry], birth: i32, sid: i32) -> Result<(Vec<Node>, Vec<Node>), Lost> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let mut strays: Vec<(i32, Vec<&Ancestry>)> = Vec::new();
        for child in children {
            match self.birth_of(child) {
                None => after.push(self.node(child, sid)?),
                Some(wanted) if wanted == sid => after.push(self.node(child, sid)?),
                Some(wanted) if wanted == birth => before.push(self.node(child, birth)?),
                Some(wanted) => match strays.iter_mut().find(|(s, _)| *s == wanted) {
                    Some((_, same)) => same.push(child),
                    None => strays.push((wanted, vec![child])),
                },
            }
        }
        for (session, members) in strays {
            if session == 0 || self.all.iter().any(|a| a.pid == session) {
                return Err(Lost { pid: members[0].pid, session });
            }
            let siblings = members.into_iter().map(|m| self.node(m, session)).collect::<Result<_, Lost>>()?;
            let (before, leads) = (Vec::new(), true);
            after.push(Node { pid: session, helper: true, leads, before, after: Vec::new(), siblings });
        }
        Ok((before, after))
    }

    /// The session that a process must be born into; none if any will do.
    fn birth_of(&self, of: &Ancestry) -> Option<i32> {
        if of.sid != of.pid {
            return Some(of.sid);
        }
        let children = self.all.iter().filter(|a| a.ppid == of.pid);
        children.filter_map(|c| self.birth_of(c)).find(|s| *s != of.sid)
    }
}

/// A process that cannot get into its session again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The process.
    pub pid: i32,
    /// The session.
    pub session: i32,
}

impl Lost {
    fn why(self) -> String {
        format!(
            "is in session {}, into which neither its parent nor that session's leader could bring it again",
            self.session
        )
    }

    /// For whoever restores.
    pub fn into_error(self) -> Error {
        let todo = "restore an older checkpoint with --id".to_owned();
        Error::NotHere { what: format!("pid {}", self.pid), why: format!("it {}", self.why()), todo }
    }

    /// For whoever takes a checkpoint.
    pub fn into_refusal(self) -> Refusal {
        let todo = "end that process before the checkpoint".to_owned();
        Refusal { pid: self.pid, place: "the process".to_owned(), why: self.why(), todo }
    }
}

/// The ancestry of processes as it is now. Sessions and groups that the job, of which the first one is the root, was started
/// in get the number 0.
///
/// # Errors
/// When the root is gone. Others that end meanwhile are left out.
pub fn of_now(relatives: &[Relative]) -> io::Result<Vec<Ancestry>> {
    let mut all = Vec::new();
    for (nth, relative) in relatives.iter().enumerate() {
        let stat = match procfs::stat(relative.pid) {
            Ok(stat) => stat,
            Err(e) if nth == 0 => return Err(e),
            Err(_) => continue,
        };
        let field = |n: usize| stat.get(n - 3).and_then(|v| v.parse::<i32>().ok()).unwrap_or(0);
        all.push(Ancestry { pid: relative.pid, ppid: relative.ppid, pgid: field(5), sid: field(6) });
    }
    mark_outside(&mut all);
    Ok(all)
}

/// Gives sessions and groups that the job was started in, and is restarted in whatever they are then, the number 0.
pub fn mark_outside(all: &mut [Ancestry]) {
    let members: Vec<i32> = all.iter().map(|a| a.pid).collect();
    let root = all.first().map_or((0, 0), |a| (a.sid, a.pgid));
    let is_outside = |leader: i32, of_root: i32| {
        !members.contains(&leader) && (leader == of_root || std::fs::exists(format!("/proc/{leader}")).unwrap_or(true))
    };
    for who in all {
        if is_outside(who.sid, root.0) {
            who.sid = 0;
        }
        if is_outside(who.pgid, root.1) {
            who.pgid = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Ancestry {
        Ancestry { pid, ppid, pgid, sid }
    }

    fn pids(nodes: &[Node]) -> Vec<i32> {
        nodes.iter().map(|n| n.pid).collect()
    }

    #[test]
    fn a_child_in_its_parents_former_session_is_made_before_the_parent_leaves_it() {
        // 10 was born into our session, made 11, led a session, made 12; 12 led one of its own.
        let forest = forest(&[of(10, 1, 10, 10), of(11, 10, 0, 0), of(12, 10, 12, 12)]).unwrap();
        assert_eq!(pids(&forest), [10]);
        assert!(forest[0].leads);
        assert_eq!((pids(&forest[0].before), pids(&forest[0].after)), (vec![11], vec![12]));
    }

    #[test]
    fn a_grandchild_in_the_old_session_pulls_its_parent_forward() {
        let forest = forest(&[of(10, 1, 10, 10), of(11, 10, 11, 11), of(12, 11, 0, 0)]).unwrap();
        assert_eq!(pids(&forest[0].before), [11]);
        assert_eq!(pids(&forest[0].before[0].before), [12]);
    }

    #[test]
    fn a_session_without_leader_is_led_by_a_helper() {
        let forest = forest(&[of(10, 1, 0, 0), of(12, 10, 11, 11), of(13, 10, 11, 11)]).unwrap();
        let helper = &forest[0].after[0];
        assert!(helper.helper && helper.leads && helper.pid == 11);
        assert_eq!(pids(&helper.siblings), [12, 13]);
    }

    #[test]
    fn who_cannot_come_into_a_session_is_named() {
        // 12 is in the session that its sister leads, and was not made by her.
        let error = forest(&[of(10, 1, 0, 0), of(11, 10, 11, 11), of(12, 10, 11, 11)]).unwrap_err();
        assert_eq!(error, Lost { pid: 12, session: 11 });
    }

    #[test]
    fn an_orphan_is_made_by_the_leader_of_its_session() {
        let forest = forest(&[of(10, 1, 10, 10), of(12, 1, 12, 10)]).unwrap();
        assert_eq!((pids(&forest), pids(&forest[0].siblings)), (vec![10], vec![12]));
    }

    #[test]
    fn groups_without_leader_are_found_once() {
        let all = [of(10, 1, 0, 0), of(11, 10, 7, 0), of(12, 10, 7, 0), of(13, 10, 13, 0)];
        assert_eq!(leaderless_groups(&all), [(7, 11)]);
    }
}
