//! Files that a restore cuts back: at every point, what was cut off is kept.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cr::disk::Disk;
use cr::object::files::{Growth, RollbackPlan, roll_back};

use super::machine::{Machine, Tree};
use super::recorder::{Change, Fault, Recorder};
use super::scratch;

const WHOLE: &[u8] = b"before and after";
const BEFORE: usize = 6;
const CUT: &str = "store/cut";

#[test]
fn a_tail_is_never_lost() {
    let asked = roll_back_with(None);
    assert!(asked > 10, "{asked} operations");
    for at in 0..asked {
        for fault in Fault::ALL {
            roll_back_with(Some((at, fault)));
        }
    }
}

/// Cuts two files back, and checks every disk that a power loss meanwhile may leave. Gives the number of operations.
fn roll_back_with(fault: Option<(usize, Fault)>) -> usize {
    let folder = scratch();
    let recorder = Arc::new(Recorder::new(folder.path(), fault));
    let mut machine = Machine::default();
    for name in ["one", "two"] {
        fs::write(folder.path().join(name), WHOLE).expect("write");
        machine.apply(&Change::Create(name.into()));
        machine.apply(&Change::Write(name.into(), 0, WHOLE.to_vec()));
        machine.apply(&Change::SyncData(name.into()));
    }
    fs::create_dir(folder.path().join("store")).expect("mkdir");
    machine.apply(&Change::CreateDir("store".into()));
    machine.apply(&Change::SyncDir("".into()));

    let grown = |name| Growth { path: folder.path().join(name), from: BEFORE as u64, to: WHOLE.len() as u64 };
    let plan = RollbackPlan { grew: vec![grown("one"), grown("two")], modified: vec![] };
    let outcome = roll_back(&Disk::watched(recorder.clone()), &plan, &folder.path().join(CUT), 3);
    if recorder.struck().is_none() {
        assert_eq!(outcome.expect("nothing fails").len(), 2);
    } else if let Err(why) = outcome {
        assert!(why.to_string().contains(&folder.path().display().to_string()), "{why}");
    }
    for change in recorder.changes().iter().map(Some).chain([None]) {
        for state in machine.crash_states(true) {
            for name in ["one", "two"] {
                assert!(is_kept(&state.tree, name), "{name} with {fault:?}, before {change:?}: {}", state.how);
            }
        }
        if let Some(change) = change {
            machine.apply(change);
        }
    }
    assert!(machine.tree_as_seen().is_in(folder.path()), "the simulation is not what happened");
    recorder.asked()
}

/// Whether a file is whole, or what it lacks is in a file under the store.
fn is_kept(tree: &Tree, name: &str) -> bool {
    let file = tree.file(Path::new(name)).expect("it was there before");
    let tail = tree.file(&Path::new(CUT).join(format!("3-1-{name}"))).unwrap_or_default();
    file == WHOLE || (file == &WHOLE[..BEFORE] && tail == &WHOLE[BEFORE..])
}
