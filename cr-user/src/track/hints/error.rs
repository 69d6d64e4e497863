//! Why there are no hints, and how aya's errors become ours.

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use crate::track::btf::BtfError;

/// Why there are no hints, or why a question to them failed. `cr` works without them.
#[derive(Debug, thiserror::Error)]
pub enum HintsError {
    /// The library was built without the programs.
    #[error("this cr was built without its eBPF programs; build with `cargo xtask run` or set CR_EBPF_OBJECT")]
    NoObject,
    /// The kernel's type information cannot be used.
    #[error("the eBPF programs need the kernel's type information: {0}")]
    NoBtf(#[from] BtfError),
    /// BPF is not for this user.
    #[error(
        "not allowed to load eBPF programs ({what}: {source}); run as root or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE"
    )]
    NoPrivilege {
        /// The step that was refused.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's verifier, or another check of the kernel's, refused a program.
    #[error("the kernel refused the eBPF program {program}: {why}")]
    Refused {
        /// Which program.
        program: String,
        /// The kernel's answer, the verifier's last words included.
        why: String,
    },
    /// A map could not be made, read or changed.
    #[error("the eBPF map {map}: {why}")]
    Map {
        /// Which map.
        map: &'static str,
        /// The reason.
        why: String,
    },
    /// An iterator could not be opened or read.
    #[error("the eBPF iterator {iter} over {over}: {source}")]
    Iter {
        /// Which program.
        iter: &'static str,
        /// What it was to go over.
        over: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no such process, or it has no memory of its own (a kernel thread, a zombie).
    #[error("cannot follow pid {pid}: there is no such process, or it has no memory (a kernel thread or a zombie)")]
    NoProcess {
        /// The number that was asked for.
        pid: i32,
    },
}

pub(super) fn no_map(map: &'static str) -> HintsError {
    HintsError::Map { map, why: "not in the object; it is of another version of cr".into() }
}

pub(super) fn no_program(program: &'static str) -> HintsError {
    HintsError::Refused { program: program.into(), why: "not in the object; it is of another version of cr".into() }
}

pub(super) fn torn(iter: &'static str, pid: i32) -> HintsError {
    let source = io::Error::new(io::ErrorKind::InvalidData, "half a record was read");
    HintsError::Iter { iter, over: format!("pid {pid}"), source }
}

pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> HintsError {
    move |error| HintsError::Map { map, why: with_causes(&error) }
}

/// An error from loading the object, before any program.
pub(super) fn load_error(error: EbpfError) -> HintsError {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) if is_privilege(&io_error) => {
            HintsError::NoPrivilege { what: format!("making the map {name}"), source: io_error }
        }
        other => HintsError::Refused { program: "(all)".into(), why: with_causes(&other) },
    }
}

/// An error from loading or attaching one program.
pub(super) fn program_error(program: &str, error: ProgramError) -> HintsError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } if io_error.raw_os_error() == Some(libc::EPERM) => {
            let _ = verifier_log;
            HintsError::NoPrivilege { what: format!("loading the program {program}"), source: io_error }
        }
        ProgramError::LoadError { io_error, verifier_log } => HintsError::Refused {
            program: program.into(),
            why: format!("{io_error}; {}", last_words(&verifier_log.to_string())),
        },
        other => HintsError::Refused { program: program.into(), why: with_causes(&other) },
    }
}

fn is_privilege(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// aya's messages leave their causes out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = inner.source();
    }
    message
}

/// The verifier's log can have a million lines; the reason stands at the end.
fn last_words(log: &str) -> String {
    const LINES: usize = 8;
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}
