//! Segments of shared memory. Their bytes are a content space of the image; attachments are mappings
//! ([`ObjectKind::SystemV`](crate::object::memory::backing::ObjectKind)).

use std::fs;

use super::table::{Plan, Wanted};
use super::{Findings, Found, Ipc, Kind, Object, Row, Usage, Users, is_living_user, refusal};
use crate::error::{Error, Result};
use crate::object::memory::backing::Source;
use crate::object::spaces::Spaces;
use crate::procfs::{self, Vma};
use crate::sys::ipc as calls;

/// Bits above the mode in `/proc/sysvipc/shm`: `SHM_DEST` and `SHM_LOCKED` of `linux/shm.h`.
const REMOVED: u32 = 0o1000;
const LOCKED: u32 = 0o2000;

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Segment {
    /// What it has in common with other objects.
    pub object: Object,
    /// Its bytes.
    pub size: u64,
    /// The content space.
    pub space: u64,
    /// Locked in memory (`SHM_LOCK`).
    pub locked: bool,
    /// Removed: it goes with its last attachment.
    pub removed: bool,
    /// Who made it.
    pub maker: i32,
    /// Who attached or detached it last.
    pub last: i32,
    /// When it was last attached and detached, in seconds since 1970.
    pub times: (i64, i64),
}

/// Whether a mapping is an attached segment.
pub fn is_attachment(vma: &Vma) -> bool {
    vma.name.starts_with("/SYSV") && vma.shared
}

/// The job's segments.
pub(super) fn find(users: &Users<'_>) -> Result<Findings> {
    let usage_of = |row: &Row| {
        let own = users.attached.get(&row.id).copied().unwrap_or(0);
        let (maker, last) = (row.get("cpid") as i32, row.get("lpid") as i32);
        let attached_outside = row.get("nattch") as u64 > own;
        let stranger = attached_outside.then(|| attached(row.id, &users.pids)).flatten();
        // While the job runs, the numbers may be of different moments.
        let stranger = stranger.or((attached_outside && users.frozen).then_some(0));
        let by_job = if own > 0 { Some(users.root) } else { None };
        let foreign = [maker, last].into_iter().find(|p| !users.pids.contains(p) && is_living_user(*p, row.last_use()));
        Some(Usage { last: by_job.into_iter().chain([maker]).collect(), stranger, foreign })
    };
    let mut findings = super::find(Kind::Segment, users, usage_of)?;
    let Findings { found, refusals, .. } = &mut findings;
    // One that is removed and not attached by the job lives for somebody else.
    found.retain(|f| !f.object.probably || f.row.mode & REMOVED == 0 || users.attached.contains_key(&f.row.id));
    for found in found.iter().filter(|f| f.row.mode & REMOVED != 0 && !users.attached.contains_key(&f.row.id)) {
        let why = "is removed, and goes when the process outside of the job that has it attached ends".to_owned();
        refusals.push(refusal(users, Kind::Segment, found.row.id, why, "wait until it is gone"));
    }
    Ok(findings)
}

/// A process that has a segment attached, and is none of `except`.
fn attached(id: i32, except: &[i32]) -> Option<i32> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // Others have segments with the same ids.
    let namespace = |pid: i32| procfs::link(pid, "ns/ipc").ok();
    let ours = namespace(std::process::id() as i32);
    let is_it = |vma: &Vma| is_attachment(vma) && vma.inode as i32 == id;
    let has = |pid: &i32| namespace(*pid) == ours && procfs::maps(*pid).is_ok_and(|vmas| vmas.iter().any(is_it));
    pids.filter(|pid| !except.contains(pid)).find(has)
}

/// Describes a segment; where nobody of the job has it attached, its content is to be had from here.
pub(super) fn capture(found: &Found, users: &Users<'_>, spaces: &mut Spaces) -> Result<(Segment, Option<Source>)> {
    let Found { row, object, .. } = found;
    let size = row.get("size") as u64;
    let space = spaces.of_segment(row.id);
    let (mut source, mut times) = (None, (row.get("atime"), row.get("dtime")));
    if !users.attached.contains_key(&row.id) {
        let file = calls::segment_file(row.id, size, false);
        let huge = match &file {
            Ok(file) => is_huge(file),
            // They are attached in wholes: no mapping ends with the last ordinary page.
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        };
        if huge {
            let why = "is made of huge pages (SHM_HUGETLB)".to_owned();
            let todo = "use ordinary shared memory";
            return Err(Error::Refused(vec![refusal(users, Kind::Segment, row.id, why, todo)]));
        }
        let failed = |e| Error::system(format!("attaching {} {}", Kind::Segment.name(), row.id), e);
        source = Some(Source { space, file: file.map_err(failed)?, range: 0..size });
        if let Some(now) = Kind::Segment.rows()?.into_iter().find(|r| r.id == row.id) {
            times = (now.get("atime"), now.get("dtime"));
        }
    }
    let segment = Segment {
        object: *object,
        size,
        space,
        locked: row.mode & LOCKED != 0,
        removed: row.mode & REMOVED != 0,
        maker: row.get("cpid") as i32,
        last: row.get("lpid") as i32,
        times,
    };
    Ok((segment, source))
}

fn is_huge(file: &fs::File) -> bool {
    use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
    fstatfs(file).is_ok_and(|s| s.filesystem_type() == HUGETLBFS_MAGIC)
}

impl Segment {
    /// What a restore does about it.
    ///
    /// # Errors
    /// [`Error::NotHere`] when it, or its key, is somebody else's.
    pub fn plan(&self, ipc: &Ipc) -> Result<Plan> {
        let usage_of = |row: &Row| {
            let stranger = (row.get("nattch") > 0).then(|| attached(row.id, &ipc.pids).unwrap_or(0));
            Usage { last: vec![row.get("cpid") as i32], stranger, foreign: None }
        };
        let same = |row: &Row| (row.get("atime"), row.get("dtime")) == self.times;
        Wanted { kind: Kind::Segment, object: &self.object, size: ("size", self.size) }.plan(ipc, usage_of, same)
    }
}
