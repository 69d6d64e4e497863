//! What is said over the control socket, and the small files of a store: the first byte says which of them the others are.

use std::fs::File;

use cr::object::KINDS;
use cr::store::{Error, LOCK, MARKER, Store};
use cr::supervise::protocol::{self, Response};
use serde_json::Value;

use super::open_store;
use crate::keys;
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
    let Ok(store) = Store::open_existing(scratch.path(), KINDS) else { return false };
    open_store(scratch.path());
    if store.is_sealed() {
        try_passphrase(&scratch, bytes);
    }
    true
}

/// A passphrase costs the memory and time that the marker asks for: up to what `docs/image-format.md` allows, which is more than there is
/// here. So it is tried where it costs little, and where it costs so much that it must be refused without being tried.
fn try_passphrase(scratch: &Scratch, marker: &[u8]) {
    let marker: Value = serde_json::from_slice(marker).expect("the store was opened");
    let asks = |name: &str| marker["seal"][name].as_u64().unwrap_or(0);
    let (memory_kib, passes, lanes) = (asks("memory_kib"), asks("passes"), asks("lanes"));
    let work = memory_kib.saturating_mul(passes);
    let too_much = memory_kib > 1 << 20 || passes > 64 || lanes > 64 || work > 1 << 22;
    if too_much || work <= 1 << 10 {
        let opened = Store::open_existing_with(scratch.path(), KINDS, keys::by_passphrase());
        assert!(opened.is_err(), "it was wrapped with something else");
    }
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
