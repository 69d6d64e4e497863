//! A written page of which nothing was noted: the audit finds it, says so, and from then on page tables are asked about everything.

use std::fs;

use aya::maps::{HashMap, Map, MapData};
use cr_tests::{Job, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A region's record: its key, and its value.
type Notes = HashMap<MapData, [u64; 2], [u64; 9]>;

/// The record of written pages that this controller has in the kernel.
fn notes_of(controller: i32) -> Option<Notes> {
    let fds = fs::read_dir(format!("/proc/{controller}/fdinfo")).expect("the controller's descriptors");
    let texts = fds.filter_map(|fd| fs::read_to_string(fd.ok()?.path()).ok());
    let ids = texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok()));
    let maps = ids.filter_map(|id: u32| MapData::from_id(id).ok());
    let is_record = |map: &MapData| map.info().is_ok_and(|info| info.name_as_str() == Some("WRITTEN"));
    let record = maps.into_iter().find(is_record)?;
    Some(HashMap::try_from(Map::HashMap(record)).expect("the record's layout"))
}

#[test]
fn a_page_that_was_not_noted_is_found_by_the_audit_and_stored() {
    let mut job = Job::start_audited("writer", &["--rate", "0", "--mib", "16", "--once-mib", "4"], "pages");
    job.checkpoint();
    let narrow = job.checkpoint();
    let about_everything = |why: &String| why.contains("asked about everything");
    if !narrow.widened.is_empty() {
        skip!("page tables are asked about everything anyway: {:?}", narrow.widened);
    }
    // All that the programs note of these writes is taken away from them.
    kill(Pid::from_raw(job.pid()), Signal::SIGUSR1).expect("the guest");
    // One step may be under way, the next one writes, and the third shows that it is over.
    job.advance(3);
    let mut notes = notes_of(job.controller_pid().expect("a controller")).expect("its record of written pages");
    let keys: Vec<[u64; 2]> = notes.keys().filter_map(Result::ok).collect();
    assert!(!keys.is_empty(), "nothing was noted");
    for key in keys {
        notes.remove(&key).expect("an entry");
    }
    let audited = job.checkpoint();
    assert!(audited.widened.iter().any(about_everything), "{:?}", audited.widened);
    assert!(audited.dirty_pages >= 1024, "{audited:?}");
    let said = fs::read_to_string(job.dir().join("err.0")).expect("what the controller says");
    assert!(said.contains("were not noted"), "{said}");
    job.want_defect();
    // It stays so.
    assert!(job.checkpoint().widened.iter().any(about_everything));
    job.kill();
    job.restore();
    job.finish();
}
