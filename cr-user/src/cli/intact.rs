//! What to say where a checkpoint cannot be restored because the store is damaged: the newest one that can, and the command for it.

use std::ffi::OsStr;

use cr::store::{self, Store};
use cr::supervise::Config;
use cr::{Error, integrity, object};

/// The same error, with an offer if there is another checkpoint to restore. `command` makes the command line, given its number.
pub(super) fn offer(error: Error, config: &Config, asked: Option<u64>, command: impl FnOnce(u64) -> String) -> Error {
    if error.exit_code() != 122 || matches!(error, Error::Store(store::Error::Locked { .. })) {
        return error;
    }
    let Ok(store) = Store::open_existing_with(&config.store, object::KINDS, &config.keys) else { return error };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let Ok(report) = store.newest_intact_with(threads, &integrity::judge) else { return error };
    let newest = report.checkpoints.last().copied();
    let offer = match report.newest_intact {
        // That one is in order: it is something else.
        Some(intact) if Some(intact) == asked.or(newest) => return error,
        Some(intact) => format!("the newest intact checkpoint is {intact}; this restores it: {}", command(intact)),
        None if report.checkpoints.is_empty() => return error,
        None => "none of its checkpoints is intact; `cr verify` says what is wrong with each".to_owned(),
    };
    Error::Controller { code: 122, message: format!("{error}\n{offer}") }
}

/// Our own command line, for another checkpoint.
pub(super) fn command_with_id(id: u64) -> String {
    let mut words = Vec::new();
    let mut args = std::env::args_os();
    while let Some(word) = args.next() {
        if word == "--id" {
            args.next();
        } else if !word.as_encoded_bytes().starts_with(b"--id=") {
            words.push(quoted(&word));
        }
    }
    format!("{} --id {id}", words.join(" "))
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_wants_it() {
        for (word, shown) in
            [("ckpt", "ckpt"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''"), ("--files=keep", "--files=keep")]
        {
            assert_eq!(quoted(OsStr::new(word)), shown);
        }
    }
}
