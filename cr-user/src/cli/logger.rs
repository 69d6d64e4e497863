//! What the library logs, on standard error.

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What the libraries below say is for those who debug them.
        let ours =
            metadata.target() == "cr" || metadata.target().starts_with("cr::") || metadata.target().starts_with("cr_");
        metadata.level() <= if ours { log::max_level() } else { log::max_level().min(LevelFilter::Warn) }
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            for line in record.args().to_string().lines() {
                eprintln!("cr: {line}");
            }
        }
    }

    fn flush(&self) {}
}

/// Says as much as `-v` (counted) or `CR_LOG` asks for, whichever is more.
pub(super) fn init(verbose: u8) {
    let by_flag = match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let wish = std::env::var("CR_LOG").ok();
    let by_variable = wish.as_deref().and_then(|level| level.parse().ok());
    let level = match by_variable {
        // Less than the default can only be asked for by the variable.
        Some(level) if verbose == 0 => level,
        Some(level) => by_flag.max(level),
        None => by_flag,
    };
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
    if let (Some(wish), None) = (wish.filter(|wish| !wish.is_empty()), by_variable) {
        log::warn!("CR_LOG={wish} is no level: use error, warn, info, debug or trace");
    }
}
