//! What to say where a checkpoint cannot be restored because the store is damaged: the newest one that can, and the command for it.

use std::ffi::{OsStr, OsString};

use cr::store::{self, Store};
use cr::supervise::Config;
use cr::{Error, bucket, integrity, object};

/// The same error, with an offer if there is another checkpoint to restore: the command line for it.
pub(super) fn offer(error: Error, config: &Config, asked: Option<u64>) -> Error {
    if error.exit_code() != 122 || matches!(error, Error::Store(store::Error::Locked { .. })) {
        return error;
    }
    let Ok(store) = Store::open_existing_with(&config.store, object::KINDS, &config.keys) else { return error };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let partial = bucket::partial(store.dir()).ok().flatten().map(|(_, partial)| partial).unwrap_or_default();
    let Ok(report) = store.newest_intact_with(threads, &integrity::judge, &partial) else { return error };
    let newest = report.checkpoints.last().copied();
    let offer = match report.newest_intact {
        // That one is in order: it is something else.
        Some(intact) if Some(intact) == asked.or(newest) => return error,
        Some(intact) => {
            let command = restore_command(std::env::args_os(), intact);
            format!("the newest intact checkpoint is {intact}; this restores it: {command}")
        }
        None if report.checkpoints.is_empty() => return error,
        None => "none of its checkpoints is intact; `cr verify` says what is wrong with each".to_owned(),
    };
    Error::Controller { code: 122, message: format!("{error}\n{offer}") }
}

/// The command line `args`, of `cr restore` or `cr run --resume`, as one that restores another checkpoint. All other options stay, those
/// that name keys among them: each option of `run` is one of `restore`, but for `--resume`.
fn restore_command(args: impl Iterator<Item = OsString>, id: u64) -> String {
    let mut words = Vec::new();
    let mut has_command = false;
    // What follows is the job.
    let mut args = args.take_while(|word| word != "--");
    while let Some(word) = args.next() {
        match word.as_encoded_bytes() {
            b"--id" => drop(args.next()),
            b"--resume" => (),
            b"run" | b"restore" if !has_command && !words.is_empty() => {
                has_command = true;
                words.push("restore".to_owned());
            }
            option if option.starts_with(b"--id=") => (),
            _ => words.push(quoted(&word)),
        }
    }
    format!("{} --id {id}", words.join(" "))
}

/// A word as a shell takes it.
fn quoted(word: &OsStr) -> String {
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
    fn another_checkpoint_is_restored_with_the_same_options() {
        let offered = |line: &str| restore_command(line.split(' ').map(OsString::from), 7);
        let run = "cr run --store run --resume --key-file k --interval 10min -- job run --resume --id 3";
        assert_eq!(offered(run), "cr restore --store run --key-file k --interval 10min --id 7");
        for id in ["", " --id 9", " --id=9"] {
            let line = format!("/bin/cr -v restore --store s{id} --passphrase-file p --trust run");
            assert_eq!(offered(&line), "/bin/cr -v restore --store s --passphrase-file p --trust run --id 7");
        }
    }

    #[test]
    fn words_are_quoted_where_a_shell_wants_it() {
        for (word, shown) in
            [("ckpt", "ckpt"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''"), ("--files=keep", "--files=keep")]
        {
            assert_eq!(quoted(OsStr::new(word)), shown);
        }
    }
}
