//! Control groups, of both versions: which groups a job's processes are in, and, where threads may go their own ways, its
//! threads. A group that is not there any more is not made again: whoever made it knew what for.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Refusal, Result};
use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::procfs;

/// The record of the job's control groups.
pub const KIND: RecordKind = RecordKind { id: 30, version: 1, name: "cgroups" };

/// Control groups of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Cgroups {
    /// Every different set of groups: one of each hierarchy.
    pub sets: Vec<Vec<Group>>,
    /// Every process by its main thread, and threads that are elsewhere than that.
    pub members: Vec<Member>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Group {
    /// Its hierarchy: controllers or name (`cpu,cpuacct`, `name=systemd`), nothing for version 2.
    pub hierarchy: String,
    /// Its path in the hierarchy.
    pub path: String,
}

/// Who is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Member {
    /// The process.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
    /// Its set of groups.
    pub set: u32,
}

impl Cgroups {
    /// Captures a process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn add(&mut self, pid: i32) -> Result<()> {
        let set = self.number(groups_of(pid, procfs::voice(pid))?);
        self.members.push(Member { pid, tid: pid, set });
        Ok(())
    }

    /// Captures a process that is in the same groups as another one, which was captured.
    pub fn add_like(&mut self, pid: i32, other: i32) {
        let set = self.members.iter().find(|m| m.pid == other).map_or(0, |m| m.set);
        self.members.push(Member { pid, tid: pid, set });
    }

    /// Captures those of its threads that are elsewhere. One that has ended by now is taken to have been with the others.
    pub fn add_threads(&mut self, pid: i32, tids: &[i32]) {
        let Some(own) = self.members.iter().find(|m| m.pid == pid).map(|m| m.set) else { return };
        let mounts = Mounts::read();
        if tids.len() < 2 || !self.sets[own as usize].iter().any(|g| mounts.lets_threads_part(g)) {
            return;
        }
        for &tid in tids.iter().filter(|t| **t != procfs::voice(pid)) {
            let Ok(theirs) = groups_of(pid, tid) else { continue };
            let set = self.number(theirs);
            if set != own {
                self.members.push(Member { pid, tid, set });
            }
        }
    }

    fn number(&mut self, set: Vec<Group>) -> u32 {
        let at = self.sets.iter().position(|s| *s == set).unwrap_or_else(|| {
            self.sets.push(set);
            self.sets.len() - 1
        });
        at as u32
    }

    /// Before anything is restored: says which groups are not here, and that none of the others is frozen.
    ///
    /// # Errors
    /// [`Error::NotHere`] that names a frozen one.
    pub fn check(&self) -> Result<()> {
        let mounts = Mounts::read();
        let all: HashSet<&Group> = self.sets.iter().flatten().collect();
        for group in all {
            let Some(directory) = mounts.directory(group) else {
                log::warn!("{group} is not here: who was in it stays in the group of cr");
                continue;
            };
            if let Some(frozen) = frozen(&directory) {
                return Err(Error::NotHere {
                    what: group.to_string(),
                    why: format!("it is frozen ({})", frozen.display()),
                    todo: "thaw it first".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Moves a restored process, or those of its threads that were elsewhere, to where they were.
    pub fn enter(&self, pid: i32, threads: bool) {
        let mounts = Mounts::read();
        for member in self.members.iter().filter(|m| m.pid == pid && (m.tid != pid) == threads) {
            let now = groups_of(pid, member.tid).unwrap_or_default();
            for group in self.sets[member.set as usize].iter().filter(|g| !now.contains(g)) {
                let Some(directory) = mounts.directory(group) else { continue };
                let list = match (threads, group.hierarchy.is_empty()) {
                    (false, _) => "cgroup.procs",
                    (true, true) => "cgroup.threads",
                    (true, false) => "tasks",
                };
                if let Err(e) = fs::write(directory.join(list), member.tid.to_string()) {
                    log::warn!("{} cannot be put into {group} again: {e}", member.tid);
                }
            }
        }
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hierarchy = if self.hierarchy.is_empty() { "version 2" } else { &self.hierarchy };
        write!(f, "the cgroup {} ({hierarchy})", self.path)
    }
}

/// A process in a frozen group cannot be looked at closely.
///
/// # Errors
/// When it is gone.
pub fn refusals(pid: i32) -> Result<Vec<Refusal>> {
    let mounts = Mounts::read();
    let frozen = groups_of(pid, procfs::voice(pid))?.into_iter().find_map(|g| frozen(&mounts.directory(&g)?));
    let refusal = |at: PathBuf| Refusal {
        pid,
        place: "the process".to_owned(),
        why: format!("is in a frozen cgroup ({})", at.display()),
        todo: "thaw it first".to_owned(),
    };
    Ok(frozen.map(refusal).into_iter().collect())
}

/// The file that says that a group, or one above it, is frozen; of both versions.
fn frozen(directory: &Path) -> Option<PathBuf> {
    let old = directory.join("freezer.state");
    if fs::read_to_string(&old).is_ok_and(|state| state.trim() != "THAWED") {
        return Some(old);
    }
    let files = directory.ancestors().map(|d| d.join("cgroup.freeze")).take_while(|f| f.exists());
    files.into_iter().find(|f| fs::read_to_string(f).is_ok_and(|wish| wish.trim() == "1"))
}

/// `/proc/PID/task/TID/cgroup`, of a thread that lives (one that has ended is in none): lines of a number, the hierarchy, and the path.
fn groups_of(pid: i32, tid: i32) -> Result<Vec<Group>> {
    let path = format!("/proc/{pid}/task/{tid}/cgroup");
    let text = procfs::text(&path).map_err(|e| Error::system(format!("reading {path}"), e))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Group> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (hierarchy, path) = (parts.next()?.to_owned(), parts.next()?);
    // A group that was removed under its members is like one that is not there.
    Some(Group { hierarchy, path: procfs::unescape(path) })
}

/// Where the hierarchies are mounted.
#[derive(Debug)]
struct Mounts(Vec<Mount>);

#[derive(Debug)]
struct Mount {
    version_2: bool,
    /// Of version 1: what it is mounted with, its controllers among that.
    options: Vec<String>,
    /// Which group is seen at the mount point.
    root: String,
    point: PathBuf,
}

impl Mounts {
    /// From `/proc/self/mountinfo`; see proc(5).
    fn read() -> Self {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self(text.lines().filter_map(Self::parse).collect())
    }

    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?.to_owned(), PathBuf::from(procfs::unescape(fields.next()?)));
        let mut what = after.split(' ');
        let version_2 = match what.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = what.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Mount { version_2, options, root, point })
    }

    /// Where a group is, if it is there.
    fn directory(&self, group: &Group) -> Option<PathBuf> {
        let has = |mount: &&Mount| {
            let controllers = group.hierarchy.split(',');
            if mount.version_2 || group.hierarchy.is_empty() {
                return mount.version_2 && group.hierarchy.is_empty();
            }
            controllers.into_iter().all(|c| mount.options.iter().any(|o| o == c))
        };
        self.0.iter().filter(has).find_map(|mount| {
            let below = Path::new(&group.path).strip_prefix(&mount.root).ok()?;
            // No group is called `..`: that would lead out of where groups are.
            let stays = below.components().all(|part| matches!(part, Component::Normal(_)));
            if !stays {
                return None;
            }
            Some(mount.point.join(below)).filter(|at| at.is_dir())
        })
    }

    /// Whether threads of one process may be in different groups there.
    fn lets_threads_part(&self, group: &Group) -> bool {
        let kind = || self.directory(group).and_then(|d| fs::read_to_string(d.join("cgroup.type")).ok());
        !group.hierarchy.is_empty() || kind().is_some_and(|kind| kind.trim() != "domain")
    }
}

impl Sound for Cgroups {
    fn fault(&self) -> Option<String> {
        let wrong = self.members.iter().find(|member| member.set as usize >= self.sets.len());
        wrong.map(|member| format!("thread {} is in groups that are not there", member.tid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_below_their_mounts() {
        let lines = [
            "30 24 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw",
            "31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
            "32 24 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd",
            "33 24 0:29 / /proc rw - proc proc rw",
        ];
        let mounts = Mounts(lines.iter().filter_map(|l| Mounts::parse(l)).collect());
        assert_eq!(mounts.0.len(), 3);
        let found = |line: &str| {
            let group = parse(line).unwrap();
            mounts.0.iter().position(|m| {
                let one = Mounts(vec![Mount { root: "/".into(), point: "/".into(), options: m.options.clone(), ..*m }]);
                one.directory(&Group { path: "/".into(), ..group.clone() }).is_some()
            })
        };
        assert_eq!(found("0::/job:1"), Some(0));
        assert_eq!(found("4:cpu,cpuacct:/a"), Some(1));
        assert_eq!(found("1:name=systemd:/b"), Some(2));
        assert_eq!(found("9:memory:/"), None);
        assert_eq!(parse("0::/job:1").unwrap().path, "/job:1");
    }

    #[test]
    fn no_path_leads_out_of_the_groups() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("groups");
        fs::create_dir_all(point.join("job")).unwrap();
        let mounts =
            Mounts(vec![Mount { version_2: true, options: Vec::new(), root: "/".into(), point: point.clone() }]);
        let find = |path: &str| mounts.directory(&Group { hierarchy: String::new(), path: path.into() });
        assert_eq!(find("/job"), Some(point.join("job")));
        assert_eq!(find("/"), Some(point.clone()).filter(|at| at.is_dir()));
        for path in ["/..", "/job/../..", "/job/..", "/../groups/job"] {
            assert_eq!(find(path), None, "{path}");
        }
    }

    #[test]
    fn our_own_groups_are_read() {
        let me = std::process::id() as i32;
        let mut cgroups = Cgroups::default();
        cgroups.add(me).unwrap();
        cgroups.add_threads(me, &[me]);
        assert_eq!((cgroups.sets.len(), cgroups.members.len()), (1, 1));
        assert!(refusals(me).unwrap().is_empty() && cgroups.check().is_ok());
    }
}
