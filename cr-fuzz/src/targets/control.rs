//! What is said over the control socket, and the small files of a store: the first byte says which of them the others are.

use std::fs::File;

use cr::object::KINDS;
use cr::store::{Error, LOCK, MARKER, Store};
use cr::supervise::protocol::{self, Response};

use crate::scratch::Scratch;

pub fn run(input: &[u8]) -> bool {
    let Some((kind, bytes)) = input.split_first() else { return false };
    match kind % 4 {
        0 => request(&String::from_utf8_lossy(bytes)),
        1 => answer(&String::from_utf8_lossy(bytes)),
        2 => marker(bytes),
        _ => lock(bytes),
    }
}

/// What is understood is understood again when it is passed on.
fn request(line: &str) -> bool {
    let Ok(command) = protocol::parse(line) else { return false };
    let again = serde_json::to_string(&command.clone().request()).expect("a plain structure");
    assert_eq!(protocol::parse(&again).ok(), Some(command), "{again}");
    true
}

fn answer(line: &str) -> bool {
    let Ok(response) = serde_json::from_str::<Response>(line) else { return false };
    serde_json::to_string(&response).expect("a plain structure");
    true
}

fn marker(bytes: &[u8]) -> bool {
    let scratch = Scratch::take();
    scratch.file(MARKER, bytes);
    Store::open_existing(scratch.path(), KINDS).is_ok()
}

/// Somebody holds the lock, and the file says who.
fn lock(bytes: &[u8]) -> bool {
    let scratch = Scratch::take();
    scratch.file(MARKER, br#"{"format":1,"job":"00000000000000000000000000000001"}"#);
    let held = File::open(scratch.file(LOCK, bytes)).expect("a file in memory");
    held.lock().expect("nobody else has it");
    let store = Store::open_existing(scratch.path(), KINDS).expect("it has a marker");
    match store.lock() {
        Err(Error::Locked { pid, .. }) => pid.is_some(),
        other => panic!("it is locked: {other:?}"),
    }
}
