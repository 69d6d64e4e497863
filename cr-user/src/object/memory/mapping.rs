//! Mappings: the record, its capture, and the calls that make them again.

use std::collections::HashMap;

use crate::error::{Error, Refusal, Result};
use crate::image::RecordKind;
use crate::object::memory::advice;
use crate::object::memory::backing::{self, Backing, Files, Object, ObjectKind, Source};
use crate::object::records::{Sound, are_pages};
use crate::object::spaces::{Spaces, is_object_space};
use crate::procfs::Vma;
use crate::remote::Call;
use crate::sys::PAGE;

/// The record of a process's mappings.
pub const KIND: RecordKind = RecordKind { id: 3, version: 1, name: "mappings" };

/// Every mapping of one process, ascending.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Mappings {
    /// The process.
    pub pid: i32,
    /// Its mappings, ascending and disjoint.
    pub all: Vec<Mapping>,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// Past the last byte.
    pub end: u64,
    /// `PROT_*`.
    pub prot: i32,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// Offset into what backs it, in bytes.
    pub offset: u64,
    /// What backs it.
    pub backing: Backing,
    /// Properties and advice: the bits of [`advice`].
    pub advice: u32,
    /// Bytes of its pages (4096, or a huge page's).
    pub page_size: u64,
    /// The name given by `PR_SET_VMA_ANON_NAME`.
    pub name: Option<String>,
    /// Guard pages (`MADV_GUARD_INSTALL`): first byte and bytes.
    pub guards: Vec<(u64, u64)>,
}

impl Mapping {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true: a mapping has at least one page.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the process has content of its own in it: everything but shared mappings and the kernel's pages.
    pub fn has_own_content(&self) -> bool {
        !self.shared && !matches!(self.backing, Backing::Kernel(_))
    }

    /// Whether the kernel made it, and makes it at once with others of its kind.
    pub fn is_kernel(&self) -> bool {
        matches!(self.backing, Backing::Kernel(_))
    }

    /// Whether a copy of a process has, for this mapping, just what it needs for one of `others`.
    pub fn is_inherited_as_any_of(&self, others: &[Self]) -> bool {
        const MADE_SO: u32 = advice::GROWS_DOWN | advice::NO_RESERVE | advice::HUGETLB;
        let at = others.partition_point(|o| o.start < self.start);
        others.get(at).is_some_and(|o| {
            (o.start, o.end, o.shared, o.offset) == (self.start, self.end, false, self.offset)
                && o.shared == self.shared
                && o.backing == self.backing
                && o.advice & MADE_SO == self.advice & MADE_SO
                && !o.has(advice::HUGETLB)
        })
    }

    /// Whether untouched pages of it read as zero.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.backing, Backing::Anonymous)
    }

    /// Whether it shows an object that it can never be made to write to.
    pub fn is_read_only_object(&self) -> bool {
        self.shared && matches!(self.backing, Backing::Object(_)) && !self.has(advice::MAY_WRITE)
    }

    /// Whether anything was said of it by `mseal`, `mlock` or `madvise`; see [`advice`].
    pub fn has(&self, bit: u32) -> bool {
        self.advice & bit != 0
    }
}

/// Describes mappings: records, the stored objects behind them, and what cannot be restored.
///
/// `known`: the [`plain`] ones among them, if they are known already. `files`: what was found out already in the same look at the job.
pub fn describe(
    pid: i32,
    vmas: &[Vma],
    known: &[Option<Mapping>],
    spaces: &mut Spaces,
    files: &mut Files,
) -> (Vec<Mapping>, Vec<Source>, Vec<Refusal>) {
    let (mut mappings, mut sources, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
    for (index, vma) in vmas.iter().enumerate().filter(|(_, v)| v.name != "[vsyscall]") {
        if let Some(Some(known)) = known.get(index) {
            mappings.push(known.clone());
            continue;
        }
        match backing::identify(pid, vma, spaces, files) {
            Ok((backing, source)) => {
                mappings.push(record(vma, backing));
                sources.extend(source);
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    (mappings, sources, refusals)
}

/// The record of a mapping of which everything is said by itself: nothing stands behind it. None for others.
pub fn plain(pid: i32, vma: &Vma) -> Option<Mapping> {
    let backing = backing::without_file(pid, vma)?.ok()?;
    matches!(backing, Backing::Anonymous).then(|| record(vma, backing))
}

fn record(vma: &Vma, backing: Backing) -> Mapping {
    let given = vma.name.strip_prefix("[anon:").or_else(|| vma.name.strip_prefix("[anon_shmem:"));
    Mapping {
        start: vma.start,
        end: vma.end,
        prot: vma.prot,
        shared: vma.shared,
        offset: vma.offset,
        backing,
        advice: advice::of(vma),
        page_size: vma.page_size.max(4096),
        name: given.map(|n| n.trim_end_matches(']').to_owned()),
        guards: Vec::new(),
    }
}

/// Before anything is restored: every file that is not stored must be the one that was mapped.
///
/// # Errors
/// [`Error::NotHere`] that names the file.
pub fn check<'m>(mappings: impl Iterator<Item = &'m Mapping>) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for mapping in mappings {
        if let Backing::File(stamp) = &mapping.backing
            && seen.insert(stamp.path.clone())
        {
            stamp.check("the mapped file")?;
        }
    }
    Ok(())
}

/// Descriptors of backing files in the process to be made, by what they are.
#[derive(Debug, Default)]
pub struct BackingFds {
    /// Files that are not stored, by path.
    pub files: HashMap<String, i32>,
    /// Stored objects, by content space.
    pub objects: HashMap<u64, i32>,
    /// The same, open for reading alone: for shared mappings that can never be made writable.
    pub read_only: HashMap<u64, i32>,
}

/// Calls that make the mapping, writable so that it can be filled.
///
/// # Errors
/// [`Error::NotHere`] when its backing was not opened.
pub fn make(mapping: &Mapping, fds: &BackingFds) -> Result<Option<Call>> {
    let missing = |what: &str| Error::NotHere {
        what: format!("the mapping at {:#x}", mapping.start),
        why: format!("{what} is not in the image"),
        todo: "restore an older checkpoint with --id".to_owned(),
    };
    let (mut flags, fd) = match &mapping.backing {
        Backing::Kernel(_) => return Ok(None),
        Backing::Aio(_) | Backing::Object(Object { kind: ObjectKind::SystemV(_), .. }) => {
            // Its place is kept free for it.
            let flags = libc::MAP_FIXED_NOREPLACE | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let none = libc::PROT_NONE as u64;
            return Ok(Some(Call::new(
                libc::SYS_mmap,
                &[mapping.start, mapping.len(), none, flags as u64, u64::MAX, 0],
            )));
        }
        Backing::Anonymous => (libc::MAP_ANONYMOUS, -1),
        Backing::File(stamp) => (0, *fds.files.get(&stamp.path).ok_or_else(|| missing(&stamp.path))?),
        Backing::Object(object) => {
            let fds = if mapping.is_read_only_object() { &fds.read_only } else { &fds.objects };
            (0, *fds.get(&object.space).ok_or_else(|| missing("its object"))?)
        }
    };
    flags |= libc::MAP_FIXED_NOREPLACE | if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    if mapping.has(advice::GROWS_DOWN) {
        flags |= libc::MAP_GROWSDOWN;
    }
    if mapping.has(advice::NO_RESERVE) {
        flags |= libc::MAP_NORESERVE;
    }
    if mapping.has(advice::HUGETLB) {
        flags |= libc::MAP_HUGETLB | (mapping.page_size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT;
    }
    // Shared mappings are filled through their object; the others are filled in place.
    let prot = if mapping.shared { mapping.prot } else { libc::PROT_READ | libc::PROT_WRITE };
    let offset = if fd == -1 { 0 } else { mapping.offset };
    let args = [mapping.start, mapping.len(), prot as u64, flags as u64, fd as u64, offset];
    Ok(Some(Call::new(libc::SYS_mmap, &args)))
}

/// Calls that give a filled mapping its guards, advice, name, seal and protection. `name_at` is where its name lies in the
/// process, terminated by a zero byte.
pub fn finish(mapping: &Mapping, name_at: Option<u64>) -> Vec<Call> {
    const MADV_GUARD_INSTALL: u64 = 102;
    const PR_SET_VMA: u64 = 0x5356_4d41;
    const SYS_MSEAL: i64 = 462;
    if matches!(mapping.backing, Backing::Kernel(_) | Backing::Aio(_)) {
        return Vec::new();
    }
    let mut calls = advice::calls(mapping.start, mapping.len(), mapping.advice);
    for &(start, len) in &mapping.guards {
        calls.push(Call::new(libc::SYS_madvise, &[start, len, MADV_GUARD_INSTALL]));
    }
    if let Some(name) = name_at {
        calls.push(Call::new(libc::SYS_prctl, &[PR_SET_VMA, 0, mapping.start, mapping.len(), name]));
    }
    if !mapping.shared && mapping.prot != libc::PROT_READ | libc::PROT_WRITE {
        calls.push(Call::new(libc::SYS_mprotect, &[mapping.start, mapping.len(), mapping.prot as u64]));
    }
    if mapping.has(advice::SEALED) {
        calls.push(Call::new(SYS_MSEAL, &[mapping.start, mapping.len(), 0]));
    }
    calls
}

impl Sound for Mappings {
    fn fault(&self) -> Option<String> {
        let mut free_from = 0;
        self.all.iter().find_map(|mapping| {
            let fault = if mapping.start < free_from { Some("overlaps the one before it") } else { mapping.fault() };
            free_from = mapping.end;
            fault.map(|fault| format!("the mapping of pid {} at {:#x} {fault}", self.pid, mapping.start))
        })
    }
}

impl Mapping {
    fn fault(&self) -> Option<&'static str> {
        let Self { start, end, .. } = *self;
        if !are_pages(start, end) {
            return Some("is not whole pages");
        }
        if !self.offset.is_multiple_of(PAGE) || self.offset.checked_add(self.len()).is_none_or(|end| end > 1 << 63) {
            return Some("is of a part that no file can have");
        }
        if !self.page_size.is_power_of_two() || self.page_size < PAGE {
            return Some("has pages of an impossible size");
        }
        let inside = |&(at, len): &(u64, u64)| at >= start && at.checked_add(len).is_some_and(|guarded| guarded <= end);
        if !self.guards.iter().all(inside) {
            return Some("has guard pages outside of itself");
        }
        match &self.backing {
            Backing::Object(object) if !is_object_space(object.space) => {
                Some("is of an object with an impossible number")
            }
            Backing::Object(object) if object.size > 1 << 63 => Some("is of an object of an impossible size"),
            Backing::Aio(ring) if ring.bytes.len() as u64 > self.len() => Some("is a ring that is larger than itself"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64) -> Mapping {
        let (backing, guards) = (Backing::Anonymous, Vec::new());
        let (prot, shared, offset, advice, page_size, name) = (3, false, 0, 0, 4096, None);
        Mapping { start, end, prot, shared, offset, backing, advice, page_size, name, guards }
    }

    fn fault(all: &[Mapping]) -> Option<String> {
        Mappings { pid: 7, all: all.to_vec() }.fault()
    }

    #[test]
    fn mappings_that_cannot_be_are_named() {
        assert_eq!(fault(&[mapping(0x1000, 0x2000), mapping(0x2000, 0x5000)]), None);
        assert_eq!(fault(&[Mapping { guards: vec![(0x1000, 0x1000)], ..mapping(0x1000, 0x2000) }]), None);
        let wrong = [
            vec![mapping(0x2000, 0x1000)],
            vec![mapping(0x1000, 0x1000)],
            vec![mapping(0x1000, 0x2001)],
            vec![mapping(0x1000, 1 << 63)],
            vec![mapping(0x1000, 0x3000), mapping(0x2000, 0x4000)],
            vec![Mapping { offset: u64::MAX - 0xfff, ..mapping(0x1000, 0x2000) }],
            vec![Mapping { page_size: 0, ..mapping(0x1000, 0x2000) }],
            vec![Mapping { guards: vec![(0x1000, u64::MAX)], ..mapping(0x1000, 0x2000) }],
        ];
        for all in wrong {
            assert!(fault(&all).is_some_and(|fault| fault.contains("pid 7")), "{all:?}");
        }
        let object = |space, size| Backing::Object(Object { space, kind: ObjectKind::SharedAnonymous, size });
        let of = |backing| fault(&[Mapping { backing, ..mapping(0x1000, 0x2000) }]);
        assert_eq!(of(object(1 << 32, 0x1000)), None);
        assert!(of(object(u64::MAX, 0x1000)).is_some() && of(object(5, 0x1000)).is_some());
        assert!(of(object(1 << 32, u64::MAX)).is_some());
    }
}
