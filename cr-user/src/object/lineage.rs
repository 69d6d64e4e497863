//! In which order the processes of a job are made: each by its own parent, and in the session that it was in.
//!
//! A process is born into its parent's session, and leaves it only by leading one of its own. So a child that is in another
//! session than its parent now was either made before the parent left that session, and is made before it again; or it was made
//! by somebody in that session who has ended, and came to its parent as an orphan. Then a helper that the session's leader makes
//! stands in for that one: it makes the process, and ends, and the parent gets it. Where the leader of a session, or of a process
//! group, has ended long ago, another helper takes its number until all are made.

use std::collections::HashMap;
use std::io;

use crate::error::{Error, Refusal};
use crate::family::Relative;
use crate::object::process::Process;
use crate::object::zombies::Zombie;
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
    /// The signal that its parent gets when it ends; of an orphan it is always `SIGCHLD`.
    pub exit_signal: i32,
    /// Whether it shares with its parent what threads share: then nobody else can make it.
    pub shares: bool,
}

impl Ancestry {
    /// Of all processes that a checkpoint has, the living ones first.
    pub fn of_saved(living: &[Process], ended: &[Zombie]) -> Vec<Self> {
        let of_living = living.iter().map(|p| Self {
            pid: p.pid,
            ppid: p.ppid,
            pgid: p.pgid,
            sid: p.sid,
            exit_signal: p.exit_signal,
            shares: p.sharing.any(),
        });
        let of_ended = ended.iter().map(|z| Self {
            pid: z.pid,
            ppid: z.ppid,
            pgid: z.pgid,
            sid: z.sid,
            exit_signal: z.exit_signal,
            shares: false,
        });
        of_living.chain(of_ended).collect()
    }
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

/// A process that is made by a helper in its session, and comes to its parent when that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its parent; 0 for us.
    pub parent: i32,
    /// Whoever leads the session: a process of the job, or a helper.
    pub session: i32,
    /// The process.
    pub node: Node,
}

/// How the processes of a job are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Those that we make, and all that descend from them but for orphans. The root comes first.
    pub forest: Vec<Node>,
    /// Orphans, in the order in which they can be made once the forest is there.
    pub orphans: Vec<Orphan>,
}

/// Plans how the processes of a job, of which the root is the first, are made.
///
/// # Errors
/// The first process that cannot get into its session again.
pub fn plan(all: &[Ancestry]) -> Result<Plan, Lost> {
    check_generations(all)?;
    let mut builder = Builder { all, strays: Vec::new() };
    let top: Vec<&Ancestry> = all.iter().filter(|a| builder.find(a.ppid).is_none()).collect();
    // Whatever we make is born into our session, which is that of number 0.
    let (mut forest, after) = builder.children(&top, 0, (0, 0))?;
    forest.extend(after);
    let mut strays = std::mem::take(&mut builder.strays);
    builder.lead_old_sessions(&mut forest, &mut strays)?;
    let mut plan = Plan { forest, orphans: Vec::new() };
    for stray in &strays {
        let own = builder.find(stray.node.pid).expect("a process of the job");
        let led = builder.find(stray.session).is_none() || builder.descends(stray.session, stray.parent);
        let reasons = [
            (stray.session == 0, "whoever made it there has ended"),
            (!led, "that session's leader does not descend from its parent"),
            (own.shares, SHARES),
            (own.exit_signal != libc::SIGCHLD, "when it ends, its parent gets another signal than SIGCHLD"),
        ];
        if let Some((_, reason)) = reasons.into_iter().find(|(is_so, _)| *is_so) {
            return Err(Lost { pid: own.pid, session: stray.session, reason });
        }
    }
    while !strays.is_empty() {
        let is_made = |pid: i32| {
            pid == 0
                || holds(&plan.forest, pid)
                || plan.orphans.iter().any(|o| holds(std::slice::from_ref(&o.node), pid))
        };
        let next = strays.iter().position(|s| is_made(s.session) && is_made(s.parent));
        let reason = "it would have to be there before itself";
        let next = next.ok_or(Lost { pid: strays[0].node.pid, session: strays[0].session, reason })?;
        plan.orphans.push(strays.remove(next));
    }
    Ok(plan)
}

/// Everybody descends from somebody outside of the job, over not too many others: what follows goes from child to parent, and
/// into children by recursion.
fn check_generations(all: &[Ancestry]) -> Result<(), Lost> {
    const MOST: usize = 1000;
    let mut by_pid: HashMap<i32, &Ancestry> = HashMap::new();
    for one in all {
        if by_pid.insert(one.pid, one).is_some() {
            return Err(Lost { pid: one.pid, session: one.sid, reason: "another process has its number" });
        }
    }
    for one in all {
        let ancestors = std::iter::successors(Some(one), |one| by_pid.get(&one.ppid).copied());
        if ancestors.take(MOST + 1).count() > MOST {
            return Err(Lost { pid: one.pid, session: one.sid, reason: "it descends from more than 1000 others" });
        }
    }
    Ok(())
}

/// A process group that its leader is not in: that has ended, or moved on to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftGroup {
    /// Its number.
    pub pgid: i32,
    /// A process that is in it.
    pub member: i32,
    /// Its leader lives, or is a zombie of the job, and is in another group.
    pub moved: bool,
}

/// The process groups that their leaders are not in.
pub fn left_groups(all: &[Ancestry]) -> Vec<LeftGroup> {
    let mut groups: Vec<LeftGroup> = Vec::new();
    for member in all.iter().filter(|a| a.pgid != 0 && a.pgid != a.pid) {
        let leader = all.iter().find(|a| a.pid == member.pgid);
        let led = leader.is_some_and(|leader| leader.pgid == leader.pid);
        if !led && groups.iter().all(|g| g.pgid != member.pgid) {
            groups.push(LeftGroup { pgid: member.pgid, member: member.pid, moved: leader.is_some() });
        }
    }
    groups
}

struct Builder<'a> {
    all: &'a [Ancestry],
    /// Those that neither their parents nor their parents' former selves can make.
    strays: Vec<Orphan>,
}

impl Builder<'_> {
    fn find(&self, pid: i32) -> Option<&Ancestry> {
        self.all.iter().find(|a| a.pid == pid)
    }

    /// A process that is born into session `birth`, with its children.
    fn node(&mut self, of: &Ancestry, birth: i32) -> Result<Node, Lost> {
        let all = self.all;
        let children: Vec<&Ancestry> = all.iter().filter(|a| a.ppid == of.pid).collect();
        let (before, after) = self.children(&children, of.pid, (birth, of.sid))?;
        Ok(Node { pid: of.pid, helper: false, leads: of.sid == of.pid, before, after, siblings: Vec::new() })
    }

    /// The children of a process (0: ourselves) that was born into the first session and is in the second.
    fn children(
        &mut self,
        children: &[&Ancestry],
        parent: i32,
        (birth, sid): (i32, i32),
    ) -> Result<(Vec<Node>, Vec<Node>), Lost> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for child in children {
            match self.birth_of(child) {
                None => after.push(self.node(child, sid)?),
                Some(wanted) if wanted == sid => after.push(self.node(child, sid)?),
                Some(wanted) if wanted == birth => before.push(self.node(child, birth)?),
                Some(session) => {
                    let node = self.node(child, session)?;
                    self.strays.push(Orphan { parent, session, node });
                }
            }
        }
        Ok((before, after))
    }

    /// The session that a process must be born into; none if any will do.
    fn birth_of(&self, of: &Ancestry) -> Option<i32> {
        if of.sid != of.pid {
            return Some(of.sid);
        }
        let children = self.all.iter().filter(|a| a.ppid == of.pid);
        children.filter_map(|c| self.birth_of(c)).find(|s| *s != of.sid && !self.is_below(*s, of.pid))
    }

    /// Whether a session can have come to be among the descendants of a process: then those of its processes that are children
    /// of that one came to it as orphans.
    fn is_below(&self, session: i32, pid: i32) -> bool {
        match self.find(session) {
            Some(leader) => self.descends(leader.pid, pid),
            None => session != 0 && self.all.iter().filter(|a| a.sid == session).all(|a| self.descends(a.pid, pid)),
        }
    }

    /// Whether a process descends from another; all do from us (0), and none from itself.
    fn descends(&self, pid: i32, ancestor: i32) -> bool {
        let mut at = self.find(pid);
        while let Some(one) = at {
            if one.ppid == ancestor || ancestor == 0 {
                return true;
            }
            at = self.find(one.ppid);
        }
        false
    }

    /// Has helpers lead the sessions of strays that nobody leads any more: each below all to whom processes of it came, and
    /// as a child of the last of these, for whom it makes its processes itself.
    fn lead_old_sessions(&self, forest: &mut Vec<Node>, strays: &mut Vec<Orphan>) -> Result<(), Lost> {
        let unled = |forest: &[Node], strays: &[Orphan]| {
            let mut sessions = strays.iter().map(|s| s.session).filter(|s| *s != 0 && self.find(*s).is_none());
            sessions.find(|s| !is_helped(forest, strays, *s))
        };
        while let Some(session) = unled(forest, strays) {
            let parents: Vec<i32> = strays.iter().filter(|s| s.session == session).map(|s| s.parent).collect();
            let is_last = |last: &&i32| parents.iter().all(|p| p == *last || self.descends(**last, *p));
            let first = strays.iter().find(|s| s.session == session).expect("one of that session");
            let reason = "processes of that session came to several parents, of whom none descends from all others";
            let lost = Lost { pid: first.node.pid, session, reason };
            let last = *parents.iter().find(is_last).ok_or(lost)?;
            // What a helper makes for its parent has the helper's own exit signal.
            let mine = |s: &Orphan| s.session == session && s.parent == last;
            let signal = |s: &Orphan| self.find(s.node.pid).map_or(0, |a| a.exit_signal);
            let common = strays.iter().find(|s| mine(s)).map_or(0, signal);
            let is_sibling = |s: &Orphan| mine(s) && signal(s) == common;
            let shared = strays.iter().find(|s| is_sibling(s) && self.find(s.node.pid).is_some_and(|a| a.shares));
            if let Some(shared) = shared {
                return Err(Lost { pid: shared.node.pid, session, reason: SHARES });
            }
            let siblings = strays.extract_if(.., |s| is_sibling(s)).map(|s| s.node).collect();
            let (before, after) = (Vec::new(), Vec::new());
            let helper = Node { pid: session, helper: true, leads: true, before, after, siblings };
            if last == 0 {
                forest.push(helper);
                continue;
            }
            let nodes = forest.iter_mut().chain(strays.iter_mut().map(|s| &mut s.node));
            node_in(nodes, last).ok_or(lost)?.after.push(helper);
        }
        Ok(())
    }
}

/// Whether a helper leads a session already.
fn is_helped(forest: &[Node], strays: &[Orphan], session: i32) -> bool {
    holds(forest, session) || strays.iter().any(|s| holds(std::slice::from_ref(&s.node), session))
}

/// The nodes below one.
fn below(node: &Node) -> impl Iterator<Item = &[Node]> {
    [&node.before, &node.after, &node.siblings].into_iter().map(Vec::as_slice)
}

fn holds(nodes: &[Node], pid: i32) -> bool {
    nodes.iter().any(|n| n.pid == pid || below(n).any(|nodes| holds(nodes, pid)))
}

fn node_in<'n>(nodes: impl IntoIterator<Item = &'n mut Node>, pid: i32) -> Option<&'n mut Node> {
    let mut left: Vec<&mut Node> = nodes.into_iter().collect();
    while let Some(node) = left.pop() {
        if node.pid == pid {
            return Some(node);
        }
        left.extend(node.before.iter_mut().chain(&mut node.after).chain(&mut node.siblings));
    }
    None
}

/// A process that cannot get into its session again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The process.
    pub pid: i32,
    /// The session; 0 for the one that the job was started in.
    pub session: i32,
    /// Why not, as the end of a sentence.
    pub reason: &'static str,
}

const SHARES: &str = "it shares with its parent what only its parent can give it";

impl Lost {
    fn why(self) -> String {
        let session = match self.session {
            0 => "the session that the job was started in".to_owned(),
            session => format!("session {session}"),
        };
        format!("cannot be brought into {session} again: {}", self.reason)
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
/// in get the number 0. What they share is not looked at.
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
        all.push(Ancestry {
            pid: relative.pid,
            ppid: relative.ppid,
            pgid: field(5),
            sid: field(6),
            exit_signal: field(38),
            shares: false,
        });
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
        Ancestry { pid, ppid, pgid, sid, exit_signal: libc::SIGCHLD, shares: false }
    }

    fn pids(nodes: &[Node]) -> Vec<i32> {
        nodes.iter().map(|n| n.pid).collect()
    }

    fn orphans(plan: &Plan) -> Vec<(i32, i32, i32)> {
        plan.orphans.iter().map(|o| (o.parent, o.session, o.node.pid)).collect()
    }

    /// Else whoever goes from child to parent would not come to an end, or too deep.
    #[test]
    fn nobody_descends_from_himself_or_from_too_many() {
        for all in [vec![of(5, 5, 0, 0)], vec![of(5, 6, 0, 0), of(6, 5, 0, 0)], vec![of(5, 1, 0, 0), of(5, 1, 0, 0)]] {
            assert_eq!(plan(&all).unwrap_err().pid, 5);
        }
        let line = |count: i32| (10..10 + count).map(|pid| of(pid, pid - 1, 0, 0)).collect::<Vec<_>>();
        plan(&line(1000)).unwrap();
        assert_eq!(plan(&line(1001)).unwrap_err().pid, 1010);
    }

    #[test]
    fn a_child_in_its_parents_former_session_is_made_before_the_parent_leaves_it() {
        // 10 was born into our session, made 11, led a session, made 12; 12 led one of its own.
        let forest = plan(&[of(10, 1, 10, 10), of(11, 10, 0, 0), of(12, 10, 12, 12)]).unwrap().forest;
        assert_eq!(pids(&forest), [10]);
        assert!(forest[0].leads);
        assert_eq!((pids(&forest[0].before), pids(&forest[0].after)), (vec![11], vec![12]));
    }

    #[test]
    fn a_grandchild_in_the_old_session_pulls_its_parent_forward() {
        let forest = plan(&[of(10, 1, 10, 10), of(11, 10, 11, 11), of(12, 11, 0, 0)]).unwrap().forest;
        assert_eq!(pids(&forest[0].before), [11]);
        assert_eq!(pids(&forest[0].before[0].before), [12]);
    }

    #[test]
    fn a_session_without_leader_is_led_by_a_helper() {
        let forest = plan(&[of(10, 1, 0, 0), of(12, 10, 11, 11), of(13, 10, 11, 11)]).unwrap().forest;
        let helper = &forest[0].after[0];
        assert!(helper.helper && helper.leads && helper.pid == 11);
        assert_eq!(pids(&helper.siblings), [12, 13]);
    }

    #[test]
    fn an_orphan_is_born_in_the_session_of_its_parents_child() {
        let plan = plan(&[of(10, 1, 0, 0), of(11, 10, 11, 11), of(12, 10, 11, 11)]).unwrap();
        assert_eq!(pids(&plan.forest[0].after), [11]);
        assert_eq!(orphans(&plan), [(10, 11, 12)]);
    }

    #[test]
    fn who_cannot_come_into_a_session_is_named() {
        // 13 is in the session of 11, which does not descend from its parent.
        let all = [of(10, 1, 0, 0), of(11, 10, 11, 11), of(12, 10, 0, 0), of(13, 12, 11, 11)];
        let lost = |all: &[Ancestry]| plan(all).map_err(|lost| (lost.pid, lost.session)).unwrap_err();
        assert_eq!(lost(&all), (13, 11));
        // 12 has its parent's memory, and so no other can have made it.
        let shares = Ancestry { shares: true, ..of(12, 10, 11, 11) };
        assert_eq!(lost(&[of(10, 1, 0, 0), of(11, 10, 11, 11), shares]), (12, 11));
    }

    #[test]
    fn an_orphan_of_ours_is_made_in_its_session() {
        let plan = plan(&[of(10, 1, 10, 10), of(12, 1, 12, 10)]).unwrap();
        assert_eq!((pids(&plan.forest), orphans(&plan)), (vec![10], vec![(0, 10, 12)]));
    }

    #[test]
    fn a_leader_that_got_an_orphan_was_not_born_in_that_ones_session() {
        // 10 leads its session, and got 12, of the session that its grandchild 14 leads, and 13, of one that nobody leads.
        let all = [of(10, 1, 10, 10), of(11, 10, 10, 10), of(14, 11, 14, 14), of(12, 10, 14, 14), of(13, 10, 9, 9)];
        let plan = plan(&all).unwrap();
        assert_eq!((pids(&plan.forest), pids(&plan.forest[0].before)), (vec![10], vec![]));
        assert_eq!(pids(&plan.forest[0].after), [11, 9]);
        assert_eq!(orphans(&plan), [(10, 14, 12)]);
    }

    #[test]
    fn a_session_without_leader_whose_processes_came_to_several_is_led_below_all_of_them() {
        let all = [of(10, 1, 0, 0), of(11, 10, 0, 0), of(12, 11, 9, 9), of(13, 10, 9, 9)];
        let plan = plan(&all).unwrap();
        let helper = &plan.forest[0].after[0].after[0];
        assert_eq!((helper.pid, pids(&helper.siblings)), (9, vec![12]));
        assert_eq!(orphans(&plan), [(10, 9, 13)]);
    }

    #[test]
    fn orphans_come_after_those_in_whose_sessions_they_are() {
        // 13 leads a session, and was made by 12, an orphan itself; 14 is of its session.
        let all = [of(10, 1, 0, 0), of(14, 10, 13, 13), of(11, 10, 11, 11), of(12, 10, 11, 11), of(13, 12, 13, 13)];
        assert_eq!(orphans(&plan(&all).unwrap()), [(10, 11, 12), (10, 13, 14)]);
    }

    #[test]
    fn groups_that_their_leaders_are_not_in_are_found_once() {
        let all = [of(10, 1, 0, 0), of(11, 10, 7, 0), of(12, 10, 7, 0), of(13, 10, 13, 0)];
        assert_eq!(left_groups(&all), [LeftGroup { pgid: 7, member: 11, moved: false }]);
        let swapped = [of(10, 1, 0, 0), of(11, 10, 12, 0), of(12, 10, 11, 0)];
        let moved = |pgid, member| LeftGroup { pgid, member, moved: true };
        assert_eq!(left_groups(&swapped), [moved(12, 11), moved(11, 12)]);
    }
}
