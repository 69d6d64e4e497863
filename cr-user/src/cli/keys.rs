//! Keys of sealed stores and of signatures: never on the command line, only in files or typed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use cr::seal::{Keys, Secret, Signer, Trust};

/// What opens a sealed store.
#[derive(Debug, Args)]
pub(super) struct SecretArg {
    /// The store is sealed, or is made so, with the key in FILE: `cr keygen --key-file FILE` makes one. Others must not be able to read it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["passphrase_file", "passphrase"])]
    key_file: Option<PathBuf>,

    /// … with the passphrase that is the first line of FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase")]
    passphrase_file: Option<PathBuf>,

    /// … with a passphrase that is asked for at the terminal; twice if the store is made.
    #[arg(long)]
    passphrase: bool,
}

impl SecretArg {
    /// The keys to a store, with nothing about signatures. `is_made`: whether the store is only being made, with this key. A passphrase is
    /// asked for twice then: nobody could open a store whose passphrase was mistyped.
    pub(super) fn keys(&self, store: &Path, is_made: impl FnOnce() -> bool) -> cr::Result<Keys> {
        let secret = match (&self.key_file, &self.passphrase_file) {
            (Some(path), _) => Some(Secret::from_key_file(path)?),
            (None, Some(path)) => Some(Secret::from_passphrase_file(path)?),
            (None, None) if self.passphrase => Some(Secret::ask(store, is_made())?),
            (None, None) => None,
        };
        Ok(Keys { secret: secret.map(Arc::new), ..Keys::default() })
    }
}

/// Who signs.
#[derive(Debug, Args)]
pub(super) struct SignArg {
    /// Sign what is written with the key in FILE, which `cr keygen --sign-key FILE` makes. Others must not be able to read it.
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
}

impl SignArg {
    pub(super) fn signer(&self) -> cr::Result<Option<Arc<Signer>>> {
        Ok(self.sign_key.as_deref().map(Signer::read).transpose()?.map(Arc::new))
    }
}

/// Whose signatures count.
#[derive(Debug, Args)]
pub(super) struct TrustArg {
    /// Restore only what one of the public keys in FILE has signed: every image that the checkpoint is made of. May be given several times.
    ///
    /// For root, those in /etc/cr/trusted-keys count as well; where that file is, root restores nothing else.
    #[arg(long, value_name = "FILE", conflicts_with = "untrusted")]
    trust: Vec<PathBuf>,

    /// Restore it, whoever made it: /etc/cr/trusted-keys does not count.
    #[arg(long)]
    untrusted: bool,
}

impl TrustArg {
    pub(super) fn trust(&self) -> cr::Result<Trust> {
        let mut trust = Trust::default();
        for path in &self.trust {
            trust.add_file(path)?;
        }
        if !self.untrusted && nix::unistd::geteuid().is_root() {
            trust.add_machines()?;
        }
        Ok(trust)
    }
}
