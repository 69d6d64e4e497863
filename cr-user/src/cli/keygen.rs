//! `cr keygen`: keys for sealed stores and for signatures.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cr::seal::{self, Error, KEY_FILE_BYTES, Signer};

use super::{Execute, Output};

const LONG: &str = "\
Makes a key.

With --key-file: 32 random bytes, to seal stores with (`--key-file` of the other commands). Whoever has the file can read all that is \
sealed with it; without it, nobody can, so keep a copy elsewhere. Any file of 32 or more random bytes will do as well.

With --sign-key: a pair of Ed25519 keys, to sign checkpoints with. FILE holds the secret one, FILE.pub the public one, which is what \
`cr restore --trust` wants to be given, and /etc/cr/trusted-keys holds.

Nothing is written over. Secret files get mode 0600.";

const AFTER: &str = "\
Examples:
  cr keygen --key-file ~/.cr-key
  cr run --store ckpt --key-file ~/.cr-key --interval 60s -- ./solver
  cr keygen --sign-key /root/site-key && cat /root/site-key.pub >> /etc/cr/trusted-keys

Exit codes: 0; 119 the file exists, or cannot be written";

/// Make a key to seal stores or to sign checkpoints with.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    /// Make a key to seal stores with.
    #[arg(long, value_name = "FILE", conflicts_with = "sign_key", required_unless_present = "sign_key")]
    key_file: Option<PathBuf>,

    /// Make a pair of keys to sign with: FILE and FILE.pub.
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
}

impl Execute for Args {
    fn json(&self) -> bool {
        false
    }

    fn execute(&self, _: Output) -> cr::Result<u8> {
        if let Some(path) = &self.key_file {
            let random = seal::random::<KEY_FILE_BYTES>();
            random.and_then(|key| write_new(path, &key, 0o600)).map_err(|source| failed(path, source))?;
        }
        if let Some(path) = &self.sign_key {
            let (secret, public) = Signer::generate().map_err(|source| failed(path, source))?;
            write_new(path, secret.as_bytes(), 0o600).map_err(|source| failed(path, source))?;
            let mut name = path.clone().into_os_string();
            name.push(".pub");
            let beside = PathBuf::from(name);
            write_new(&beside, public.as_bytes(), 0o644).map_err(|source| failed(&beside, source))?;
        }
        Ok(0)
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn failed(path: &Path, source: std::io::Error) -> cr::Error {
    Error::Io { path: path.to_owned(), doing: "make", source }.into()
}
