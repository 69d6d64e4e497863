//! In which order the processes of a job are made: each by its own parent, and in the session that it was in.
//!
//! A process is born into its parent's session, and leaves it only by leading one of its own. So a child that is in another
//! session than its parent now was made before the parent left that session, and is made before it again. Where the leader of
//! a session, or of a process group, has ended long ago, a helper takes its number, makes what is missing, and ends.

use crate::error::{Error, Result};

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
    /// Of a helper: processes that it makes for its own parent.
    pub siblings: Vec<Node>,
}

/// The processes of a job in the order in which they are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forest {
    /// Those whose parent is not of the job are made by us. The root comes first.
    pub trees: Vec<Node>,
    /// Orphans in a session that a process of the job leads, with that one's pid. They are made by a helper, which the leader
    /// makes: when it ends they are orphans again.
    pub orphans: Vec<(i32, Node)>,
}

/// The processes of a job as a forest.
///
/// # Errors
/// [`Error::NotHere`] for a process that cannot get into its session again.
pub fn forest(all: &[Ancestry]) -> Result<Forest> {
    let is_member = |pid: i32| all.iter().any(|a| a.pid == pid);
    let builder = Builder { all };
    let led = |a: &Ancestry| builder.birth_of(a).filter(|session| is_member(*session));
    let (strays, ours): (Vec<&Ancestry>, Vec<&Ancestry>) =
        all.iter().filter(|a| !is_member(a.ppid)).partition(|a| led(a).is_some());
    // Whatever we make is born into our session, which is that of number 0.
    let (mut trees, after) = builder.children(&ours, 0, 0)?;
    trees.extend(after);
    let mut orphans = Vec::new();
    for orphan in strays {
        let session = led(orphan).unwrap_or_default();
        orphans.push((session, builder.node(orphan, session)?));
    }
    Ok(Forest { trees, orphans })
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
    fn node(&self, of: &Ancestry, birth: i32) -> Result<Node> {
        let children: Vec<&Ancestry> = self.all.iter().filter(|a| a.ppid == of.pid).collect();
        let (before, after) = self.children(&children, birth, of.sid)?;
        Ok(Node { pid: of.pid, helper: false, leads: of.sid == of.pid, before, after, siblings: Vec::new() })
    }

    /// The children of a process that was born into session `birth` and is in session `sid`.
    fn children(&self, children: &[&Ancestry], birth: i32, sid: i32) -> Result<(Vec<Node>, Vec<Node>)> {
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
                return Err(lost(members[0].pid, session));
            }
            let siblings = members.into_iter().map(|m| self.node(m, session)).collect::<Result<_>>()?;
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

/// For a process that cannot get into its session again.
pub fn lost(pid: i32, session: i32) -> Error {
    Error::NotHere {
        what: format!("pid {pid}"),
        why: format!("it was in session {session}, into which neither its parent nor anybody else can bring it"),
        todo: "end that process before the checkpoint".to_owned(),
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
        let forest = forest(&[of(10, 1, 10, 10), of(11, 10, 0, 0), of(12, 10, 12, 12)]).unwrap().trees;
        assert_eq!(pids(&forest), [10]);
        assert!(forest[0].leads);
        assert_eq!((pids(&forest[0].before), pids(&forest[0].after)), (vec![11], vec![12]));
    }

    #[test]
    fn a_grandchild_in_the_old_session_pulls_its_parent_forward() {
        let forest = forest(&[of(10, 1, 10, 10), of(11, 10, 11, 11), of(12, 11, 0, 0)]).unwrap().trees;
        assert_eq!(pids(&forest[0].before), [11]);
        assert_eq!(pids(&forest[0].before[0].before), [12]);
    }

    #[test]
    fn a_session_without_leader_is_led_by_a_helper() {
        let forest = forest(&[of(10, 1, 0, 0), of(12, 10, 11, 11), of(13, 10, 11, 11)]).unwrap().trees;
        let helper = &forest[0].after[0];
        assert!(helper.helper && helper.leads && helper.pid == 11);
        assert_eq!(pids(&helper.siblings), [12, 13]);
    }

    #[test]
    fn an_orphan_in_the_session_of_a_process_of_the_job_is_made_from_there() {
        // 13 was a child of a child of 11 that has ended; its own child 14 comes with it.
        let all = [of(10, 1, 10, 10), of(11, 10, 11, 11), of(13, 1, 11, 11), of(14, 13, 11, 11)];
        let forest = forest(&all).unwrap();
        assert_eq!(pids(&forest.trees), [10]);
        assert_eq!((forest.orphans[0].0, forest.orphans[0].1.pid), (11, 13));
        assert_eq!(pids(&forest.orphans[0].1.after), [14]);
    }

    #[test]
    fn who_cannot_come_into_a_session_is_named() {
        // 12 is in the session that its sister leads, and was not made by her.
        let error = forest(&[of(10, 1, 0, 0), of(11, 10, 11, 11), of(12, 10, 11, 11)]).unwrap_err();
        assert!(error.to_string().contains("pid 12: it was in session 11"), "{error}");
    }

    #[test]
    fn groups_without_leader_are_found_once() {
        let all = [of(10, 1, 0, 0), of(11, 10, 7, 0), of(12, 10, 7, 0), of(13, 10, 13, 0)];
        assert_eq!(leaderless_groups(&all), [(7, 11)]);
    }
}
