//! A controller in the background, and what it tells the process that started it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use serde::{Deserialize, Serialize};

use super::Started;
use super::protocol::Failure;
use crate::error::{Error, Result};
use crate::sys::process;

/// Name of the file in a store that takes what a controller in the background has to say.
pub const LOG: &str = "controller.log";

/// Which process this is, after [`split`].
pub(super) enum Side {
    /// The one that was called, which waits for word of the other.
    Foreground(Messages),
    /// The controller.
    Background(Messenger),
}

/// The one thing that the controller tells.
#[derive(Serialize, Deserialize)]
enum Message {
    Started(Started),
    Failed(Failure),
}

/// Goes on twice. Must come before any thread is started.
pub(super) fn split(store: &Path) -> Result<Side> {
    let side = process::split_off().map_err(|e| Error::system("going to the background", e))?;
    Ok(match side {
        process::Side::Foreground(pipe) => Side::Foreground(Messages { pipe, log: store.join(LOG) }),
        process::Side::Background(pipe) => Side::Background(Messenger { pipe, log: store.join(LOG) }),
    })
}

/// The foreground's end.
pub(super) struct Messages {
    pipe: File,
    log: PathBuf,
}

impl Messages {
    /// Waits until the job is held, or the controller has given up.
    pub(super) fn receive(mut self) -> Result<Started> {
        let mut text = Vec::new();
        self.pipe.read_to_end(&mut text).map_err(|e| Error::system("waiting for the controller", e))?;
        match serde_json::from_slice(&text) {
            Ok(Message::Started(started)) => Ok(started),
            Ok(Message::Failed(failure)) => Err(failure.into()),
            Err(_) => {
                let message = format!("the controller died before it held the job; see {}", self.log.display());
                Err(Error::Controller { code: 125, message })
            }
        }
    }
}

/// The controller's end. It keeps the caller's standard streams until there is something to tell: a restored job may
/// inherit them.
pub(super) struct Messenger {
    pipe: File,
    log: PathBuf,
}

impl Messenger {
    /// Tells that the job is held and runs.
    pub(super) fn started(self, started: &Started) {
        self.tell(&Message::Started(started.clone()));
    }

    /// Tells that it is not, and why.
    pub(super) fn failed(self, error: &Error) {
        self.tell(&Message::Failed(error.into()));
    }

    fn tell(mut self, message: &Message) {
        self.leave_terminal();
        let text = serde_json::to_vec(message).expect("plain structures");
        // Whoever waited may have been interrupted: the job is held all the same.
        if let Err(e) = self.pipe.write_all(&text) {
            log::info!("nobody waits for the controller any more: {e}");
        }
    }

    /// Lets go of the caller's streams, which may be pipes that somebody reads to their end.
    fn leave_terminal(&self) {
        let Ok(null) = File::options().read(true).write(true).open("/dev/null") else { return };
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log);
        let log = log.as_ref().unwrap_or(&null);
        let _ = dup2_stdin(null.as_fd());
        let _ = dup2_stdout(log.as_fd());
        let _ = dup2_stderr(log.as_fd());
    }
}
