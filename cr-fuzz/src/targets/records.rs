//! Records of a checkpoint of a real job, some of them replaced, on the way that `cr show`, `cr restore` and `cr export` read them,
//! up to where they would ask or change the machine.
//!
//! The input is blocks: the number of the kind (2 bytes), its record's length (4 bytes, from the fifth on), the record, padded to 8.
//! Kinds without a block have the record that they have in `base.records`.

use std::collections::BTreeMap;

use cr::describe::Details;
use cr::export;
use cr::image::{Content, Extent, HeaderInfo, ImageWriter, IndexInfo, JobId, PAGE_SIZE, Space};
use cr::integrity;
use cr::object::KINDS;
use cr::restore::check_records;
use cr::store::{Chain, MARKER, Store};

use crate::forge::word;
use crate::scratch::Scratch;

/// Bytes before each record.
pub const BLOCK: usize = 8;
const BASE: &[u8] = include_bytes!("../../base.records");

pub fn run(input: &[u8]) -> bool {
    let mut records = kinds_of(BASE);
    records.extend(kinds_of(input));
    let scratch = Scratch::take();
    let chain = write(&scratch, &records);
    let shown = Details::of_chain(&chain);
    let restorable = check_records(&chain);
    // Its memory is not what the records say: only that this is found out is looked at.
    let _ = integrity::check(&chain);
    if let Ok(details) = &shown {
        serde_json::to_string(details).expect("what is shown can be written");
        // A core file is as large as the memory.
        if mapped(details) < 4 << 20 {
            for process in details.processes.iter().take(4) {
                let path = scratch.path().join("core");
                let _ = export::core(&chain, Some(process.pid), &path);
                let _ = std::fs::remove_file(path);
            }
        }
    }
    shown.is_ok() && restorable.is_ok()
}

/// The records by kind.
fn kinds_of(mut blocks: &[u8]) -> BTreeMap<u16, &[u8]> {
    let mut all = BTreeMap::new();
    while let Some((head, rest)) = blocks.split_at_checked(BLOCK) {
        let len = (word(head, 4, 4) as usize).min(rest.len());
        all.insert(word(head, 0, 2) as u16, &rest[..len]);
        blocks = &rest[len.next_multiple_of(8).min(rest.len())..];
    }
    all
}

/// A checkpoint with these records, and pages in some spaces that they may speak of.
fn write(scratch: &Scratch, records: &BTreeMap<u16, &[u8]>) -> Chain {
    const JOB: JobId = JobId([7; 16]);
    scratch.file(MARKER, format!(r#"{{"format":1,"job":"{JOB}"}}"#).as_bytes());
    let path = scratch.path().join("00000001.cr.tmp");
    let image = ImageWriter::create(&path, HeaderInfo { id: 1, job: JOB }).expect("a file in memory");
    let slot = image.put(&[5; 2 * PAGE_SIZE]).expect("pages in memory");
    for kind in KINDS {
        if let Some(record) = records.get(&kind.id) {
            image.record(*kind, record.to_vec()).expect("each kind once");
        }
    }
    let space = |id| {
        let extents = vec![
            Extent { first_page: 0, pages: 2, content: Content::Stored { slot } },
            Extent { first_page: 1 << 20, pages: 1 << 51, content: Content::Zero },
        ];
        Space { id, extents }
    };
    let spaces = [1, 2, 1 << 32, (1 << 32) + 1].map(space).into();
    let finished = image.finish(IndexInfo { spaces, ..IndexInfo::default() }).expect("a file in memory");
    // Published by hand: the writer would want the lock, and make much durable.
    std::fs::rename(finished.path(), scratch.path().join("00000001.cr")).expect("a file in memory");
    let store = Store::open_existing(scratch.path(), KINDS).expect("it has a marker");
    Chain::open(&store, Some(1)).expect("only its records are not as they should be")
}

/// Bytes of all mappings.
fn mapped(details: &Details) -> u64 {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
    details.mappings.iter().fold(0, |sum, m| sum + (number(&m.end) - number(&m.start)))
}
