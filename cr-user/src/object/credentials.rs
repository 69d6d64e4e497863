//! Credentials of each thread: users, groups, capabilities, and the bits that go with them.

use crate::image::RecordKind;
use crate::object::records::Sound;
use crate::procfs::Status;
use crate::remote::{Answers, Call, Questions};

/// The record of a process's credentials.
pub const KIND: RecordKind = RecordKind { id: 6, version: 1, name: "credentials" };

/// Credentials of every thread of one process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Credentials {
    /// The process.
    pub pid: i32,
    /// By thread.
    pub threads: Vec<ThreadCredentials>,
}

/// Credentials of one thread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ThreadCredentials {
    /// The thread.
    pub tid: i32,
    /// Real, effective, saved and file-system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// `SECBIT_*`.
    pub securebits: u32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

/// Where the answers to [`ask`] are.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    securebits: usize,
}

/// Adds this file's questions for one thread.
pub fn ask(questions: &mut Questions) -> Asked {
    Asked { securebits: questions.ask(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS as u64]) }
}

/// Captures a thread's credentials.
pub fn capture(tid: i32, status: &Status, asked: Asked, answers: &Answers) -> ThreadCredentials {
    let four = |key: &str| <[u32; 4]>::try_from(status.numbers(key)).unwrap_or_default();
    ThreadCredentials {
        tid,
        uids: four("Uid"),
        gids: four("Gid"),
        groups: status.numbers("Groups"),
        capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|key| status.mask(key)),
        securebits: answers.outcome(asked.securebits).unwrap_or(0) as u32,
        no_new_privs: status.get("NoNewPrivs") == "1",
    }
}

/// Calls that give a restored thread its credentials, and the bytes that they read at `at` in the process. `have` is the
/// bounding set that it starts with. They come last: most of what comes before needs privilege.
pub fn restore_calls(cred: &ThreadCredentials, have: u64, at: u64) -> (Vec<Call>, Vec<u8>) {
    const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
    const SECBIT_KEEP_CAPS: u64 = 1 << 4;
    let prctl = |args: &[u64]| Call::new(libc::SYS_prctl, args);
    let (mut calls, mut bytes) = (Vec::new(), Vec::<u8>::new());
    bytes.extend(cred.groups.iter().flat_map(|g| g.to_le_bytes()));
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    calls.push(Call::new(libc::SYS_setgroups, &[cred.groups.len() as u64, at]));
    // Changing users must not drop the capabilities with which the rest is done.
    calls.push(prctl(&[libc::PR_SET_SECUREBITS as u64, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS]));
    for capability in (0..64).filter(|c| (have & !cred.capabilities[3]) >> c & 1 == 1) {
        calls.push(prctl(&[libc::PR_CAPBSET_DROP as u64, capability]));
    }
    let [real, effective, saved, fs] = cred.gids.map(u64::from);
    calls.push(Call::new(libc::SYS_setresgid, &[real, effective, saved]));
    calls.push(Call::new(libc::SYS_setfsgid, &[fs]));
    let [real, effective, saved, fs] = cred.uids.map(u64::from);
    calls.push(Call::new(libc::SYS_setresuid, &[real, effective, saved]));
    calls.push(Call::new(libc::SYS_setfsuid, &[fs]));
    calls.push(prctl(&[libc::PR_SET_SECUREBITS as u64, u64::from(cred.securebits)]));
    // The header, then the low and the high halves of effective, permitted and inheritable.
    let header = at + bytes.len() as u64;
    bytes.extend(CAPABILITY_VERSION_3.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    let [inheritable, permitted, wanted, _, ambient] = cred.capabilities;
    for shift in [0, 32] {
        for set in [wanted, permitted, inheritable] {
            bytes.extend(((set >> shift) as u32).to_le_bytes());
        }
    }
    calls.push(Call::new(libc::SYS_capset, &[header, header + 8]));
    for capability in (0..64).filter(|c| ambient >> c & 1 == 1) {
        calls.push(prctl(&[libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_RAISE as u64, capability]));
    }
    if cred.no_new_privs {
        calls.push(prctl(&[libc::PR_SET_NO_NEW_PRIVS as u64, 1]));
    }
    (calls, bytes)
}

impl Sound for Credentials {}
