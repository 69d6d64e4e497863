//! One file per kind of kernel object: its record in the image, how it is captured, how it is restored, and why it may be
//! refused. Files here do not know each other; what several need is in `remote`, `image` or `sys`.

pub mod cgroups;
pub mod clocks;
pub mod credentials;
pub mod files;
pub mod ipc;
pub mod lineage;
pub mod memory;
pub mod omitted;
pub mod process;
pub mod records;
pub mod scheduling;
pub mod seccomp;
pub mod shown;
pub mod signals;
pub mod spaces;
pub mod threads;
pub mod timers;
pub mod zombies;

use crate::image::RecordKind;

/// Every kind of record that this version of `cr` writes and reads. Whoever adds a kind of object adds a line.
pub const KINDS: &[RecordKind] = &[
    process::KIND,
    threads::KIND,
    memory::KIND,
    signals::KIND,
    timers::KIND,
    credentials::KIND,
    scheduling::KIND,
    seccomp::KIND,
    cgroups::KIND,
    files::KIND,
    clocks::KIND,
    ipc::KIND,
    zombies::KIND,
    omitted::KIND,
    crate::store::compact::KIND,
];

/// Whether what is kept from one checkpoint to the next is to be read besides, and compared: `CR_AUDIT` names kinds of that, with
/// commas between them.
pub(crate) fn is_audited(what: &str) -> bool {
    std::env::var("CR_AUDIT").is_ok_and(|all| all.split(',').any(|one| one == what))
}
