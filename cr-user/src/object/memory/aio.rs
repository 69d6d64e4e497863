//! Linux AIO: the ring of a context, which is a mapping that the kernel makes, moves and writes by itself. `fs/aio.c`.
//!
//! A ring can only be captured while no operation is under way. How it is made again is told in `restore/aio.rs`.

use crate::error::Refusal;
use crate::object::memory::backing::Backing;
use crate::object::memory::mapping::Mapping;
use crate::procfs::{self, Vma};
use crate::sys::vm;

/// A context, known by its ring.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct AioRing {
    /// Its place among the contexts of the process.
    pub id: u32,
    /// Completed operations that fit into the ring, and one more.
    pub places: u32,
    /// The place of the oldest completed operation that was not fetched.
    pub head: u32,
    /// The place of the next one.
    pub tail: u32,
    /// The ring's bytes, without the zeroes at its end.
    #[serde(serialize_with = "crate::object::shown::bytes")]
    pub bytes: Vec<u8>,
}

/// Bytes before the first place.
pub const HEADER: u64 = 32;
const EVENT: u64 = 32;
const MAGIC: u32 = 0xa10a_10a1;

/// Whether a mapping is the ring of a context.
pub fn is_ring(vma: &Vma) -> bool {
    vma.name.starts_with("/[aio]") && vma.shared
}

/// Reads a ring.
///
/// # Errors
/// Why it cannot be restored.
pub fn capture(pid: i32, vma: &Vma) -> Result<AioRing, Refusal> {
    let refuse = |why: &str| Refusal {
        pid,
        place: format!("{:#x}", vma.start),
        why: format!("is a Linux AIO ring {why}"),
        todo: "have the job destroy the context (io_destroy)".to_owned(),
    };
    let mut bytes = vec![0; vma.len() as usize];
    match vm::read(procfs::voice(pid), &[vm::Range { start: vma.start, len: vma.len() }], &mut bytes) {
        Ok(n) if n == bytes.len() => {}
        _ => return Err(refuse("that cannot be read")),
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (id, places, head, tail) = (word(0), word(4), word(8), word(12));
    let fits = (vma.len() - HEADER) / EVENT == u64::from(places);
    if word(16) != MAGIC || !fits || head >= places || tail >= places || vma.offset != 0 {
        return Err(refuse("that the kernel would not have made so"));
    }
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1));
    Ok(AioRing { id, places, head, tail, bytes })
}

/// Operations under way, by name.
pub fn busy(pid: i32, ring: u64, operations: u64) -> Refusal {
    Refusal {
        pid,
        place: format!("{ring:#x}"),
        why: format!("is a Linux AIO context with {operations} operations under way, which do not end"),
        todo: "wait until they have completed, or have the job cancel them".to_owned(),
    }
}

/// That nobody can tell whether operations are under way.
pub fn not_seen(pid: i32, ring: u64, why: &str) -> Refusal {
    Refusal {
        pid,
        place: format!("{ring:#x}"),
        why: format!("is a Linux AIO context, and whether operations are under way only eBPF programs can see ({why})"),
        todo: "run cr where it can load eBPF programs (see cr check), or have the job destroy the context".to_owned(),
    }
}

/// The rings among mappings, in the order of their contexts.
pub fn rings(mappings: &[Mapping]) -> Vec<(&Mapping, &AioRing)> {
    let mut rings: Vec<(&Mapping, &AioRing)> = Vec::new();
    for mapping in mappings {
        if let Backing::Aio(ring) = &mapping.backing {
            rings.push((mapping, ring));
        }
    }
    rings.sort_by_key(|(_, ring)| ring.id);
    rings
}
